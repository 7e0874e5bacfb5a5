package guestos

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// bzImage makes the header of a kernel image that says version, and as much setup code as sects sectors.
func bzImage(version string, sects int) []byte {
	b := make([]byte, 0x200*(sects+1)+100)
	b[0x1f1] = byte(sects)
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	const at = 0x300
	binary.LittleEndian.PutUint16(b[0x20e:], at)
	copy(b[at+0x200:], version+"\x00")
	return b
}

func TestKernelRelease(t *testing.T) {
	for version, want := range map[string]string{
		"6.12.117-cradle (cradle@cradle) #1 SMP @0":                    "6.12.117-cradle",
		"6.1.0-56-cloud-amd64 (debian-kernel@lists) #1 SMP Debian 6.1": "6.1.0-56-cloud-amd64",
		"6.12.117+deb12-cloud-amd64":                                   "6.12.117+deb12-cloud-amd64",
	} {
		got, err := KernelRelease(bytes.NewReader(bzImage(version, 4)))
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", version, got, err, want)
		}
	}
}

func TestKernelReleaseOfGarbage(t *testing.T) {
	change := func(f func(b []byte)) []byte {
		b := bzImage("6.12.0", 4)
		f(b)
		return b
	}
	for about, image := range map[string][]byte{
		"empty":                {},
		"short":                bzImage("6.12.0", 4)[:0x20f],
		"no magic":             change(func(b []byte) { b[0x202] = 'X' }),
		"no boot flag":         change(func(b []byte) { b[0x1fe] = 0 }),
		"no version":           change(func(b []byte) { b[0x20e], b[0x20f] = 0, 0 }),
		"version out of setup": change(func(b []byte) { b[0x20f] = 0xff }),
		"cut before version":   bzImage("6.12.0", 4)[:0x480],
		"no end":               bzImage(strings.Repeat("6", 200), 4),
		"not a version":        bzImage("vmlinux", 4),
		"a path":               bzImage("6.12/../../x", 4),
		"an escape":            bzImage("6.12\x1b[2J", 4),
	} {
		if got, err := KernelRelease(bytes.NewReader(image)); err == nil {
			t.Errorf("%s: %q and no error", about, got)
		}
	}
}

func FuzzKernelRelease(f *testing.F) {
	f.Add(bzImage("6.12.117-cradle (x@y) #1", 4))
	f.Add(bzImage("6.12.117-cradle", 4)[:0x240])
	f.Add([]byte("HdrS"))
	f.Fuzz(func(t *testing.T, image []byte) {
		release, err := KernelRelease(bytes.NewReader(image))
		if err != nil {
			return
		}
		if err := checkRelease(release); err != nil {
			t.Errorf("accepted: %v", err)
		}
	})
}

func TestParseVersion(t *testing.T) {
	for release, want := range map[string]kernelVersion{
		"6.12.117-cradle":            {6, 12, 117},
		"6.1.0-56-cloud-amd64":       {6, 1, 0},
		"6.12.117+deb12-cloud-amd64": {6, 12, 117},
		"6.13-rc2":                   {6, 13, 0},
		"10.4":                       {10, 4, 0},
	} {
		got, err := parseVersion(release)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", release, got, err, want)
		}
	}
	for _, release := range []string{"", "6", "x.1", "6.", ".6", "6.x", "-6.1", "99999999999999999999.1"} {
		if got, err := parseVersion(release); err == nil {
			t.Errorf("%q: %v and no error", release, got)
		}
	}
}

func TestErofs512(t *testing.T) {
	for release, want := range map[string]bool{
		"6.12.117-cradle": true, "6.4.0": true, "6.4-rc1": true, "7.0.1": true, "6.3.13": false, "6.1.0-56-cloud-amd64": false, "5.15": false, "junk": false,
	} {
		if got := hasErofs512(release); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}
