package snapshot

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Key is an installation's secret: manifests are signed with it, so that what comes from elsewhere, or was put together
// from several, is known as such.
type Key []byte

const keySize = 32

// OpenKey reads the key at path, making it at first. What is not a key is replaced; replaced says so: what it has signed is
// ErrForeign from then on.
func OpenKey(path string) (key Key, replaced bool, err error) {
	key, err = os.ReadFile(path)
	switch {
	case err == nil && len(key) == keySize:
		return key, false, nil
	case err == nil:
		replaced = true
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, fmt.Errorf("open key: %w", err)
	}
	key = make([]byte, keySize)
	rand.Read(key)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("make key: %w", err)
	}
	if err := writeSynced(path, key); err != nil {
		return nil, false, fmt.Errorf("make key: %w", err)
	}
	return key, replaced, nil
}

// ManifestName is the name of a directory's manifest.
const ManifestName = "manifest"

// MaxManifest bounds a manifest, in bytes: a container's configuration is most of it.
const MaxManifest = 16 << 20

// ErrForeign means that a manifest was not signed with this key, or was changed since.
var ErrForeign = errors.New("it was not written by this installation")

// Sign writes manifest, as JSON, into dir, whose files must be complete and synced.
func (k Key) Sign(dir string, manifest any) error {
	body, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if len(body) > MaxManifest {
		return fmt.Errorf("write manifest: %d bytes", len(body))
	}
	if err := writeSynced(filepath.Join(dir, ManifestName), append([]byte(k.mac(body)+"\n"), body...)); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// Verify reads dir's manifest into the value that manifest points to. fs.ErrNotExist when there is none, ErrForeign when
// its signature is wrong.
func (k Key) Verify(dir string, manifest any) error {
	mac, body, err := readManifest(dir)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, []byte(k.mac(body))) {
		return fmt.Errorf("%s: %w", dir, ErrForeign)
	}
	return json.Unmarshal(body, manifest)
}

// readManifest returns a manifest's two parts.
func readManifest(dir string) (mac, body []byte, err error) {
	f, err := os.Open(filepath.Join(dir, ManifestName))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxManifest+1024))
	if err != nil {
		return nil, nil, err
	}
	mac, body, _ = bytes.Cut(b, []byte("\n"))
	return mac, body, nil
}

func (k Key) mac(body []byte) string {
	h := hmac.New(sha256.New, k)
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// writeSynced writes a new file that only we may read.
func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
