package guestos

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxRelease bounds what is read as a release: Linux keeps uname -r in 65 bytes.
const maxRelease = 64

// KernelRelease reads the release ("6.12.117-cradle") out of an x86 bzImage, which says it in its setup header
// (Documentation/arch/x86/boot.rst).
func KernelRelease(image io.ReaderAt) (string, error) {
	const (
		setupSects = 0x1f1
		bootFlag   = 0x1fe
		magic      = 0x202
		version    = 0x20e
		headerEnd  = 0x210
		sector     = 0x200
	)
	header := make([]byte, headerEnd)
	if _, err := image.ReadAt(header, 0); err != nil {
		return "", fmt.Errorf("read kernel header: %w", err)
	}
	if binary.LittleEndian.Uint16(header[bootFlag:]) != 0xaa55 || string(header[magic:magic+4]) != "HdrS" {
		return "", errors.New("not a bzImage: no boot header")
	}
	// The offset does not count the first sector, and the string lies within the setup code.
	offset := int64(binary.LittleEndian.Uint16(header[version:]))
	sects := int64(header[setupSects])
	if sects == 0 {
		sects = 4 // the boot protocol's word for images that old
	}
	if offset == 0 || offset >= sects*sector {
		return "", fmt.Errorf("bzImage says nothing of its version (offset %#x of %d sectors)", offset, sects)
	}
	text := make([]byte, maxRelease+1)
	n, err := image.ReadAt(text, offset+sector)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read kernel version: %w", err)
	}
	// "6.12.117-cradle (cradle@cradle) #1 SMP …"
	end := bytes.IndexAny(text[:n], " \x00")
	if end < 0 {
		return "", errors.New("bzImage: version string has no end")
	}
	release := string(text[:end])
	if err := checkRelease(release); err != nil {
		return "", fmt.Errorf("bzImage: %w", err)
	}
	return release, nil
}

// checkRelease tells whether s may be used as a release: also in a file name, in a log line.
func checkRelease(s string) error {
	if s == "" || len(s) > maxRelease {
		return fmt.Errorf("kernel release of %d bytes", len(s))
	}
	for _, c := range []byte(s) {
		ok := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("._+~-", c) >= 0
		if !ok {
			return fmt.Errorf("kernel release %q has a character that no release has", s)
		}
	}
	_, err := parseVersion(s)
	return err
}

// kernelVersion is major, minor, patch.
type kernelVersion [3]int

// parseVersion reads the numbers at the start of a release: "6.12.117-cradle", "6.1.0-56-cloud-amd64", "6.13-rc2".
func parseVersion(release string) (kernelVersion, error) {
	var v kernelVersion
	rest := release
	for i := range v {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.Atoi(rest[:digits])
		if err != nil {
			return kernelVersion{}, fmt.Errorf("kernel release %q does not start with a version", release)
		}
		v[i] = n
		rest = rest[digits:]
		if !strings.HasPrefix(rest, ".") {
			if i == 0 {
				return kernelVersion{}, fmt.Errorf("kernel release %q does not start with a version", release)
			}
			break
		}
		rest = rest[1:]
	}
	return v, nil
}

// compare orders versions as slices.SortFunc wants it.
func (v kernelVersion) compare(o kernelVersion) int {
	for i := range v {
		if v[i] != o[i] {
			return v[i] - o[i]
		}
	}
	return 0
}

// hasErofs512 tells whether a kernel of this release mounts erofs with 512-byte blocks.
func hasErofs512(release string) bool {
	v, err := parseVersion(release)
	return err == nil && v.compare(kernelVersion{6, 4}) >= 0
}
