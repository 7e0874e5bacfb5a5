package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
	"golang.org/x/sys/unix"
)

func info() (*guestapi.Info, error) {
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	var kib int64
	if _, err := fmt.Sscanf(string(mem), "MemTotal: %d kB", &kib); err != nil {
		return nil, err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	return &guestapi.Info{
		MemoryBytes: kib << 10,
		CPUs:        runtime.NumCPU(),
		Cmdline:     strings.Fields(string(cmdline)),
		PID:         os.Getpid(),
	}, nil
}

// serials maps the serial of each SCSI disk to its name.
func serials() (map[string]string, error) {
	found := map[string]string{}
	pages, err := filepath.Glob("/sys/block/sd*/device/vpd_pg80")
	for _, p := range pages {
		b, err := os.ReadFile(p)
		if err != nil || len(b) < 4 {
			continue // the disk is coming or going
		}
		found[string(b[4:])] = filepath.Base(filepath.Dir(filepath.Dir(p)))
	}
	return found, err
}

func disks() ([]guestapi.Disk, error) {
	names, err := serials()
	all := []guestapi.Disk{}
	for serial, name := range names {
		dir := filepath.Join("/sys/block", name)
		all = append(all, guestapi.Disk{
			Serial:   serial,
			Size:     512 * number(filepath.Join(dir, "size")),
			ReadOnly: number(filepath.Join(dir, "ro")) == 1,
			Rotates:  number(filepath.Join(dir, "queue/rotational")) == 1,
		})
	}
	return all, err
}

func number(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// await returns when the disk can be opened, or is gone.
func await(c *wire.Call, a guestapi.Await) error {
	for c.Context.Err() == nil {
		names, err := serials()
		if err != nil {
			return err
		}
		name, there := names[a.Serial]
		if there && a.Present {
			// Many that are plugged at once can keep the kernel from learning one's size (see the agent's remeasure).
			if dir := filepath.Join("/sys/block", name); number(filepath.Join(dir, "size")) == 0 {
				if err := os.WriteFile(filepath.Join(dir, "device/rescan"), []byte("1"), 0); err != nil {
					return err
				}
			}
			if f, err := os.Open(filepath.Join("/dev", name)); err == nil {
				return f.Close()
			}
		}
		if !there && !a.Present {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return c.Context.Err()
}

func access(method string, e guestapi.Extent) (any, error) {
	names, err := serials()
	if err != nil {
		return nil, err
	}
	name, ok := names[e.Serial]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "no disk %s", e.Serial)
	}
	mode := os.O_RDONLY
	if method != guestapi.MethodRead {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(filepath.Join("/dev", name), mode, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch method {
	case guestapi.MethodRead:
		e.Data = make([]byte, e.Length)
		_, err = f.ReadAt(e.Data, e.Offset)
		return e, err
	case guestapi.MethodWrite:
		if _, err := f.WriteAt(e.Data, e.Offset); err != nil {
			return nil, err
		}
		return nil, f.Sync()
	default:
		span := [2]uint64{uint64(e.Offset), uint64(e.Length)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
		if errno != 0 {
			return nil, fmt.Errorf("discard: %w", errno)
		}
		return nil, nil
	}
}

// counter is a number that grows from the first call on. It takes memory along: some is written to all the time.
var counter = sync.OnceValue(func() func() int64 {
	var n atomic.Int64
	memory := make([]byte, 16<<20)
	go func() {
		for ; ; time.Sleep(time.Millisecond) {
			i := n.Add(1)
			for page := range 16 {
				memory[(int(i)*16+page)*4096%len(memory)]++
			}
		}
	}()
	return n.Load
})
