package helpervm

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"

	"imprint/internal/durable"
)

const (
	maxImage   = 64 << 20  // bytes of a compressed kernel
	maxVmlinux = 256 << 20 // bytes of the same unpacked
	keptImages = 3         // in the cache
)

// unpacked returns the file of the kernel that is in image, unpacked, in the directory
// cache. Under emulation a kernel takes longer to unpack itself than the rest of
// its start; QEMU enters one that is unpacked by the PVH protocol. It is "" if the
// image cannot be entered in this way, or not be kept: the image itself boots as well.
func unpacked(image, cache string) string {
	if cache == "" {
		return ""
	}
	b, err := os.ReadFile(image)
	if err != nil || len(b) > maxImage {
		return ""
	}
	path := filepath.Join(cache, fmt.Sprintf("vmlinux-%x", sha256.Sum256(b)))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	kernel, err := unpackKernel(b)
	if err != nil || !hasPVH(kernel) || os.MkdirAll(cache, 0o700) != nil {
		return ""
	}
	// It has to be whole or not there: it is taken as it is the next time.
	if durable.WriteFile(path, kernel, 0o444) != nil {
		return ""
	}
	prune(cache, path)
	return path
}

// prune removes all but the newest images, and what a program that was killed left.
func prune(cache, newest string) {
	images, _ := filepath.Glob(filepath.Join(cache, "vmlinux-*"))
	unfinished, _ := filepath.Glob(filepath.Join(cache, ".vmlinux-*"))
	images = append(images, unfinished...)
	slices.SortFunc(images, func(a, b string) int { return int(modified(b) - modified(a)) })
	for i, name := range images {
		if i >= keptImages && name != newest {
			os.Remove(name)
		}
	}
}

var errNoKernel = errors.New("it is no kernel image of a known kind")

// unpackKernel returns the kernel in a bzImage, whose header says where it is
// (Documentation/x86/boot.rst).
func unpackKernel(b []byte) ([]byte, error) {
	const (
		setupSectors, magic, version = 0x1f1, 0x202, 0x206
		payloadAt, payloadLength     = 0x248, 0x24c
		withPayload                  = 0x208
	)
	le := binary.LittleEndian
	if len(b) < payloadLength+4 || string(b[magic:magic+4]) != "HdrS" || le.Uint16(b[version:]) < withPayload {
		return nil, errNoKernel
	}
	sectors := int64(b[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	at := (sectors+1)*512 + int64(le.Uint32(b[payloadAt:]))
	end := at + int64(le.Uint32(b[payloadLength:]))
	const trailer = 4 // the size when it is unpacked
	if at > end-trailer || end > int64(len(b)) {
		return nil, errNoKernel
	}
	payload := b[at : end-trailer]
	size := le.Uint32(b[end-trailer:])
	if size > maxVmlinux {
		return nil, errTooLarge
	}
	r, err := unpacker(payload, b[at:end])
	if err != nil {
		return nil, err
	}
	kernel := bytes.NewBuffer(make([]byte, 0, size))
	if _, err := io.CopyN(kernel, r, int64(size)); err != nil {
		return nil, err
	}
	return kernel.Bytes(), nil
}

// unpacker reads a payload, of which gzip's has its own end as the trailer.
func unpacker(payload, whole []byte) (io.Reader, error) {
	has := func(magic string) bool { return bytes.HasPrefix(payload, []byte(magic)) }
	switch {
	case has("\x02\x21\x4c\x18"):
		return lz4.NewReader(bytes.NewReader(payload)), nil
	case has("\x1f\x8b\x08"):
		return gzip.NewReader(bytes.NewReader(whole))
	case has("\xfd7zXZ\x00"):
		return xz.NewReader(bytes.NewReader(payload), xz.DefaultDictMax)
	case has("\x28\xb5\x2f\xfd"):
		return zstd.NewReader(bytes.NewReader(payload), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxVmlinux))
	}
	return nil, errNoKernel
}

// hasPVH reports whether a kernel says where to enter it (XEN_ELFNOTE_PHYS32_ENTRY,
// xen/include/public/elfnote.h).
func hasPVH(kernel []byte) bool {
	const entry = 18
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 64<<10 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return false
		}
		align := func(n uint32) int { return int(n+3) &^ 3 }
		for len(b) >= 12 {
			name, desc, kind := f.ByteOrder.Uint32(b), f.ByteOrder.Uint32(b[4:]), f.ByteOrder.Uint32(b[8:])
			if name > 64<<10 || desc > 64<<10 || len(b) < 12+align(name)+align(desc) {
				return false
			}
			if kind == entry && string(b[12:12+name]) == "Xen\x00" {
				return true
			}
			b = b[12+align(name)+align(desc):]
		}
	}
	return false
}
