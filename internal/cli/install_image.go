package cli

import (
	"context"
	"os"
	"strings"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/image"
	"imprint/internal/install"
)

// maxImageDisk is how large the disk of an image may be that is written to a file whose
// size nobody chose.
const maxImageDisk = 1 << 40

// installImage is the image of one installation.
type installImage struct {
	store       *image.Store
	image       imprint.Image
	credentials imprint.Secret
	room        int64 // bytes that there are for it; 0 is not known
	verify      bool
	source      *image.Source // once it is fetched
}

// Fetch implements [install.Images].
func (m *installImage) Fetch(ctx context.Context, progress func(done, total int64)) (install.Image, error) {
	m.close()
	var err error
	cached := true
	m.source, err = m.store.Open(ctx, m.image, image.OpenOptions{Credentials: m.credentials, Progress: func(done, total int64) {
		cached = false
		progress(done, total)
	}})
	if err != nil {
		return install.Image{}, err
	}
	// What is not what it is to be is found before the disk is touched.
	digest, err := m.source.Check(ctx, progress)
	if err != nil {
		return install.Image{}, err
	}
	room := m.room
	if room == 0 {
		room = maxImageDisk
	}
	size, err := m.source.Measure(ctx, room)
	if err != nil {
		return install.Image{}, err
	}
	return install.Image{Digest: digest, Format: m.source.Format.String(), Size: size, Cached: cached && strings.HasPrefix(m.image.Source, "http")}, nil
}

// Write implements [install.Images].
func (m *installImage) Write(ctx context.Context, f *os.File, _ int64, progress func(done, total int64)) error {
	d, err := disk.Wrap(f)
	if err != nil {
		return err
	}
	_, err = m.source.Write(ctx, d, image.WriteOptions{Verify: m.verify, Progress: func(_ string, done, total int64) { progress(done, total) }})
	return err
}

func (m *installImage) close() {
	if m.source != nil {
		m.source.Close()
		m.source = nil
	}
}
