package server

import (
	"context"
	"io"
	"iter"
	"time"

	"imprint"
	"imprint/api"
)

// Instances reads the store. All methods may fail with kind Unavailable, and
// those with an ID with kind NotFound.
type Instances interface {
	Instance(ctx context.Context, id imprint.InstanceID) (*imprint.Instance, error)
	Lookup(ctx context.Context, tenant imprint.TenantName, name imprint.InstanceName) (imprint.InstanceID, error)
	// List returns one page and where the next one starts; "" after the last.
	List(ctx context.Context, q api.Query) (page []*imprint.Instance, next string, err error)
	// Events returns the kept events after the one numbered after, oldest first.
	Events(ctx context.Context, id imprint.InstanceID, after uint64) ([]imprint.Event, error)
}

// Registry creates and deletes instances. by says who asked, for the timeline.
type Registry interface {
	// Create reserves an instance and stores it together with its private values,
	// sealed: all of it or nothing. An id of "" has one drawn. Kinds: Exists if the
	// name is taken, or the id, also by an instance that was deleted; Invalid,
	// Denied for names outside the tenant's constraint.
	Create(ctx context.Context, id imprint.InstanceID, spec imprint.Spec, private map[string]imprint.Secret, by string) (*imprint.Instance, error)
	// CheckID fails as Create would because of i's ID.
	CheckID(ctx context.Context, i *imprint.Instance) error
	Delete(ctx context.Context, id imprint.InstanceID, by string) error
}

// Decisions are the operator's moves in an enrolment. Kinds: NotFound; Conflict
// if the present state does not allow the move.
type Decisions interface {
	Approve(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error)
	Revoke(ctx context.Context, id imprint.InstanceID, reason, by string) (*imprint.Instance, error)
	Rebirth(ctx context.Context, id imprint.InstanceID, by string) (*imprint.Instance, error)
}

// Installations keeps account of installations. Kinds: NotFound; Invalid for what
// cannot be reported; Conflict for another generation, for a step of an installation
// that was not started, and for one that starts though a key has claimed.
type Installations interface {
	ReportInstallation(ctx context.Context, id imprint.InstanceID, r imprint.Installation) (*imprint.Instance, error)
	// Setup stores what the machine has for its next installation only; nil takes it
	// away. Kind: Invalid if no machine could be given it.
	Setup(ctx context.Context, id imprint.InstanceID, setup *imprint.InstallSetup, by string) (*imprint.Instance, error)
}

// Credentials hands out one-time tokens. A new token replaces an earlier one; a
// ttl of 0 is the default. Kinds: NotFound, Conflict once a key is bound.
type Credentials interface {
	Token(ctx context.Context, id imprint.InstanceID, ttl time.Duration) (imprint.Secret, error)
	// Payload is the encoded payload with a fresh token in it.
	Payload(ctx context.Context, id imprint.InstanceID, ttl time.Duration) (imprint.Secret, error)
	// Medium is what a medium holds: what all who can read it may read. If the
	// dialect has a payload a fresh token is in it. Kind: Invalid if there is no such
	// dialect or carrier, if they do not fit, or for what the dialect cannot describe.
	// It is on record when it is returned; by says who asked.
	Medium(ctx context.Context, id imprint.InstanceID, what api.MediumRequest, by string) (*api.Medium, error)
	// SettleMedium records what became of a medium. Kinds: NotFound if the record has
	// none of that number; Invalid for what cannot become of one.
	SettleMedium(ctx context.Context, id imprint.InstanceID, number uint32, state imprint.MediumState, detail, by string) error
}

// Params keeps the values of parameters, each sort where it belongs.
type Params interface {
	// PutPublic changes the value in the spec.
	PutPublic(ctx context.Context, id imprint.InstanceID, name, value, by string) error
	// PutPrivate seals the value and stores it.
	PutPrivate(ctx context.Context, id imprint.InstanceID, name string, value imprint.Secret, by string) error
	// PutSecret hands the value to the memory of the host that serves the
	// instance. Kind: Unavailable if that host cannot be reached.
	PutSecret(ctx context.Context, i *imprint.Instance, name string, value imprint.Secret) error
	// Declare adds a parameter to the spec, or changes who may read it, and gives it
	// its value, which is then nowhere else. Kind: Unavailable, as for PutSecret: then it
	// is declared and has no value.
	Declare(ctx context.Context, id imprint.InstanceID, p imprint.Param, value imprint.Secret, by string) error
	// Remove takes a parameter out of the spec, and its value with it.
	Remove(ctx context.Context, id imprint.InstanceID, name, by string) error
	// Values returns those of the private and secret parameters of an instance that
	// this server's host role serves. It is on record when they are returned; by says
	// who asked. Kind: NotFound if one is not at hand.
	Values(ctx context.Context, i *imprint.Instance, by string) (map[string]imprint.Secret, error)
	// Missing names the secret parameters whose values that host does not hold:
	// all of them while it cannot be reached.
	Missing(ctx context.Context, i *imprint.Instance) []string
}

// Pipes carry messages between operator and guest. Kinds: NotFound if the
// instance declares no such pipe, Unavailable if its host cannot be reached.
type Pipes interface {
	ListPipes(ctx context.Context, id imprint.InstanceID) ([]api.Pipe, error)
	// WritePipe queues a message for the guest; with the id of the one before it is
	// that one again, unless the id is "". Kind: Exhausted while too many wait.
	WritePipe(ctx context.Context, id imprint.InstanceID, pipe, messageID string, message []byte, by string) error
	// ReadPipe returns the oldest message from the guest, which stays, and its
	// receipt. It waits so long for one; the receipt is "" if none came.
	ReadPipe(ctx context.Context, id imprint.InstanceID, pipe string, wait time.Duration) (message []byte, receipt string, err error)
	// TakePipe removes the oldest message from the guest if it has this receipt.
	TakePipe(ctx context.Context, id imprint.InstanceID, pipe, receipt, by string) error
}

// Hosts tells how instances are served.
type Hosts interface {
	// Host returns how a host is connected.
	Host(ctx context.Context, name imprint.HostName) api.HostState
	// Ports returns how an instance's channels arrive at its host; none while the
	// host cannot be reached.
	Ports(ctx context.Context, i *imprint.Instance) []api.Port
}

// Notice is one change in the store.
type Notice struct {
	Revision int64
	Relist   bool // reported because changes were missed, or the watch began
	Instance *imprint.Instance
	Deleted  imprint.InstanceID
	Event    *imprint.Event
}

// Scope narrows a watch; the zero value is everything.
type Scope struct {
	Tenant   imprint.TenantName
	Host     imprint.HostName
	Instance imprint.InstanceID
}

// Watcher follows the store.
type Watcher interface {
	// Watch yields the notices at and after revision from, those of one revision
	// always in the same order. With 0, or when from is no longer kept, it begins
	// with the instances there are, marked Relist. It ends with an error or when
	// ctx is done.
	Watch(ctx context.Context, scope Scope, from int64) iter.Seq2[Notice, error]
}

// Authorities publishes what everybody may know of the tenants' CAs. Kind:
// NotFound if there is no such tenant.
type Authorities interface {
	Authority(ctx context.Context, tenant imprint.TenantName) (*api.Authority, error)
	// Bundle is PEM, the root first.
	Bundle(ctx context.Context, tenant imprint.TenantName) ([]byte, error)
	// CRL is the current revocation list in DER.
	CRL(ctx context.Context, tenant imprint.TenantName) ([]byte, error)
}

// RootKeys is what operators do with the tenants' root keys. Kinds: NotFound if
// there is no such tenant or its key was taken out.
type RootKeys interface {
	// Export returns the key as PEM.
	Export(ctx context.Context, tenant imprint.TenantName, by string) (imprint.Secret, error)
	// Drop removes the key from the server.
	Drop(ctx context.Context, tenant imprint.TenantName, by string) error
	// Reissue makes a new issuing CA; a zero key means the one on the server.
	// Kind: Conflict if there is none.
	Reissue(ctx context.Context, tenant imprint.TenantName, key imprint.Secret, by string) (*api.Authority, error)
}

// Sealing protects values at rest.
type Sealing interface {
	// Rotate gives everything that is sealed a new key-encryption key and returns
	// that key's name and how many instances had sealed values. It may be repeated.
	Rotate(ctx context.Context, by string) (key string, instances int, err error)
}

// IssuanceLog gives copies of the issuance log.
type IssuanceLog interface {
	// WriteTar writes the log's files, the checkpoint first, so that what it
	// covers is in the archive.
	WriteTar(ctx context.Context, w io.Writer) error
}
