package guestos

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// The files of a guest directory.
const (
	kernelFile   = "bzImage"
	initrdFile   = "initrd"
	releaseFile  = "release"
	manifestFile = "manifest" // as sha256sum writes it, so that it can check it too
)

var (
	// ErrNotFound is wrapped by Open and Find when there is no guest where they look.
	ErrNotFound = errors.New("guest kernel not found")
	// ErrDamaged is wrapped when a guest is there and its files are not those its manifest names.
	ErrDamaged = errors.New("guest damaged")
)

// Open returns the guest in dir after checking each file against the manifest.
func Open(dir string) (Guest, error) {
	sums, err := readManifest(filepath.Join(dir, manifestFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return Guest{}, fmt.Errorf("%w in %s: make one with `make kernel`, or `make debian-kernel` without a compiler",
			ErrNotFound, dir)
	}
	if err != nil {
		return Guest{}, fmt.Errorf("open guest %s: %w", dir, err)
	}
	for _, name := range []string{kernelFile, initrdFile, releaseFile} {
		sum, err := sumFile(filepath.Join(dir, name))
		if err != nil {
			return Guest{}, fmt.Errorf("open guest %s: %w: %w", dir, ErrDamaged, err)
		}
		if sums[name] != sum {
			return Guest{}, fmt.Errorf("open guest %s: %w: %s does not match the manifest; build it again", dir, ErrDamaged, name)
		}
	}
	line, err := os.ReadFile(filepath.Join(dir, releaseFile))
	if err != nil {
		return Guest{}, fmt.Errorf("open guest: %w", err)
	}
	release := strings.TrimSuffix(string(line), "\n")
	if err := checkRelease(release); err != nil {
		return Guest{}, fmt.Errorf("open guest %s: %w: %w", dir, ErrDamaged, err)
	}
	return Guest{
		Kernel:   filepath.Join(dir, kernelFile),
		Initrd:   filepath.Join(dir, initrdFile),
		Release:  release,
		Digest:   pairDigest(sums[kernelFile], sums[initrdFile]),
		Erofs512: hasErofs512(release),
	}, nil
}

// Find opens every guest directly below dir, newest kernel first, names deciding between equals. Damaged ones are
// left out and reported in the error beside the sound ones; with none at all the error wraps ErrNotFound.
func Find(dir string) ([]Guest, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find guests: %w", err)
	}
	var guests []Guest
	var bad []error
	for _, e := range entries {
		// A leading dot marks a directory that Build has not finished.
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		g, err := Open(filepath.Join(dir, e.Name()))
		switch {
		case err == nil:
			guests = append(guests, g)
		case !errors.Is(err, ErrNotFound):
			bad = append(bad, err)
		}
	}
	if len(guests) == 0 && len(bad) == 0 {
		return nil, fmt.Errorf("%w below %s: make one with `make kernel`, or `make debian-kernel` without a compiler",
			ErrNotFound, dir)
	}
	slices.SortStableFunc(guests, func(a, b Guest) int {
		va, _ := parseVersion(a.Release) // Open has checked it
		vb, _ := parseVersion(b.Release)
		return vb.compare(va)
	})
	return guests, errors.Join(bad...)
}

// pairDigest is the digest of the digests: each file is hashed once.
func pairDigest(kernel, initrd string) string {
	sum := sha256.Sum256([]byte(kernel + "\n" + initrd + "\n"))
	return hex.EncodeToString(sum[:])
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// readManifest parses "HEX  NAME" lines.
func readManifest(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sums := map[string]string{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		sum, name, ok := strings.Cut(s.Text(), "  ")
		if !ok || len(sum) != 2*sha256.Size {
			return nil, fmt.Errorf("%w: bad manifest line %q", ErrDamaged, s.Text())
		}
		sums[name] = sum
	}
	return sums, s.Err()
}
