package dockerapi

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func (s *server) imageRoutes() []route {
	return []route{
		{"POST", "/images/create", "", s.imageCreate},
		{"GET", "/images/json", "", s.imageList},
		{"POST", "/images/load", "", s.imageLoad},
		{"GET", "/images/get", "", s.imagesSave},
		{"POST", "/images/prune", "", s.imagePrune},
		{"GET", "/images/search", "", refused("Searching a registry")},
		{"GET", "/images/{name...}", "/json", s.imageInspect},
		{"GET", "/images/{name...}", "/history", s.imageHistory},
		{"GET", "/images/{name...}", "/get", s.imageSave},
		{"GET", "/images/{name...}", "/attestations", refused("Listing the attestations of an image")},
		{"POST", "/images/{name...}", "/tag", s.imageTag},
		{"POST", "/images/{name...}", "/push", s.imagePush},
		{"DELETE", "/images/{name...}", "", s.imageRemove},
		{"GET", "/distribution/{name...}", "/json", refused("Inspecting an image in its registry")},
	}
}

// imageCreate pulls (fromImage) or imports (fromSrc).
func (s *server) imageCreate(c *call) error {
	platform, err := c.platform()
	if err != nil {
		return err
	}
	if from := c.query.Get("fromImage"); from != "" {
		return s.imagePull(c, from, platform)
	}
	if src := c.query.Get("fromSrc"); src != "" {
		return s.imageImport(c, src, platform)
	}
	return invalid("one of fromImage and fromSrc is required")
}

func (s *server) imagePull(c *call, from string, platform *ocispec.Platform) error {
	// The command line's "all tags" is a name that ends in a colon.
	ref, err := joinReference(strings.TrimSuffix(from, ":"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	if reference.IsNameOnly(ref) {
		return unsupported("Pulling all tags of an image")
	}
	auth, err := c.auth()
	if err != nil {
		return err
	}
	return c.progress(func(p Progress) error {
		return s.b.ImagePull(c.r.Context(), reference.FamiliarString(ref), platform, auth, p)
	})
}

func (s *server) imageImport(c *call, src string, platform *ocispec.Platform) error {
	if src != "-" {
		return unsupported("Importing an image from a URL")
	}
	target := ""
	if repo := c.query.Get("repo"); repo != "" {
		ref, err := joinReference(repo, c.query.Get("tag"))
		if err != nil {
			return err
		}
		target = reference.FamiliarString(reference.TagNameOnly(ref))
	}
	return c.progress(func(p Progress) error {
		return s.b.ImageImport(c.r.Context(), c.r.Body, target, c.query.Get("message"), c.query["changes"], platform, p)
	})
}

func (s *server) imagePush(c *call) error {
	b, ok := s.b.(PushBackend)
	if !ok {
		return unsupported("Pushing an image")
	}
	if err := c.refuse("Pushing one platform of an image", "platform"); err != nil {
		return err
	}
	ref, err := joinReference(c.name, c.query.Get("tag"))
	if err != nil {
		return err
	}
	if _, digested := ref.(reference.Digested); digested {
		return invalid("cannot push a digest reference")
	}
	auth, err := c.auth()
	if err != nil {
		return err
	}
	return c.progress(func(p Progress) error { return b.ImagePush(c.r.Context(), ref, auth, p) })
}

// joinReference makes one reference of a name and what the API calls its tag, which may be a digest.
func joinReference(name, tag string) (reference.Named, error) {
	text := name
	switch {
	case strings.Contains(tag, ":"):
		text += "@" + tag
	case tag != "":
		text += ":" + tag
	}
	ref, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return nil, invalid(fmt.Sprintf("invalid reference format: %s: %v", text, err))
	}
	return ref, nil
}

// auth reads the credentials that come with a request; nil when there are none.
func (c *call) auth() (*registry.AuthConfig, error) {
	auth, err := authconfig.Decode(c.r.Header.Get(registry.AuthHeader))
	if err != nil {
		return nil, err
	}
	if *auth == (registry.AuthConfig{}) {
		return nil, nil
	}
	return auth, nil
}

func (s *server) imageLoad(c *call) error {
	if err := c.refuse("Loading one platform of an image", "platform"); err != nil {
		return err
	}
	return c.progress(func(p Progress) error {
		return s.b.ImageLoad(c.r.Context(), c.r.Body, c.flag("quiet"), p)
	})
}

func (s *server) imagesSave(c *call) error {
	if len(c.query["names"]) == 0 {
		return invalid("names of images are required")
	}
	return s.save(c, c.query["names"])
}

func (s *server) imageSave(c *call) error { return s.save(c, []string{c.name}) }

func (s *server) save(c *call, refs []string) error {
	for _, ref := range refs {
		if err := s.checkPlatform(c, ref); err != nil {
			return err
		}
	}
	// With an error before the first byte the answer is that error, in JSON; later it is cut short.
	c.w.Header().Set("Content-Type", "application/x-tar")
	return s.b.ImageSave(c.r.Context(), refs, c.w)
}

// checkPlatform holds an image against the platform that the client asks for. The store keeps one platform of an
// image, so that any other is not there.
func (s *server) checkPlatform(c *call, ref string) error {
	want, err := c.platform()
	if want == nil || err != nil {
		return err
	}
	have, err := s.b.ImageInspect(c.r.Context(), ref)
	if err != nil {
		return err
	}
	is := ocispec.Platform{OS: have.Os, Architecture: have.Architecture, Variant: have.Variant, OSVersion: have.OsVersion}
	if !platforms.NewMatcher(*want).Match(platforms.Normalize(is)) {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(
			"image with reference %s was found but does not provide the specified platform (%s)", ref, platforms.Format(*want)))
	}
	return nil
}

func (s *server) imageList(c *call) error {
	if err := c.refuse("Listing the identity of images", "identity"); err != nil {
		return err
	}
	filters, err := c.filters("before", "dangling", "label", "reference", "since", "until")
	if err != nil {
		return err
	}
	items, err := s.b.ImageList(c.r.Context(), c.flag("all"), filters)
	if err != nil {
		return err
	}
	if c.version.atLeast(44) {
		return list(c, items)
	}
	var old []legacyImage
	for _, item := range items {
		old = append(old, legacyImage{item, item.Size})
	}
	return list(c, old)
}

func (s *server) imageInspect(c *call) error {
	if err := s.checkPlatform(c, c.name); err != nil {
		return err
	}
	r, err := s.b.ImageInspect(c.r.Context(), c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.shapeImageInspect(r))
}

func (s *server) imageHistory(c *call) error {
	if err := s.checkPlatform(c, c.name); err != nil {
		return err
	}
	items, err := s.b.ImageHistory(c.r.Context(), c.name)
	if err != nil {
		return err
	}
	return list(c, items)
}

func (s *server) imageTag(c *call) error {
	ref, err := joinReference(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	if _, digested := ref.(reference.Digested); digested {
		return invalid("refusing to create a tag with a digest reference")
	}
	if err := s.b.ImageTag(c.r.Context(), c.name, reference.FamiliarString(reference.TagNameOnly(ref))); err != nil {
		return err
	}
	return c.empty(http.StatusCreated)
}

func (s *server) imageRemove(c *call) error {
	if err := c.refuse("Removing one platform of an image", "platforms"); err != nil {
		return err
	}
	items, err := s.b.ImageRemove(c.r.Context(), c.name, c.flag("force"), c.flag("noprune"))
	if err != nil {
		return err
	}
	return list(c, items)
}

func (s *server) imagePrune(c *call) error {
	filters, err := c.filters("dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	report, err := s.b.ImagePrune(c.r.Context(), filters)
	if err != nil {
		return err
	}
	report.ImagesDeleted = orList(report.ImagesDeleted)
	return c.json(http.StatusOK, report)
}
