package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/node/runspec"
)

// ContainerCreate implements dockerapi.Backend.
func (n *Node) ContainerCreate(ctx context.Context, name string, platform *ocispec.Platform, r container.CreateRequest) (container.CreateResponse, error) {
	fail := func(err error) (container.CreateResponse, error) { return container.CreateResponse{}, err }
	if r.Config == nil {
		return fail(invalid("config cannot be empty in order to create a container"))
	}
	name = strings.TrimPrefix(name, "/")
	if name != "" && !namePattern().MatchString(name) {
		return fail(invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name))
	}
	dir := r.Config.Labels[summonedLabel]
	img, err := n.imageOf(r.Config.Image, dir)
	if err != nil {
		return fail(err)
	}
	if err := checkPlatform(r.Config.Image, platform, img); err != nil {
		return fail(err)
	}
	if err := runspec.CheckShared(r.Config, r.HostConfig); err != nil {
		return fail(err)
	}
	id := newID()
	config, err := runspec.Merge(r.Config, img.Config)
	if err != nil {
		return fail(err)
	}
	prepared, warnings, err := runspec.Prepare(id, config, r.HostConfig, n.settings)
	if err != nil {
		return fail(err)
	}
	rec := record{
		ID: id, Created: time.Now(), ImageID: img.ID, Config: *prepared.Config, HostConfig: *prepared.Host,
		Platform: "linux", Dir: dir, Status: container.StateCreated,
	}
	if text, there := r.Config.Labels[api.LabelNetworkPolicy]; there {
		if rec.Policy, err = parsePolicy(text); err != nil {
			return fail(err)
		}
		if err := n.canHavePolicy(&rec); err != nil {
			return fail(err)
		}
	}
	if r.NetworkingConfig != nil {
		if rec.Links, err = n.linksAt(&rec, r.NetworkingConfig); err != nil {
			return fail(err)
		}
	}
	if mode := rec.HostConfig.NetworkMode; mode.IsContainer() { // one that is not there is the start's trouble: docker's clients would pull the image
		if other, err := n.find(mode.ConnectedContainer()); err == nil {
			rec.HostConfig.NetworkMode = container.NetworkMode("container:" + other.id)
		}
	}
	if _, err := rec.boundFiles(); err != nil {
		return fail(err)
	}
	if err := n.makeVolumes(ctx, rec); err != nil {
		return fail(err)
	}
	if err := n.add(name, rec); err != nil {
		return fail(err)
	}
	if why := n.notWarm(ctx, rec); why != "" {
		warnings = append(warnings, "The container does not start warm: "+why+".")
	}
	for _, b := range rec.fileBinds() {
		warnings = append(warnings, "The container sees "+b.Source+" as it is when it starts, not what becomes of it later.")
	}
	return container.CreateResponse{ID: id, Warnings: some(warnings)}, nil
}

// imageOf finds the image of a new container: in the store or in a summoned directory.
func (n *Node) imageOf(ref, dir string) (image.Image, error) {
	if dir != "" {
		img, _, err := openSummoned(dir)
		return img, err
	}
	if ref == "" {
		return image.Image{}, invalid("no image specified")
	}
	img, err := n.options.Images.Get(ref)
	return img, imageError(err)
}

// add registers a new container under its name, or one of our choosing, and saves it.
func (n *Node) add(name string, rec record) (err error) {
	var undo undoStack
	defer func() {
		if err != nil {
			undo.run(n.options.Log)
		}
	}()
	if name == "" {
		name, err = n.reserveRandom(rec.ID)
	} else {
		err = n.reserve(name, rec.ID)
	}
	if err != nil {
		return err
	}
	undo.push("name", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.names, name)
		return nil
	})
	rec.Name = name
	// The record is first: what a crash leaves of the rest is found by it, and made whole or removed.
	undo.push("record", func() error { return n.store.delete(rec.ID) })
	if err := n.store.put(rec); err != nil {
		return err
	}
	if rec.Dir == "" {
		undo.push("hold on the image", func() error { return n.options.Images.Release(rec.ID) })
		if err := n.options.Images.Borrow(rec.ImageID, rec.ID); err != nil {
			return imageError(err)
		}
	}
	c := newCtr(n, rec)
	undo.push("files", c.removeFiles)
	if err := os.MkdirAll(c.dir(), 0o711); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	n.mu.Lock()
	n.containers[rec.ID] = c
	n.mu.Unlock()
	c.emit(events.ActionCreate, nil)
	return nil
}

// reserve gives a name to an id; docker's conflict when it is taken.
func (n *Node) reserve(name, id string) error {
	if !namePattern().MatchString(name) {
		return invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if owner, taken := n.names[name]; taken {
		return conflict("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, owner)
	}
	n.names[name] = id
	return nil
}

// reserveRandom gives the id a name made of two words.
func (n *Node) reserveRandom(id string) (string, error) {
	adjectives := strings.Fields(`agile amber brave bright calm clear clever cosy crisp daring deft eager early fair fleet
		fond free fresh gentle glad golden grand handy happy hardy humble jolly keen kind lively loyal lucid lucky mellow merry
		mild neat nimble noble patient placid plucky polite proud quick quiet rapid ready serene sharp silent smart snug
		solid spry steady stout sunny swift tidy tranquil trusty upbeat vivid warm wise witty zesty`)
	nouns := strings.Fields(`alder anchor aspen badger beacon birch brook canyon cedar comet condor coral cove crane
		delta dune eagle ember falcon fern finch fjord forest fox gale garnet geyser glade harbor hare hawk hazel heron
		inlet iris island jasper juniper kestrel lagoon lake lark laurel lotus lynx maple marten meadow mesa nebula oak
		opal orca orchid osprey otter owl pebble pine plover poplar quartz quail raven reef ridge robin rowan sable sequoia
		sparrow spruce stoat summit swan tern thistle thrush tide topaz tundra valley walnut willow wren yew`)
	for range 100 {
		name := pick(adjectives) + "_" + pick(nouns)
		if n.reserve(name, id) == nil {
			return name, nil
		}
	}
	name := pick(adjectives) + "_" + id[:12]
	return name, n.reserve(name, id)
}

func pick(words []string) string {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		return words[0]
	}
	return words[i.Int64()]
}

// imageError gives the store's sentinels their classes; the store already speaks docker's words.
func imageError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, image.ErrNotFound):
		return notFound("%v", err)
	case errors.Is(err, image.ErrBadName), errors.Is(err, image.ErrInvalid):
		return invalid("%v", err)
	case errors.Is(err, image.ErrInUse):
		return conflict("%v", err)
	case errors.Is(err, image.ErrDenied):
		return notFound("%v", err)
	}
	return err
}
