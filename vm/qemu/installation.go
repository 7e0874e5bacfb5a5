package qemu

import (
	"context"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// installation is the QEMU found on this machine.
type installation struct {
	binary  string
	version version
	build   string // the whole line that tells its version, and what the linker called this very program
	file    os.FileInfo
}

// installed finds QEMU, and again whenever its file is another one than before: packages are upgraded while a daemon runs.
func installed(name string) func() (*installation, error) {
	var mu sync.Mutex
	var known *installation
	return func() (*installation, error) {
		mu.Lock()
		defer mu.Unlock()
		if known != nil && known.there() {
			return known, nil
		}
		q, err := findQEMU(name)
		if err != nil {
			return nil, err
		}
		known = q
		return q, nil
	}
}

// there tells whether the program's file is the one that was asked for its version.
func (q *installation) there() bool {
	now, err := os.Stat(q.binary)
	return err == nil && os.SameFile(now, q.file) && now.Size() == q.file.Size() && now.ModTime().Equal(q.file.ModTime())
}

// maxBuildID bounds a build id, in bytes; 20 are usual.
const maxBuildID = 64

// buildID is the linker's name for a program's contents, in hexadecimal: the descriptor of the ELF note .note.gnu.build-id, after 16 bytes
// of the note's head. Two builds of one version differ in it. Empty when there is none, as in a script.
func buildID(path string) string {
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	section := f.Section(".note.gnu.build-id")
	if section == nil || section.Size <= 16 || section.Size > 16+maxBuildID {
		return ""
	}
	note, err := section.Data()
	if err != nil {
		return ""
	}
	return hex.EncodeToString(note[16:])
}

// replaced tells whether the program that a process runs is not there any more: what of the VM is saved, another QEMU would have to
// restore.
func (p *process) replaced() bool {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
	return err == nil && strings.HasSuffix(program, " (deleted)")
}

var versionPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`version (\d+)\.(\d+)`) })

// probeLimit bounds asking QEMU for its version.
const probeLimit = 10 * time.Second

func findQEMU(name string) (*installation, error) {
	if name == "" {
		name = "qemu-system-x86_64"
	}
	binary, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%w; install QEMU (Debian, Ubuntu: qemu-system-x86; Fedora: qemu-system-x86-core; Alpine: qemu-system-x86_64)", err)
	}
	file, err := os.Stat(binary) // before it is asked: whatever becomes of it from here on is noticed
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "-version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s -version: %w", binary, err)
	}
	v, err := parseVersion(string(out))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", binary, err)
	}
	build, _, _ := strings.Cut(string(out), "\n")
	if id := buildID(binary); id != "" {
		build += " " + id
	}
	return &installation{binary: binary, version: v, build: build, file: file}, nil
}

func parseVersion(s string) (version, error) {
	m := versionPattern().FindStringSubmatch(s)
	if m == nil {
		return version{}, fmt.Errorf("no version in %.80q", s)
	}
	major, err1 := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	if err := errors.Join(err1, err2); err != nil {
		return version{}, err
	}
	v := version{major, minor}
	if major < 7 || major == 7 && minor < 2 {
		return version{}, fmt.Errorf("QEMU %d.%d is too old; 7.2 or newer is needed", major, minor)
	}
	return v, nil
}
