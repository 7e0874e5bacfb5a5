package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// session is a conversation with a registry about one repository, logged in.
type session struct {
	named  reference.Named
	client *http.Client
	base   url.URL
	stall  time.Duration
	// loginErr is why no credentials were to be had, when a credential helper failed. It matters only if the
	// registry then wants some.
	loginErr error
}

func defaultTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 60 * time.Second
	t.DisableCompression = true // a blob's digest is that of the bytes sent
	return t
}

// dial reaches the registry of named, to read from it.
func (s *Local) dial(ctx context.Context, named reference.Named, o PullOptions) (*session, error) {
	ss, _, err := s.dialFor(ctx, named, o, transport.PullScope)
	return ss, err
}

// dialFor is dial for any scope; it returns the repository too, as the registry library has it.
func (s *Local) dialFor(ctx context.Context, named reference.Named, o PullOptions, scope string) (*session, name.Repository, error) {
	host := reference.Domain(named)
	plain := o.PlainHTTP || isLoopback(host)
	var opts []name.Option
	if plain {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return nil, name.Repository{}, faultf(ErrBadName, "invalid registry %s: %w", quote(host), err)
	}
	repo := reg.Repo(reference.Path(named))
	ss := &session{named: named, stall: s.o.Stall}
	ss.base = url.URL{Scheme: reg.Scheme(), Host: reg.RegistryStr(), Path: "/v2/" + reference.Path(named) + "/"}
	auth := ss.credentials(ctx, s.o.Keychain, repo, o)
	base := s.o.Transport
	if !plain {
		base = tlsOnly{base}
	}
	base = transport.NewRetry(base, transport.WithRetryStatusCodes(
		http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout))
	tr, err := transport.NewWithContext(ctx, reg, auth, base, []string{repo.Scope(scope)})
	if err != nil {
		return nil, repo, ss.explain(ctx, err)
	}
	ss.client = &http.Client{Transport: tr, CheckRedirect: checkRedirect}
	return ss, repo, nil
}

func (ss *session) credentials(ctx context.Context, chain authn.Keychain, repo name.Repository, o PullOptions) authn.Authenticator {
	if o.Username != "" || o.Password != "" || o.IdentityToken != "" || o.RegistryToken != "" {
		return authn.FromConfig(authn.AuthConfig{
			Username: o.Username, Password: o.Password, IdentityToken: o.IdentityToken, RegistryToken: o.RegistryToken,
		})
	}
	auth, err := authn.Resolve(ctx, chain, repo)
	if err != nil {
		ss.loginErr = err
		return authn.Anonymous
	}
	return auth
}

// isLoopback tells whether a host, perhaps with a port, can only be this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// tlsOnly refuses plain HTTP: the registry library falls back to it for private addresses, and a redirect may ask
// for it.
type tlsOnly struct{ next http.RoundTripper }

func (t tlsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		return nil, fmt.Errorf("refusing plain HTTP to %s", req.URL.Host)
	}
	return t.next.RoundTrip(req)
}

// checkRedirect follows a registry to its storage, but not to where only this machine can reach: a registry must not
// make us ask the cloud's metadata service or a local daemon.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if isLoopback(via[0].URL.Host) {
		return nil
	}
	ip, err := netip.ParseAddr(req.URL.Hostname())
	if isLoopback(req.URL.Host) || err == nil && (ip.IsLinkLocalUnicast() || ip.IsUnspecified()) {
		return fmt.Errorf("refusing a redirect from %s to %s", via[0].URL.Host, req.URL.Host)
	}
	return nil
}

// manifest fetches a manifest or index by tag or digest. want, if not empty, is the digest it must have.
func (ss *session) manifest(ctx context.Context, target string, want digest.Digest) (document, error) {
	resp, err := ss.get(ctx, "manifests/"+target, http.Header{"Accept": {strings.Join([]string{
		ocispec.MediaTypeImageIndex, dockerManifestList, ocispec.MediaTypeImageManifest, dockerManifest,
	}, ", ")}})
	if err != nil {
		return document{}, err
	}
	defer resp.Body.Close()
	raw, err := readDocument(resp.Body, "manifest "+target)
	if err != nil {
		return document{}, ss.explain(ctx, err)
	}
	d := document{raw: raw, digest: digest.FromBytes(raw), mediaType: resp.Header.Get("Content-Type")}
	if want == "" {
		// The registry's own word. It proves nothing, but a contradiction means that something broke the bytes.
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if want.Validate() != nil || want.Algorithm() != digest.SHA256 {
			want = d.digest
		}
	}
	if d.digest != want {
		return document{}, faultf(ErrInvalid, "manifest of %s has the digest %s, not %s", reference.FamiliarString(ss.named), d.digest, want)
	}
	return d, nil
}

// config fetches a small blob whole.
func (ss *session) config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, faultf(ErrInvalid, "config %s is larger than %d bytes", desc.Digest, maxDocument)
	}
	resp, err := ss.get(ctx, "blobs/"+desc.Digest.String(), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := readDocument(resp.Body, "config "+desc.Digest.String())
	if err != nil {
		return nil, ss.explain(ctx, err)
	}
	return raw, checkDocument("config", raw, desc)
}

// checkDocument compares content with what its descriptor promised.
func checkDocument(what string, raw []byte, desc ocispec.Descriptor) error {
	if int64(len(raw)) != desc.Size {
		return faultf(ErrInvalid, "%s %s is %d bytes long, not %d", what, desc.Digest, len(raw), desc.Size)
	}
	if d := digest.FromBytes(raw); d != desc.Digest {
		return faultf(ErrInvalid, "%s %s has the digest %s", what, desc.Digest, d)
	}
	return nil
}

func readDocument(r io.Reader, what string) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxDocument {
		return nil, faultf(ErrInvalid, "%s is larger than %d bytes", what, maxDocument)
	}
	return raw, nil
}

// get asks for something of the repository and turns refusals into errors.
func (ss *session) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	u := ss.base
	u.Path += path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := ss.client.Do(req)
	if err != nil {
		return nil, ss.explain(ctx, err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, ss.explain(ctx, err)
	}
	return resp, nil
}

// explain puts a registry's refusal in docker's words.
func (ss *session) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var te *transport.Error
	if !errors.As(err, &te) {
		return err
	}
	ref, repo := reference.FamiliarString(ss.named), reference.FamiliarName(ss.named)
	code, text := "", strings.ToLower(http.StatusText(te.StatusCode))
	if len(te.Errors) > 0 {
		code = string(te.Errors[0].Code)
		text = strings.ToLower(strings.ReplaceAll(code, "_", " ")) + ": " + te.Errors[0].Message
	}
	switch {
	case code == "UNAUTHORIZED" || code == "DENIED" || te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden:
		if ss.loginErr != nil {
			text += fmt.Sprintf(" (no credentials: %v)", ss.loginErr)
		}
		return faultf(ErrDenied, "pull access denied for %s, repository does not exist or may require 'docker login': %s", repo, text)
	case te.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return faultf(ErrInvalid, "a blob of %s is shorter than its descriptor says", ref)
	case code == "NAME_UNKNOWN":
		return faultf(ErrNotFound, "repository %s not found: %s", repo, text)
	case code == "BLOB_UNKNOWN":
		return faultf(ErrNotFound, "a blob of %s is missing from the registry: %s", ref, text)
	case code == "MANIFEST_UNKNOWN" || te.StatusCode == http.StatusNotFound:
		if code == "" {
			text = "manifest unknown"
		}
		return faultf(ErrNotFound, "manifest for %s not found: %s", ref, text)
	case te.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("pull of %s: too many requests: %s", ref, text)
	}
	return fmt.Errorf("pull of %s: %w", ref, err)
}
