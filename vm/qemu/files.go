package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

// openKernel opens a bzImage for a monitor that runs as uid and gid.
func openKernel(path string, uid, gid uint32) (*os.File, error) {
	f, err := openImage(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readableBy(f, uid, gid)
}

// stubSize is what a VM that is restored needs of its kernel, in bytes: what QEMU looks at before the guest runs.
const stubSize = 64 << 10

// openStub opens the beginning of a bzImage, for a VM that is restored: the whole would only take memory.
func openStub(path string) (*os.File, error) {
	f, err := openImage(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return memoryCopy(io.NewSectionReader(f, 0, stubSize))
}

// openImage opens a bzImage. QEMU would boot anything else as a very old kernel and never say a word, so what is not
// a bzImage is refused here.
func openImage(path string) (_ *os.File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: Kernel: %w", vm.ErrInvalid, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// The boot protocol's header: boot flag at 0x1fe, magic "HdrS" at 0x202 and version at 0x206. 2.02 (1999) is
	// the first with a command line as it is passed today.
	var head [0x208]byte
	if _, err := f.ReadAt(head[:], 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("%w: Kernel: %w", vm.ErrInvalid, err)
	}
	if binary.LittleEndian.Uint16(head[0x1fe:]) != 0xaa55 || string(head[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(head[0x206:]) < 0x0202 {
		return nil, fmt.Errorf("%w: Kernel: %s is not a Linux bzImage: a kernel that does not boot", vm.ErrInvalid, path)
	}
	return f, nil
}

func openInitrd(path string, uid, gid uint32) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: Initrd: %w", vm.ErrInvalid, err)
	}
	defer f.Close()
	return readableBy(f, uid, gid)
}

// readableBy returns a file with f's contents that a process of that user can open once more as
// /proc/self/fd/N, which is how QEMU, knowing only names, is given a kernel. The way there is not checked
// again, but the file's own permissions are: where they forbid it, the contents are copied into memory.
func readableBy(f *os.File, uid, gid uint32) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case uid == 0, os.Geteuid() != 0:
		// The monitor runs as we do.
	case st.Uid == uid && mode&0o400 != 0, st.Uid != uid && st.Gid == gid && mode&0o040 != 0:
	case st.Uid != uid && st.Gid != gid && mode&0o004 != 0:
	default:
		return memoryCopy(f)
	}
	return duplicate(f)
}

// duplicate returns another descriptor of the same open file.
func duplicate(f *os.File) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := conn.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return nil, e // it has been closed
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// memoryFile makes an empty anonymous file in memory that everybody who holds it may open.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	m := os.NewFile(uintptr(fd), name)
	if err := m.Chmod(0o666); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// sealLimit is for how long seal tries.
const sealLimit = 30 * time.Second

// seal makes sure that nobody ever changes a memory file, whatever rights they have opened it with. A private mapping
// may still be written to: nobody else sees that.
//
// The kernel refuses (EBUSY) as long as somebody holds one of the file's pages: he may be about to write to it. It waits for that by itself, but
// for no more than 150 ms, and what holds pages may be the kernel's own housekeeping (compaction, DAMON's reclaim), which takes
// longer on a busy host.
func seal(m *os.File) error {
	const seals = unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	for begun := time.Now(); ; {
		_, err := unix.FcntlInt(m.Fd(), unix.F_ADD_SEALS, seals)
		if err == nil {
			return nil
		}
		if err != unix.EBUSY || time.Since(begun) > sealLimit {
			return fmt.Errorf("seal memory file %s: %w", m.Name(), err)
		}
		time.Sleep(pollStep)
	}
}

// memoryCopy copies r into a memory file that everybody who holds it may open, and nobody may change.
func memoryCopy(r io.Reader) (*os.File, error) {
	m, err := memoryFile("cradle-copy")
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(m, r); err == nil {
		err = seal(m)
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("copy into memory: %w", err)
	}
	return m, nil
}

// openDisk opens a disk's image the way the guest may use it.
func openDisk(d vm.Disk) (*os.File, error) {
	flags := os.O_RDWR
	if d.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: disk %s: %w", vm.ErrInvalid, d.Serial, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && (size == 0 || size%512 != 0) {
		err = fmt.Errorf("%w: disk %s: %s has %d bytes: not a positive multiple of 512", vm.ErrInvalid, d.Serial, d.Path, size)
	}
	if info, e := f.Stat(); err == nil && e == nil && !info.Mode().IsRegular() && info.Mode()&os.ModeDevice == 0 {
		err = fmt.Errorf("%w: disk %s: %s is neither a file nor a block device", vm.ErrInvalid, d.Serial, d.Path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// errNotOurs explains a UID that this process cannot give.
var errNotOurs = errors.New("only root can run the monitor as another user")
