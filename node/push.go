package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/image"
)

// ImagePush implements dockerapi.PushBackend. A name without a tag stands for all its tags.
func (n *Node) ImagePush(ctx context.Context, ref reference.Named, auth *registry.AuthConfig, progress dockerapi.Progress) error {
	refs := []reference.Named{ref}
	if reference.IsNameOnly(ref) {
		refs = nil
		images, err := n.options.Images.List()
		if err != nil {
			return imageError(err)
		}
		for _, img := range images {
			for _, tag := range img.RepoTags {
				if named, err := reference.ParseNormalizedNamed(tag); err == nil && named.Name() == ref.Name() {
					refs = append(refs, named)
				}
			}
		}
	}
	progress(jsonstream.Message{Status: "The push refers to repository [" + ref.Name() + "]"})
	if len(refs) == 0 {
		return notFound("An image does not exist locally with the tag: %s", reference.FamiliarName(ref))
	}
	for _, named := range refs {
		if err := n.push(ctx, named, auth, progress); err != nil {
			return err
		}
	}
	return nil
}

// push sends one tag, and ends with docker's line about it, for people and for programs.
func (n *Node) push(ctx context.Context, named reference.Named, auth *registry.AuthConfig, progress dockerapi.Progress) error {
	ref := reference.FamiliarString(named)
	img, err := n.options.Images.Get(ref)
	if err != nil {
		return notFound("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	o := image.PullOptions{Progress: report(progress)}
	if auth != nil {
		o.Username, o.Password = auth.Username, auth.Password
		o.IdentityToken, o.RegistryToken = auth.IdentityToken, auth.RegistryToken
	}
	manifest, size, err := n.options.Images.Push(ctx, ref, o)
	if err != nil {
		return imageError(err)
	}
	tag := ""
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	progress(jsonstream.Message{Status: fmt.Sprintf("%s: digest: %s size: %d", tag, manifest, size)})
	aux, err := json.Marshal(struct {
		Tag, Digest string
		Size        int64
	}{tag, manifest.String(), size})
	if err != nil {
		return err
	}
	raw := json.RawMessage(aux)
	progress(jsonstream.Message{Aux: &raw})
	n.imageEvent(events.ActionPush, ref, img)
	return nil
}

// Auth implements dockerapi.AuthBackend: the registry says whether it takes the credentials.
func (n *Node) Auth(ctx context.Context, auth registry.AuthConfig) (registry.AuthResponse, error) {
	err := n.options.Images.Login(ctx, auth.ServerAddress, image.PullOptions{
		Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	})
	if errors.Is(err, image.ErrDenied) {
		return registry.AuthResponse{}, &classed{err.Error(), cerrdefs.ErrUnauthenticated}
	}
	if err != nil {
		return registry.AuthResponse{}, imageError(err)
	}
	return registry.AuthResponse{Status: "Login Succeeded"}, nil
}

var (
	_ dockerapi.AuthBackend = (*Node)(nil)
	_ dockerapi.PushBackend = (*Node)(nil)
)
