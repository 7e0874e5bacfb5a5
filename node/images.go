package node

import (
	"context"
	"io"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/image"
)

// report passes a transfer's steps on to a client.
func report(progress dockerapi.Progress) func(image.Status) {
	return func(s image.Status) {
		m := jsonstream.Message{ID: s.ID, Status: s.Status}
		if s.Current > 0 || s.Total > 0 {
			m.Progress = &jsonstream.Progress{Current: s.Current, Total: s.Total}
		}
		progress(m)
	}
}

// ImagePull implements dockerapi.Backend.
func (n *Node) ImagePull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, progress dockerapi.Progress) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return invalid("invalid reference format: %v", err)
	}
	named = reference.TagNameOnly(named)
	tag := ""
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	} else if d, ok := named.(reference.Digested); ok {
		tag = d.Digest().String()
	}
	o := image.PullOptions{Platform: platform}
	if auth != nil {
		o.Username, o.Password = auth.Username, auth.Password
		o.IdentityToken, o.RegistryToken = auth.IdentityToken, auth.RegistryToken
	}
	// Said once the registry has answered: what fails before that is an ordinary error, as with docker.
	from := sync.OnceFunc(func() { progress(jsonstream.Message{ID: tag, Status: "Pulling from " + reference.Path(named)}) })
	o.Progress = func(s image.Status) { from(); report(progress)(s) }
	img, err := n.options.Images.Pull(ctx, ref, o) // its last two reports are docker's "Digest:" and "Status:"
	if err != nil {
		return imageError(err)
	}
	n.imageEvent(events.ActionPull, reference.FamiliarString(named), img)
	return nil
}

// imageEvent tells of an image by a name of it, or by its id.
func (n *Node) imageEvent(action events.Action, name string, img image.Image) {
	n.imageEventOf(action, name, name, img)
}

func (n *Node) imageEventOf(action events.Action, id, name string, img image.Image) {
	attributes := map[string]string{"name": name}
	for k, v := range img.Config.Config.Labels {
		attributes[k] = v
	}
	n.events.add(events.ImageEventType, action, id, attributes)
}

// ImageImport implements dockerapi.Backend.
func (n *Node) ImageImport(ctx context.Context, r io.Reader, ref, message string, changes []string, platform *ocispec.Platform, progress dockerapi.Progress) error {
	config := dockerspec.DockerOCIImage{}
	now := time.Now().UTC()
	config.Created = &now
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if platform != nil {
		config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
	}
	config.History = []ocispec.History{{Created: &now, Comment: message}}
	if err := applyChanges(&config.Config, changes); err != nil {
		return err
	}
	img, err := n.options.Images.Import(ctx, r, ref, config)
	if err != nil {
		return imageError(err)
	}
	progress(jsonstream.Message{Status: img.ID})
	if ref != "" {
		n.imageEventOf(events.ActionTag, img.ID, familiar(ref), img)
	}
	n.imageEvent(events.ActionImport, img.ID, img)
	return nil
}

// ImageLoad implements dockerapi.Backend.
func (n *Node) ImageLoad(ctx context.Context, r io.Reader, quiet bool, progress dockerapi.Progress) error {
	status := report(progress)
	if quiet {
		status = nil
	}
	images, err := n.options.Images.Load(ctx, r, status)
	if err != nil {
		return imageError(err)
	}
	for _, img := range images {
		names := img.RepoTags
		if len(names) == 0 {
			progress(jsonstream.Message{Stream: "Loaded image ID: " + img.ID + "\n"})
		}
		for _, name := range names {
			progress(jsonstream.Message{Stream: "Loaded image: " + name + "\n"})
		}
		n.imageEvent(events.ActionLoad, img.ID, img)
	}
	return nil
}

// ImageSave implements dockerapi.Backend.
func (n *Node) ImageSave(ctx context.Context, refs []string, w io.Writer) error {
	if err := n.options.Images.Save(ctx, refs, w); err != nil {
		return imageError(err)
	}
	told := map[string]bool{}
	for _, ref := range refs {
		if img, err := n.options.Images.Get(ref); err == nil && !told[img.ID] {
			told[img.ID] = true
			n.imageEvent(events.ActionSave, img.ID, img)
		}
	}
	return nil
}

// familiar is a reference as docker prints it, with its tag.
func familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}

// ImageList implements dockerapi.Backend.
func (n *Node) ImageList(_ context.Context, _ bool, filters dockerapi.Filters) ([]imagetypes.Summary, error) {
	if err := knownFilters(filters, "reference", "label", "dangling", "before", "since", "until"); err != nil {
		return nil, err
	}
	images, err := n.options.Images.List()
	if err != nil {
		return nil, err
	}
	match, err := n.imageFilter(filters)
	if err != nil {
		return nil, err
	}
	users := map[string]int64{}
	for _, c := range n.all() {
		users[c.snapshot().ImageID]++
	}
	out := []imagetypes.Summary{}
	for _, img := range images {
		if !match(&img) {
			continue
		}
		labels := img.Config.Config.Labels
		if labels == nil {
			labels = map[string]string{}
		}
		out = append(out, imagetypes.Summary{
			ID: img.ID, Created: img.Created.Unix(), Labels: labels, RepoTags: some(img.RepoTags), RepoDigests: some(img.RepoDigests),
			Size: img.Size, SharedSize: -1, Containers: users[img.ID],
		})
	}
	return out, nil
}

// some makes JSON's [] of nil.
func some(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// imageFilter makes one predicate of docker's filters. "reference" also narrows the tags that are shown.
func (n *Node) imageFilter(filters dockerapi.Filters) (func(*image.Image) bool, error) {
	var before, since time.Time
	for key, t := range map[string]*time.Time{"before": &before, "since": &since} {
		for ref := range filters[key] {
			img, err := n.options.Images.Get(ref)
			if err != nil {
				return nil, imageError(err)
			}
			*t = img.Created
		}
	}
	until, err := pruneUntil(filters)
	if err != nil {
		return nil, err
	}
	return func(img *image.Image) bool {
		if refs := filters["reference"]; len(refs) > 0 {
			img.RepoTags = matchReferences(img.RepoTags, refs)
			if len(img.RepoTags) == 0 {
				return false
			}
		}
		for v := range filters["dangling"] {
			if (v == "true" || v == "1") != (len(img.RepoTags) == 0) {
				return false
			}
		}
		return matchesLabels(img.Config.Config.Labels, filters["label"]) &&
			(before.IsZero() || img.Created.Before(before)) && (since.IsZero() || img.Created.After(since)) &&
			(until.IsZero() || img.Created.Before(until))
	}, nil
}

func matchReferences(tags []string, patterns map[string]bool) []string {
	var out []string
	for _, tag := range tags {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			continue
		}
		for p := range patterns {
			if ok, err := reference.FamiliarMatch(p, named); err == nil && ok {
				out = append(out, tag)
				break
			}
		}
	}
	return out
}

// ImageInspect implements dockerapi.Backend.
func (n *Node) ImageInspect(_ context.Context, ref string) (imagetypes.InspectResponse, error) {
	img, err := n.options.Images.Get(ref)
	if err != nil {
		return imagetypes.InspectResponse{}, imageError(err)
	}
	out := imagetypes.InspectResponse{
		ID: img.ID, RepoTags: some(img.RepoTags), RepoDigests: some(img.RepoDigests), Author: img.Config.Author,
		Config: &img.Config.Config, Architecture: img.Config.Architecture, Variant: img.Config.Variant,
		Os: img.Config.OS, OsVersion: img.Config.OSVersion, Size: img.Size,
		GraphDriver: &storage.DriverData{Name: "erofs", Data: map[string]string{}},
		RootFS:      imagetypes.RootFS{Type: "layers"},
	}
	if !img.Created.IsZero() {
		out.Created = img.Created.UTC().Format(time.RFC3339Nano)
	}
	for _, h := range img.Config.History {
		out.Comment = h.Comment
	}
	for _, l := range img.Layers {
		out.RootFS.Layers = append(out.RootFS.Layers, l.DiffID)
	}
	return out, nil
}

// ImageHistory implements dockerapi.Backend: newest first, as docker's.
func (n *Node) ImageHistory(_ context.Context, ref string) ([]imagetypes.HistoryResponseItem, error) {
	img, err := n.options.Images.Get(ref)
	if err != nil {
		return nil, imageError(err)
	}
	out := []imagetypes.HistoryResponseItem{}
	layer := 0
	for _, h := range img.Config.History {
		item := imagetypes.HistoryResponseItem{ID: "<missing>", Comment: h.Comment, CreatedBy: h.CreatedBy, Tags: nil}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && layer < len(img.Layers) {
			item.Size = img.Layers[layer].Size
			layer++
		}
		out = append(out, item)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	if len(out) > 0 {
		out[0].ID, out[0].Tags = img.ID, img.RepoTags
	}
	return out, nil
}

// ImageRemove implements dockerapi.Backend.
func (n *Node) ImageRemove(_ context.Context, ref string, force, _ bool) ([]imagetypes.DeleteResponse, error) {
	img, err := n.options.Images.Get(ref)
	if err != nil {
		return nil, imageError(err)
	}
	if err := n.refuseInUse(ref, img, force); err != nil {
		return nil, err
	}
	untagged, deleted, err := n.options.Images.Remove(ref, force)
	if err != nil {
		return nil, imageError(err)
	}
	n.forgetWarmOfGone()
	n.revisePool()
	out := []imagetypes.DeleteResponse{}
	for _, name := range untagged {
		out = append(out, imagetypes.DeleteResponse{Untagged: name})
		n.imageEvent(events.ActionUnTag, img.ID, img)
	}
	for _, id := range deleted {
		out = append(out, imagetypes.DeleteResponse{Deleted: id})
		if strings.HasPrefix(id, "sha256:") && id == img.ID {
			n.imageEvent(events.ActionDelete, img.ID, img)
		}
	}
	return out, nil
}

// refuseInUse is docker's word for an image that containers use, which the store, knowing only holds, cannot say.
func (n *Node) refuseInUse(ref string, img image.Image, force bool) error {
	var users []*ctr
	for _, c := range n.all() {
		if r := c.snapshot(); r.ImageID == img.ID && r.Dir == "" {
			users = append(users, c)
		}
	}
	byID := strings.HasPrefix(strings.TrimPrefix(img.ID, "sha256:"), strings.TrimPrefix(ref, "sha256:"))
	if !byID && len(img.RepoTags) > 1 {
		return nil
	}
	short := strings.TrimPrefix(img.ID, "sha256:")[:12]
	if len(users) == 0 {
		if force {
			return nil
		}
		return refuseShelved(ref, short, byID, n.snapshotOf(img.ID))
	}
	sort.Slice(users, func(i, j int) bool { return users[i].isUp() && !users[j].isUp() })
	if users[0].isUp() {
		if byID {
			return conflict("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, users[0].id[:12])
		}
		if !force {
			return conflict("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, users[0].id[:12], short)
		}
		return nil
	}
	if force {
		return nil
	}
	if byID {
		return conflict("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, users[0].id[:12])
	}
	return conflict("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, users[0].id[:12], short)
}

// refuseShelved says of an image what docker says where a stopped container uses it, of a snapshot; nil when name is empty.
func refuseShelved(ref, short string, byID bool, name string) error {
	switch {
	case name == "":
		return nil
	case byID:
		return conflict("conflict: unable to delete %s (must be forced) - image is being used by snapshot %s", short, name)
	}
	return conflict("conflict: unable to remove repository reference %q (must force) - snapshot %s is using its referenced image %s", ref, name, short)
}

// ImageTag implements dockerapi.Backend.
func (n *Node) ImageTag(_ context.Context, ref, target string) error {
	if err := n.options.Images.Tag(ref, target); err != nil {
		return imageError(err)
	}
	if img, err := n.options.Images.Get(ref); err == nil {
		n.imageEventOf(events.ActionTag, img.ID, familiar(target), img)
	}
	return nil
}

// ImagePrune implements dockerapi.Backend.
func (n *Node) ImagePrune(_ context.Context, filters dockerapi.Filters) (imagetypes.PruneReport, error) {
	if err := knownFilters(filters, "dangling"); err != nil {
		return imagetypes.PruneReport{}, err
	}
	all := filters["dangling"]["false"] || filters["dangling"]["0"]
	before, err := n.options.Images.List()
	if err != nil {
		return imagetypes.PruneReport{}, imageError(err)
	}
	deleted, reclaimed, err := n.options.Images.Prune(all)
	if err != nil {
		return imagetypes.PruneReport{}, imageError(err)
	}
	n.forgetWarmOfGone()
	n.revisePool()
	report := imagetypes.PruneReport{SpaceReclaimed: uint64(reclaimed)}
	for _, id := range deleted {
		if i := slices.IndexFunc(before, func(img image.Image) bool { return img.ID == id }); i >= 0 {
			for _, name := range before[i].RepoTags {
				report.ImagesDeleted = append(report.ImagesDeleted, imagetypes.DeleteResponse{Untagged: name})
				n.imageEvent(events.ActionUnTag, id, before[i])
			}
			n.imageEvent(events.ActionDelete, id, before[i])
		}
		report.ImagesDeleted = append(report.ImagesDeleted, imagetypes.DeleteResponse{Deleted: id})
	}
	n.pruned(events.ImageEventType, report.SpaceReclaimed)
	return report, nil
}
