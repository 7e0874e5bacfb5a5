package image

import (
	"sort"
	"strings"

	"github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// parseName reads a reference as docker does: "redis" is docker.io/library/redis:latest.
func parseName(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, faultf(ErrBadName, "invalid reference format: %s: %w", quote(ref), err)
	}
	return reference.TagNameOnly(named), nil
}

// parseTag is parseName for a name that is to be given: it must not have a digest.
func parseTag(ref string) (reference.Named, error) {
	named, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, faultf(ErrBadName, "refusing to create a tag with a digest reference")
	}
	return named, nil
}

// quote keeps hostile names from filling a terminal.
func quote(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.ToValidUTF8(`"`+s+`"`, "?")
}

// refKey is the key of a reference in the database: a tag is dropped when there is a digest, as docker does.
func refKey(named reference.Named) string {
	if d, ok := named.(reference.Canonical); ok {
		return named.Name() + "@" + d.Digest().String()
	}
	return named.String()
}

// familiar is a database key as the user writes it.
func familiar(key string) string {
	named, err := reference.ParseNormalizedNamed(key)
	if err != nil {
		return key
	}
	return reference.FamiliarString(named)
}

// splitRefs sorts an image's database keys into RepoTags and RepoDigests.
func splitRefs(keys []string) (tags, digests []string) {
	for _, k := range keys {
		if isDigestKey(k) {
			digests = append(digests, familiar(k))
		} else {
			tags = append(tags, familiar(k))
		}
	}
	sort.Strings(tags)
	sort.Strings(digests)
	return tags, digests
}

func isDigestKey(key string) bool { return strings.Contains(key, "@") }

// repoOf is the repository in a database key.
func repoOf(key string) string {
	if repo, _, ok := strings.Cut(key, "@"); ok {
		return repo
	}
	return key[:strings.LastIndex(key, ":")]
}

// shortID is an id as docker prints it.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// isID tells whether ref is the whole id of an image, with or without "sha256:".
func isID(ref string) (string, bool) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if len(hex) != 64 || !isHex(hex) {
		return "", false
	}
	return "sha256:" + hex, true
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// sha256Digest checks a digest that came from outside, before it becomes part of a path.
func sha256Digest(d digest.Digest) error {
	if _, ok := isID(d.String()); !ok || !strings.HasPrefix(d.String(), "sha256:") {
		return faultf(ErrInvalid, "digest %s is not a sha256 digest", quote(d.String()))
	}
	return nil
}

// lookup finds an image in docker's order: whole id, name, prefix of an id. key is the reference that found it, empty
// when it was an id.
func lookup(tx *bolt.Tx, ref string) (id, key string, err error) {
	if full, ok := isID(ref); ok {
		if tx.Bucket([]byte(bucketImages)).Get([]byte(full)) == nil {
			return "", "", noSuchImage(ref)
		}
		return full, "", nil
	}
	named, nameErr := parseName(ref)
	if nameErr == nil {
		key = refKey(named)
		if id := tx.Bucket([]byte(bucketRefs)).Get([]byte(key)); id != nil {
			return string(id), key, nil
		}
	}
	if hex := strings.TrimPrefix(ref, "sha256:"); isHex(hex) && len(hex) < 64 {
		id, err := byPrefix(tx, ref, "sha256:"+hex)
		return id, "", err
	}
	if nameErr != nil {
		return "", "", nameErr
	}
	return "", "", noSuchImage(familiar(named.String()))
}

func byPrefix(tx *bolt.Tx, ref, prefix string) (string, error) {
	c := tx.Bucket([]byte(bucketImages)).Cursor()
	k, _ := c.Seek([]byte(prefix))
	if !strings.HasPrefix(string(k), prefix) {
		return "", noSuchImage(ref)
	}
	id := string(k)
	if k, _ = c.Next(); strings.HasPrefix(string(k), prefix) {
		return "", faultf(ErrNotFound, "No such image: %s (more than one image id begins so)", ref)
	}
	return id, nil
}
