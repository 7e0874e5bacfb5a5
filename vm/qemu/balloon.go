package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/fork"
	"golang.org/x/sys/unix"
)

// A guest tells its balloon device which pages are free (free page reporting of the virtio specification), and QEMU gives them back to
// the host: by punching a hole into the file behind the memory, if there is one, and by having the host forget what is mapped
// (QEMU's ram_block_discard_range, madvise(2) with MADV_DONTNEED).
//
// A restored guest's file is its template, which is sealed, and shared with others: the hole is refused, and QEMU never comes to the second. Once the
// file is mapped, nothing needs its descriptors any more. So they are made to refer to an empty file instead, whose holes
// cost nothing, and the second alone has an effect: the page that the guest has written to goes, and what it finds when it uses
// it again is the template's. Copies inherit these descriptors.

// balloonDevice is the device's option. A guest whose kernel clears pages when they are freed (init_on_free), and relies on it when it
// hands them out, would find the template's contents there. It reports nothing to a device that does not know of such kernels (page-poison).
const balloonDevice = "virtio-balloon-device,free-page-reporting=on,page-poison=off"

// redirectLimit bounds the time that QEMU may take to come to rest, which it nearly always is.
const redirectLimit = 2 * time.Second

// hollowFile makes the empty file.
func hollowFile() (*os.File, error) { return boundedFile(0) }

// hollow puts the empty file in the place of the template. Where that is not possible (ptrace(2) may be forbidden), the guest keeps what it frees, of
// which QEMU complains each time (process.lastWords).
func (m *machine) hollow(ctx context.Context, in *inputs) error {
	open, err := openFiles(m.proc.pid)
	if err != nil {
		return err
	}
	template, err := identify(in.ram)
	if err != nil {
		return err
	}
	hollow, err := identify(in.hollow)
	if err != nil {
		return err
	}
	if len(open[hollow]) == 0 || len(open[template]) == 0 {
		return errors.New("the monitor does not have its memory's files open")
	}
	patience, cancel := context.WithTimeout(ctx, redirectLimit)
	defer cancel()
	err = m.poll(patience, func() (bool, error) {
		err := fork.Redirect(m.proc.pid, open[hollow][0], open[template])
		if errors.Is(err, fork.ErrBusy) {
			return false, nil
		}
		return true, err
	})
	if errors.Is(err, fork.ErrGone) {
		return fmt.Errorf("%w: %w", vm.ErrExited, err)
	}
	return ctx.Err()
}

// openFiles tells which descriptors of a process refer to which files.
func openFiles(pid int) (map[fileID][]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	open := map[fileID][]int{}
	for _, e := range entries {
		var st unix.Stat_t
		fd, err := strconv.Atoi(e.Name())
		if err == nil && unix.Stat(filepath.Join(dir, e.Name()), &st) == nil {
			id := fileID{st.Dev, st.Ino}
			open[id] = append(open[id], fd)
		}
	}
	return open, nil
}
