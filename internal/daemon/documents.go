package daemon

import (
	"context"
	"encoding/json"

	"imprint"
)

// documents is where CA material and the keys of the issuance logs are kept.
type documents interface {
	Document(ctx context.Context, name string) (data []byte, revision int64, err error)
	PutDocument(ctx context.Context, name string, data []byte, revision int64) error
}

// readDocument decodes the document called name into value and returns its
// revision. Kind: NotFound if there is none.
func readDocument(ctx context.Context, docs documents, name string, value any) (revision int64, err error) {
	data, revision, err := docs.Document(ctx, name)
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return 0, imprint.Errorf(imprint.Internal, "read", name, "%w", err)
	}
	return revision, nil
}

// writeDocument stores value if the document is still at revision; else it fails
// with kind Conflict.
func writeDocument(ctx context.Context, docs documents, name string, value any, revision int64) error {
	data, err := json.Marshal(value)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "write", name, "%w", err)
	}
	return docs.PutDocument(ctx, name, data, revision)
}

// editDocument changes the document called name, which may not exist yet, and
// does it again if another server was quicker.
func editDocument[T any](ctx context.Context, docs documents, name string, edit func(*T) (changed bool, err error)) error {
	for {
		var value T
		revision, err := readDocument(ctx, docs, name, &value)
		if err != nil && imprint.KindOf(err) != imprint.NotFound {
			return err
		}
		changed, err := edit(&value)
		if err != nil || !changed {
			return err
		}
		if err := writeDocument(ctx, docs, name, value, revision); imprint.KindOf(err) != imprint.Conflict {
			return err
		}
	}
}
