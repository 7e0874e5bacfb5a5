package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	envHost     = "CRADLE_HOST"  // the daemon's address for the command line
	envRun      = "CRADLE_RUN"   // sockets and runtime files
	envRoot     = "CRADLE_ROOT"  // images, templates, state
	envGuest    = "CRADLE_GUEST" // the guest's kernel and initrd
	envPool     = "CRADLE_POOL"
	envCopies   = "CRADLE_POOL_COPIES"
	envNetworks = "CRADLE_NETWORKS"

	socketName = "cradle.sock"

	// maxSocketPath is what sockaddr_un holds, less its terminating zero.
	maxSocketPath = 107
)

// env reads an environment variable; tests bring their own.
type env func(string) string

// runDir is the directory of the socket and of runtime files, and whether it was chosen by CRADLE_RUN.
func runDir(getenv env, uid int) (dir string, err error) {
	if dir := getenv(envRun); dir != "" {
		return filepath.Abs(dir)
	}
	if uid == 0 {
		return "/run/cradle", nil
	}
	if dir := getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "cradle"), nil
	}
	if dir := filepath.Join("/run/user", strconv.Itoa(uid)); isDir(dir) {
		return filepath.Join(dir, "cradle"), nil
	}
	dir = filepath.Join(os.TempDir(), "cradle-"+strconv.Itoa(uid))
	return dir, checkPrivate(dir, uid)
}

// checkPrivate makes sure that nobody else made dir, in a directory where everybody may make one.
func checkPrivate(dir string, uid int) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != uid || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is not a private directory of this user; remove it, or set %s or XDG_RUNTIME_DIR", dir, envRun)
	}
	return nil
}

// rootDir is the directory of images and state.
func rootDir(getenv env, uid int) (string, error) {
	if dir := getenv(envRoot); dir != "" {
		return filepath.Abs(dir)
	}
	if uid == 0 {
		return "/var/lib/cradle", nil
	}
	if dir := getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "cradle"), nil
	}
	home := getenv("HOME")
	if home == "" {
		return "", fmt.Errorf("no place for images and state: set HOME or %s", envRoot)
	}
	return filepath.Join(home, ".local/share/cradle"), nil
}

// guestDir is the first directory that holds a guest: chosen, installed beside the program, or built in a checkout.
func guestDir(getenv env, executable string) (string, error) {
	if dir := getenv(envGuest); dir != "" {
		return filepath.Abs(dir)
	}
	bin := filepath.Dir(executable)
	dirs := []string{
		filepath.Join(bin, "../share/cradle"),
		filepath.Join(bin, "../out/guest"),
		"/usr/local/share/cradle",
		"/usr/share/cradle",
	}
	for _, dir := range dirs {
		if isDir(dir) {
			return filepath.Clean(dir), nil
		}
	}
	return "", fmt.Errorf("no guest kernel found in %s; run `make guest`, or set %s", strings.Join(dirs, ", "), envGuest)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// claimDir makes dir, or checks that it is cradle's: it holds marker, or nothing but what tolerated names. So a
// setting that points at somebody's home is noticed before anything is written to it, or removed from it.
func claimDir(dir string, perm fs.FileMode, marker string, tolerated ...string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, perm); err == nil || !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	strangers := 0
	for _, e := range entries {
		if e.Name() == marker {
			return nil
		}
		known := false
		for _, t := range tolerated {
			known = known || e.Name() == t
		}
		if !known {
			strangers++
		}
	}
	if strangers > 0 {
		return fmt.Errorf("%s holds other files than cradle's; choose a directory of its own", dir)
	}
	return nil
}

// claimRun claims the runtime directory. Other users may pass through root's, to reach its socket.
func claimRun(dir string, uid int) error {
	perm := fs.FileMode(0o700)
	if uid == 0 {
		perm = 0o711
	}
	if err := claimDir(dir, perm, startLockName, socketName); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, startLockName), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
