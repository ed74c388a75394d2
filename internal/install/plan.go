package install

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"

	"imprint"
)

// Plan is what an installation is to do. It holds no secret.
type Plan struct {
	Instance   imprint.InstanceID
	Ref        string // the instance for people
	Generation imprint.Generation
	Disk       string // path of a file or block device
	// Size is what a file is made or enlarged to, in bytes; 0 is as it is, and for one
	// that is made the image's.
	Size int64
	// Image is where the image comes from, for people, without credentials.
	Image string
	// Inputs is all else that decides what the disk will hold, in a fixed order.
	Inputs []string
}

// id returns the digest of all that decides what the disk of that identity will hold.
func (p *Plan) id(disk string) imprint.Digest {
	var b bytes.Buffer
	put := func(s string) {
		b.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		b.WriteString(s)
	}
	for _, s := range append([]string{"imprint install v1", string(p.Instance), disk, p.Image}, p.Inputs...) {
		put(s)
	}
	binary.Write(&b, binary.BigEndian, []int64{int64(p.Generation), p.Size})
	return imprint.DigestOf(b.Bytes())
}

// Image is an image that is at hand and was checked.
type Image struct {
	Digest imprint.Digest // SHA-256 of the file as it was fetched
	Format string         // for people: "qcow2", "raw in gzip"
	Size   int64          // bytes that it needs on a disk
	Cached bool           // nothing had to be fetched
}

// Images fetches one image and writes it.
type Images interface {
	// Fetch returns when the image is at hand and is what it is to be. It may be
	// called again, and then fetches only what is missing. progress gets bytes; a total
	// of 0 is not known. Its errors say what to do, and nothing was done to any disk.
	Fetch(ctx context.Context, progress func(done, total int64)) (Image, error)
	// Write puts the fetched image at the start of disk, on which size bytes have room,
	// as if all of it had been zeros before; and returns when it is safely there. It
	// fails with kind [imprint.Invalid] and writes nothing if the image is larger.
	Write(ctx context.Context, disk *os.File, size int64, progress func(done, total int64)) error
}

// Changes is what is done to an image on its disk.
type Changes interface {
	// Ready fails if the host lacks what Change needs, while the disk is as it was.
	Ready() error
	// Change does all of it, and calls done for each step that is complete, in order.
	// When it returns an error, what the disk holds is not known. progress says what is
	// being done, in bytes or other units; a total of 0 is not known.
	Change(ctx context.Context, disk *os.File, progress func(what string, done, total int64), done func(step imprint.InstallStep, detail string)) error
}

// Timeline is told how far an installation is, for all who may read the instance's.
type Timeline interface {
	// Report may be repeated. The error is [imprint.Conflict] if the instance has a
	// new life or is enrolled, [imprint.Unavailable] if nobody can be told now.
	Report(ctx context.Context, id imprint.Digest, step imprint.InstallStep, image imprint.Digest, detail string) error
}

// Notice is one thing that whoever waits for an installation is told.
type Notice struct {
	Step  imprint.InstallStep `json:"step"`
	State NoticeState         `json:"state"`
	Text  string              `json:"text,omitempty"`
	Done  int64               `json:"done,omitempty"`
	Total int64               `json:"total,omitempty"`
	Took  float64             `json:"took,omitempty"` // seconds
}

// NoticeState says what a [Notice] is about its step.
type NoticeState string

// The states of a notice.
const (
	Begun   NoticeState = "begun"
	Going   NoticeState = "going" // Done of Total
	Done    NoticeState = "done"
	Skipped NoticeState = "skipped" // for the reason in the text
	Warning NoticeState = "warning"
)
