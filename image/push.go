package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Push implements Store.
func (s *Local) Push(ctx context.Context, ref string, o PullOptions) (digest.Digest, int64, error) {
	named, err := parseName(ref)
	if err != nil {
		return "", 0, err
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return "", 0, faultf(ErrBadName, "cannot push a digest reference: %s", quote(ref))
	}
	lease := s.newLease()
	defer lease.end()
	img, err := s.toPush(ctx, named, lease)
	if err != nil {
		return "", 0, err
	}
	ss, repo, err := s.dialFor(ctx, named, o, transport.PushScope)
	if err != nil {
		return "", 0, pushRefused(ctx, err)
	}
	rep := newReporter(o.Progress)
	defer rep.close()
	if err := ss.pushLayers(ctx, repo, img, rep.report); err != nil {
		return "", 0, pushRefused(ctx, err)
	}
	if err := remote.Write(repo.Tag(tagged.Tag()), img, remote.WithContext(ctx), remote.WithTransport(ss.client.Transport)); err != nil {
		return "", 0, pushRefused(ctx, err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return "", 0, err
	}
	return digest.FromBytes(raw), int64(len(raw)), nil
}

// toPush finds the image and pins its layers.
func (s *Local) toPush(ctx context.Context, named reference.Named, l *lease) (v1.Image, error) {
	found, err := s.Get(named.String())
	if err != nil {
		return nil, err
	}
	var img imageToSave
	err = s.db.View(func(tx *bolt.Tx) error {
		img, err = s.prepare(tx, found.ID, l)
		return err
	})
	if err != nil {
		return nil, err
	}
	return partial.UncompressedToImage(pushedImage{s, ctx, img})
}

// pushLayers sends the layers that the registry has not, one at a time: a slow link gets no faster by sharing.
func (ss *session) pushLayers(ctx context.Context, repo name.Repository, img v1.Image, report func(Status)) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	ids := make([]string, len(layers))
	for i, l := range layers {
		diffID, err := l.DiffID()
		if err != nil {
			return err
		}
		ids[i] = diffID.Hex[:12]
		report(Status{ID: ids[i], Status: "Preparing"})
	}
	for i, l := range layers {
		sum, err := l.Digest()
		if err != nil {
			return err
		}
		if ss.has(ctx, sum) {
			report(Status{ID: ids[i], Status: "Layer already exists"})
			continue
		}
		updates := make(chan v1.Update, 16)
		told := make(chan struct{})
		go func() {
			defer close(told)
			for u := range updates {
				if u.Error == nil {
					report(Status{ID: ids[i], Status: "Pushing", Current: u.Complete, Total: u.Total})
				}
			}
		}()
		err = remote.WriteLayer(repo, l, remote.WithContext(ctx), remote.WithTransport(ss.client.Transport), remote.WithProgress(updates))
		<-told // the library closes the channel
		if err != nil {
			return err
		}
		report(Status{ID: ids[i], Status: "Pushed"})
	}
	return nil
}

// has asks the registry for a blob.
func (ss *session) has(ctx context.Context, sum v1.Hash) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, ss.base.JoinPath("blobs", sum.String()).String(), nil)
	if err != nil {
		return false
	}
	resp, err := ss.client.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// pushRefused puts a registry's refusal in docker's words.
func pushRefused(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, ErrDenied) {
		return faultf(ErrDenied, "%s", strings.Replace(err.Error(), "pull access denied", "push access denied", 1))
	}
	var te *transport.Error
	if !errors.As(err, &te) {
		return fmt.Errorf("push: %w", err)
	}
	text := strings.ToLower(http.StatusText(te.StatusCode))
	if len(te.Errors) > 0 {
		text = strings.ToLower(strings.ReplaceAll(string(te.Errors[0].Code), "_", " ")) + ": " + te.Errors[0].Message
	}
	if te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden {
		return faultf(ErrDenied, "%s", text)
	}
	return fmt.Errorf("push: %s", text)
}

// pushedImage is an image of the store as the registry library wants one to send.
type pushedImage struct {
	s   *Local
	ctx context.Context
	img imageToSave
}

func (p pushedImage) RawConfigFile() ([]byte, error)      { return p.img.config, nil }
func (p pushedImage) MediaType() (types.MediaType, error) { return types.DockerManifestSchema2, nil }
func (p pushedImage) LayerByDiffID(h v1.Hash) (partial.UncompressedLayer, error) {
	for _, l := range p.img.layers {
		if l.Digest.String() == h.String() {
			return pushedLayer{p.s, p.ctx, l.Digest}, nil
		}
	}
	return nil, fmt.Errorf("no layer %s", h)
}

// pushedLayer is a layer's tar.
type pushedLayer struct {
	s      *Local
	ctx    context.Context
	diffID digest.Digest
}

func (p pushedLayer) DiffID() (v1.Hash, error)            { return v1.NewHash(p.diffID.String()) }
func (p pushedLayer) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }
func (p pushedLayer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(p.s.layerPath(p.diffID))
	if err != nil {
		return nil, err
	}
	content, err := p.s.openTar(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{ctxReader{p.ctx, content}, f}, nil
}

// Login implements Store. docker's name for its own registry is an old one's address.
func (s *Local) Login(ctx context.Context, server string, o PullOptions) error {
	host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	if slices.Contains([]string{"", "docker.io", "index.docker.io", "registry-1.docker.io"}, host) {
		host = name.DefaultRegistry
	}
	plain := o.PlainHTTP || isLoopback(host)
	var opts []name.Option
	base := tlsOnly{s.o.Transport}.orPlain(plain)
	if plain {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return faultf(ErrBadName, "invalid registry %s: %w", quote(host), err)
	}
	auth := authn.FromConfig(authn.AuthConfig{
		Username: o.Username, Password: o.Password, IdentityToken: o.IdentityToken, RegistryToken: o.RegistryToken,
	})
	tr, err := transport.NewWithContext(ctx, reg, auth, base, nil)
	if err == nil {
		err = knock(ctx, &http.Client{Transport: tr, CheckRedirect: checkRedirect}, reg)
	}
	var te *transport.Error
	if errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden) {
		return faultf(ErrDenied, "login attempt to %s://%s/v2/ failed with status: %d %s", reg.Scheme(), reg.RegistryStr(), te.StatusCode, http.StatusText(te.StatusCode))
	}
	return err
}

// knock asks for nothing but an answer.
func knock(ctx context.Context, client *http.Client, reg name.Registry) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, reg.Scheme()+"://"+reg.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return transport.CheckError(resp, http.StatusOK)
}

// orPlain lifts the refusal of plain HTTP.
func (t tlsOnly) orPlain(plain bool) http.RoundTripper {
	if plain {
		return t.next
	}
	return t
}
