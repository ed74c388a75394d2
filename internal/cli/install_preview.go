package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"imprint"
	"imprint/api"
	"imprint/internal/image"
	"imprint/internal/install"
)

// installPreview is what a dry run says.
type installPreview struct {
	Instance   string             `json:"instance"`
	Generation imprint.Generation `json:"generation"`
	Disk       string             `json:"disk"`
	Image      string             `json:"image"`
	install.Preview
	Steps   []string `json:"steps"`
	Missing string   `json:"missing,omitempty"` // what this machine lacks, for want of which it would fail
}

// previewInstall says what would happen.
func (p *program) previewInstall(w *installWork, d *api.Description) error {
	found, err := w.installer.Preview(w.plan, w.options.again)
	if err != nil {
		return err
	}
	v := installPreview{Instance: d.Instance.Ref, Generation: d.Instance.Generation, Disk: w.plan.Disk, Image: w.plan.Image, Preview: found, Steps: w.steps(found)}
	if err := w.sources.changes.Ready(); err != nil && !found.Finished {
		v.Missing = err.Error()
		if hint := imprint.HintOf(err); hint != "" {
			v.Missing += ": " + hint
		}
	}
	return p.print(v, func(out io.Writer) {
		row(out, "Instance", fmt.Sprintf("%s, generation %d", v.Instance, v.Generation))
		row(out, "Disk", w.describeDisk(found))
		if found.Note != "" {
			row(out, "", found.Note)
		}
		row(out, "Image", v.Image)
		for n, step := range v.Steps {
			label := ""
			if n == 0 {
				label = "Would"
			}
			row(out, label, step)
		}
		if v.Missing != "" {
			row(out, "Missing", v.Missing)
		}
	})
}

func (w *installWork) describeDisk(v install.Preview) string {
	switch {
	case !v.Exists && w.plan.Size > 0:
		return fmt.Sprintf("%s, a file of %s that is made", w.plan.Disk, image.Bytes(w.plan.Size))
	case !v.Exists:
		return w.plan.Disk + ", a file that is made, as large as the image"
	case v.Finished:
		return w.plan.Disk + ", on which this is installed already"
	case w.plan.Size > v.Size:
		return fmt.Sprintf("%s, %s that become %s; what is on it is lost", w.plan.Disk, image.Bytes(v.Size), image.Bytes(w.plan.Size))
	}
	return fmt.Sprintf("%s, %s; what is on it is lost", w.plan.Disk, image.Bytes(v.Size))
}

// steps are what would be done, in order.
func (w *installWork) steps(v install.Preview) []string {
	if v.Finished {
		return []string{"do nothing: it is installed; --again does it anew"}
	}
	s := []string{"fetch the image, and check its sums and signature"}
	if w.sources.image.Sum+w.sources.image.Sums+w.sources.image.Signature == "" {
		s[0] = "fetch the image; nobody vouches for it, no sum or signature is given"
	}
	if v.Written {
		s = append(s, "leave the image that is on the disk")
	} else {
		s = append(s, "write it")
	}
	r := w.sources.changes.repair
	if r.Grow {
		s = append(s, "grow its root filesystem to the disk")
	}
	if r.NewIdentity {
		s = append(s, "give it filesystem identifiers of its own, and remove machine-id and host keys")
	}
	if len(r.Drivers) > 0 {
		s = append(s, "have its initramfs load "+strings.Join(r.Drivers, ", "))
	}
	s = append(s, "have firmware without boot entries find its boot loader")
	for _, p := range w.sources.packages {
		s = append(s, "unpack "+shownSource(p.Source))
	}
	if w.agent != "" {
		s = append(s, "put imprint-agent into it, unless it has that, from "+w.agent)
	}
	for _, in := range w.injected {
		s = append(s, fmt.Sprintf("put %s to %s", in.Local, in.Guest))
	}
	if w.sources.scripts.def != nil {
		s = append(s, w.sources.scripts.describe())
	}
	return s
}

// digestOfTree returns the SHA-256 of a file, or of a directory's files with their names
// and modes.
func digestOfTree(path string) (imprint.Digest, error) {
	h := sha256.New()
	err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(path, name)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%d %s %v %d\n", len(rel), rel, info.Mode(), info.Size())
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(h, f)
		return err
	})
	if err != nil {
		return "", fileError("read", path, err)
	}
	return imprint.Digest(hex.EncodeToString(h.Sum(nil))), nil
}
