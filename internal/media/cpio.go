package media

import (
	"bytes"
	"fmt"
	"io"
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
	number := 0
	put := func(name string, mode, links uint32, data []byte) {
		number++
		mtime := v.Time.Unix()
		if name == cpioTrailer {
			number, mtime = 0, 0
		}
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			number, mode, 0, 0, links, mtime, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		align(&b, 4)
		b.Write(data)
		align(&b, 4)
	}
	var walk func(dir string, n *node)
	walk = func(dir string, n *node) {
		for _, k := range n.kids {
			if !k.dir {
				put(dir+k.name, 0o100400, 1, k.data)
				continue
			}
			put(dir+k.name, 0o040755, 2, nil)
			walk(dir+k.name+"/", k)
		}
	}
	walk("", root)
	put(cpioTrailer, 0, 1, nil)
	align(&b, initrdAlign)
	return writeBytes(w, b.Bytes())
}

const cpioTrailer = "TRAILER!!!"

func align(b *bytes.Buffer, n int) { b.Write(make([]byte, (n-b.Len()%n)%n)) }
