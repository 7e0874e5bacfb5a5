package image

import (
	"context"
	"fmt"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Pull implements Store. Its last reports are docker's closing lines, "Digest: …" and "Status: …", without an ID.
func (s *Local) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	named, err := parseName(ref)
	if err != nil {
		return Image{}, err
	}
	ss, err := s.dial(ctx, named, o)
	if err != nil {
		return Image{}, err
	}
	img, blobs, top, err := ss.resolve(ctx, o.Platform)
	if err != nil {
		return Image{}, err
	}
	_, getErr := s.Get(img.id.String())
	known := getErr == nil
	rep := newReporter(o.Progress)
	defer rep.close()
	lease := s.newLease()
	defer lease.end()
	if err := s.fetchLayers(ctx, ss, lease, img.layers, blobs, rep.report); err != nil {
		return Image{}, err
	}
	img.refs = pulledRefs(named, top)
	if err := s.commit([]newImage{img}); err != nil {
		return Image{}, err
	}
	rep.report(Status{Status: "Digest: " + top.String()})
	if known {
		rep.report(Status{Status: "Status: Image is up to date for " + reference.FamiliarString(named)})
	} else {
		rep.report(Status{Status: "Status: Downloaded newer image for " + reference.FamiliarString(named)})
	}
	return s.Get(img.id.String())
}

// pulledRefs are the database keys of a pulled image: the digest it was found under and, unless it was asked for by
// digest, the tag.
func pulledRefs(named reference.Named, top digest.Digest) []string {
	refs := []string{named.Name() + "@" + top.String()}
	if _, ok := named.(reference.Digested); !ok {
		refs = append(refs, refKey(named))
	}
	return refs
}

// resolve finds the image that the session's reference means on a platform: its manifest and config. blobs are its
// layers as the registry has them, top is the digest the reference led to: of the index, if there is one.
func (ss *session) resolve(ctx context.Context, want *ocispec.Platform) (img newImage, blobs []ocispec.Descriptor, top digest.Digest, err error) {
	target, wantDigest := "latest", digest.Digest("")
	switch r := ss.named.(type) {
	case reference.Digested:
		if err := sha256Digest(r.Digest()); err != nil {
			return img, nil, "", err
		}
		target, wantDigest = r.Digest().String(), r.Digest()
	case reference.Tagged:
		target = r.Tag()
	}
	doc, err := ss.manifest(ctx, target, wantDigest)
	if err != nil {
		return img, nil, "", err
	}
	top = doc.digest
	doc, p, chosen, err := ss.descend(ctx, doc, want)
	if err != nil {
		return img, nil, "", err
	}
	raw, err := ss.config(ctx, *p.Config)
	if err != nil {
		return img, nil, "", err
	}
	var c dockerspec.DockerOCIImage
	if img, c, err = imageOf(doc, p, raw); err != nil {
		return img, nil, "", err
	}
	if !chosen {
		err = checkPlatform(reference.FamiliarString(ss.named), c, want)
	}
	return img, p.Layers, top, err
}

// descend follows indexes down to a manifest, choosing by platform.
func (ss *session) descend(ctx context.Context, doc document, want *ocispec.Platform) (_ document, p parsed, chosen bool, err error) {
	platform := defaultPlatform()
	if want != nil {
		platform = *want
	}
	for range 4 {
		if p, err = doc.parse(); err != nil || !p.isIndex() {
			return doc, p, chosen, err
		}
		chosen = true
		entry, err := choosePlatform(reference.FamiliarString(ss.named), p.Manifests, platform)
		if err != nil {
			return doc, p, chosen, err
		}
		if doc, err = ss.manifest(ctx, entry.Digest.String(), entry.Digest); err != nil {
			return doc, p, chosen, err
		}
		if err := checkDocument("manifest", doc.raw, entry); err != nil {
			return doc, p, chosen, err
		}
	}
	return doc, p, chosen, faultf(ErrInvalid, "indexes of %s are nested too deeply", reference.FamiliarString(ss.named))
}

// fetchLayers brings the layers that are not there yet, all at once: the store bounds the downloads.
func (s *Local) fetchLayers(ctx context.Context, ss *session, l *lease, diffIDs []digest.Digest, blobs []ocispec.Descriptor, report func(Status)) error {
	var total int64
	for _, b := range blobs {
		if total += b.Size; total > s.o.MaxArchiveBytes {
			return faultf(ErrInvalid, "image is larger than the limit of %d bytes", s.o.MaxArchiveBytes)
		}
	}
	var missing []int
	for i, d := range diffIDs {
		switch {
		case l.pinned[d]: // twice in the same image
		case l.pin(d):
			report(Status{ID: shortID(blobs[i].Digest.String()), Status: "Already exists"})
		default:
			report(Status{ID: shortID(blobs[i].Digest.String()), Status: "Pulling fs layer"})
			missing = append(missing, i)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, i := range missing {
		group.Go(func() error {
			f := layerFetch{s: s, ss: ss, diffID: diffIDs[i], blob: blobs[i]}
			return s.flights.do(ctx, f.diffID, report, f.run)
		})
	}
	return group.Wait()
}

// layerFetch is the download of one layer.
type layerFetch struct {
	s      *Local
	ss     *session
	diffID digest.Digest
	blob   ocispec.Descriptor
}

// run downloads, converts and installs the layer. It holds a lease of its own, as those who wait may all leave.
func (f layerFetch) run(ctx context.Context, report func(Status)) error {
	s, id := f.s, shortID(f.blob.Digest.String())
	l := s.newLease()
	defer l.end()
	if l.pin(f.diffID) {
		report(Status{ID: id, Status: "Already exists"})
		return nil
	}
	select {
	case s.downloads <- struct{}{}:
	default:
		report(Status{ID: id, Status: "Waiting"})
		select {
		case s.downloads <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() { <-s.downloads }()
	return f.download(ctx, id, report)
}

func (f layerFetch) download(ctx context.Context, id string, report func(Status)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := f.ss.blob(ctx, f.blob)
	defer body.Close()
	src := &counter{r: body, report: report, st: Status{ID: id, Status: "Downloading", Total: f.blob.Size}}
	src.atEnd = func() {
		report(Status{ID: id, Status: "Verifying Checksum"})
		report(Status{ID: id, Status: "Download complete"})
		report(Status{ID: id, Status: "Extracting", Current: f.blob.Size, Total: f.blob.Size})
	}
	c, err := f.s.convert(src, cancel)
	if err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	if err := f.verify(c); err != nil {
		f.s.drop(c)
		return err
	}
	if err := f.s.install(c); err != nil {
		return err
	}
	report(Status{ID: id, Status: "Pull complete"})
	return nil
}

func (f layerFetch) verify(c converted) error {
	if c.blob != f.blob.Digest {
		return faultf(ErrInvalid, "layer %s has the digest %s", f.blob.Digest, c.blob)
	}
	if c.diffID != f.diffID {
		return faultf(ErrInvalid, "layer %s unpacks to %s, but the image's config says %s", f.blob.Digest, c.diffID, f.diffID)
	}
	return nil
}
