package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/vm"
)

// program makes a QEMU that tells its version and nothing else.
func program(t *testing.T, path, version string) {
	t.Helper()
	text := fmt.Sprintf("#!/bin/sh\necho 'QEMU emulator version %s'\n", version)
	fresh := path + ".new"
	if err := os.WriteFile(fresh, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, path); err != nil {
		t.Fatal(err)
	}
}

// A QEMU that is upgraded while the daemon runs is known as another one, and what the old one has saved is not for it.
func TestUpgradedQEMU(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qemu")
	program(t, path, "7.2.1")
	d := New(Options{Binary: path})
	version := func() string {
		t.Helper()
		v, err := d.StateVersion(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := version()
	q, err := d.qemu()
	if err != nil {
		t.Fatal(err)
	}
	s := &saved{driver: d, build: q.build, size: vm.MinMemory, shape: shape{CPUs: 1}}
	if same, err := d.qemu(); err != nil || same != q {
		t.Errorf("asked again: %v, %v", same, err)
	}
	program(t, path, "7.2.2")
	if after := version(); after == before || !strings.Contains(after, "7.2.2") {
		t.Errorf("its version is %s", after)
	}
	_, err = s.Restore(t.Context(), vm.Config{CPUs: 1, Memory: vm.MinMemory})
	if !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), "7.2.1") || !strings.Contains(err.Error(), "7.2.2") {
		t.Errorf("what the old one has saved: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := d.qemu(); err == nil {
		t.Error("it is found where it is not any more")
	}
}

// Programs of one version are told apart by what their linker called them.
func TestBuildID(t *testing.T) {
	q, err := New(testOptions()).qemu()
	if err != nil {
		t.Skip(err)
	}
	id := buildID(q.binary)
	if id != "" && (len(id) < 16 || !strings.HasSuffix(q.build, " "+id)) {
		t.Errorf("the id is %q, the build %q", id, q.build)
	}
	t.Log(q.build)
	if id := buildID("/dev/null"); id != "" {
		t.Errorf("nothing has the id %q", id)
	}
}

// One model with other features is another processor.
func TestProcessor(t *testing.T) {
	const one = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu vmx sse\n\nprocessor\t: 1\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu vmx sse\n"
	names := map[string]bool{}
	for _, info := range []string{one, strings.Replace(one, "fpu", "fpu avx", 1), strings.Replace(one, "A CPU", "B CPU", 1)} {
		name := processor([]byte(info))
		if names[name] || !strings.Contains(name, " CPU @ 2 GHz (") {
			t.Errorf("%q is the name of %q", name, info)
		}
		names[name] = true
	}
}
