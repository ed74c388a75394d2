package media

import (
	"bytes"
	"io"

	"imprint/internal/cpio"
)

// initrdAlign is what the kernel's archives are padded to. It finds an archive
// that is not compressed only at a multiple of four (init/initramfs.c), and
// behind a compressed one only if zeros lead there.
const initrdAlign = 512

func initrdRules() rules {
	return rules{format: "an initial RAM disk", units: 255, bytes: 255}
}

// Initrd writes v's files as a cpio archive in the format newc, which the kernel
// unpacks into its initial RAM disk: alone, or at the end of any other, from whose
// start it must be a multiple of 512 bytes away. The directories on the way have
// mode 0755, as is usual there, and the files 0400. The label plays no part. It
// fails as [ISO] does.
func Initrd(w io.Writer, v *Volume) error {
	if err := checkTime(v.Time); err != nil {
		return err
	}
	root, err := v.tree(initrdRules())
	if err != nil {
		return err
	}
	var b bytes.Buffer
	a := cpio.NewWriter(&b)
	a.Time = v.Time
	var walk func(dir string, n *node)
	walk = func(dir string, n *node) {
		for _, k := range n.kids {
			if !k.dir {
				a.File(dir+k.name, 0o400, k.data)
				continue
			}
			a.Dir(dir+k.name, 0o755)
			walk(dir+k.name+"/", k)
		}
	}
	walk("", root)
	if err := a.Close(); err != nil {
		return err
	}
	b.Write(make([]byte, -b.Len()&(initrdAlign-1)))
	return writeBytes(w, b.Bytes())
}
