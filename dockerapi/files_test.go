package dockerapi

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// The fake's files: /link and the directory /dir; all archives are words.

func (f *fake) statPath(name, path string) (container.PathStat, error) {
	if _, err := f.find(name); err != nil {
		return container.PathStat{}, err
	}
	switch path {
	case "/link":
		return container.PathStat{Name: "link", Mode: os.ModeSymlink | 0o777, Mtime: time.Unix(5, 0).UTC(), LinkTarget: "/dir"}, nil
	case "/dir":
		return container.PathStat{Name: "dir", Mode: os.ModeDir | 0o755, Size: 7}, nil
	}
	return container.PathStat{}, errdefs.ErrNotFound.WithMessage("Could not find the file " + path + " in container " + name)
}

func (f *fake) ContainerStatPath(_ context.Context, name, path string) (container.PathStat, error) {
	return f.statPath(name, path)
}

func (f *fake) ContainerArchive(_ context.Context, name, path string, begin func(container.PathStat) io.Writer) error {
	stat, err := f.statPath(name, path)
	if err != nil {
		return err
	}
	_, err = io.WriteString(begin(stat), "archive of "+path)
	return err
}

func (f *fake) ContainerExtract(_ context.Context, name, path string, o ExtractOptions, r io.Reader) error {
	if _, err := f.statPath(name, path); err != nil {
		return err
	}
	text, err := io.ReadAll(r)
	f.note("extract %s %+v %s", path, o, text)
	return err
}

func (f *fake) ContainerChanges(_ context.Context, name string) ([]container.FilesystemChange, error) {
	if _, err := f.find(name); err != nil {
		return nil, err
	}
	return []container.FilesystemChange{{Kind: container.ChangeDelete, Path: "/gone"}}, nil
}

func (f *fake) ContainerExport(_ context.Context, name string, w io.Writer) error {
	if _, err := f.find(name); err != nil {
		return err
	}
	_, err := io.WriteString(w, "all")
	return err
}

func (f *fake) ContainerCommit(_ context.Context, name string, o CommitOptions) (string, error) {
	if _, err := f.find(name); err != nil {
		return "", err
	}
	config := "no config"
	if o.Config != nil {
		config, o.Config = o.Config.User, nil
	}
	f.note("commit %+v %s", o, config)
	return "sha256:1", nil
}

func (f *fake) ContainerUpdate(_ context.Context, name string, u container.UpdateConfig) (container.UpdateResponse, error) {
	if _, err := f.find(name); err != nil {
		return container.UpdateResponse{}, err
	}
	f.note("update %d %s", u.Memory, u.RestartPolicy.Name)
	return container.UpdateResponse{}, nil
}

func TestClientFiles(t *testing.T) {
	c, f := newClient(t)
	ctx := t.Context()
	create := client.ContainerCreateOptions{Name: "box", Config: &container.Config{Image: "alpine", Cmd: []string{"a"}}}
	ok[client.ContainerCreateResult](t)(c.ContainerCreate(ctx, create))

	stat := ok[client.ContainerStatPathResult](t)(c.ContainerStatPath(ctx, "box", client.ContainerStatPathOptions{Path: "/link"})).Stat
	if stat.LinkTarget != "/dir" || stat.Mode&os.ModeSymlink == 0 || !stat.Mtime.Equal(time.Unix(5, 0)) {
		t.Errorf("stat %+v", stat)
	}
	isClass[client.ContainerStatPathResult](t, errdefs.IsNotFound)(c.ContainerStatPath(ctx, "box", client.ContainerStatPathOptions{Path: "/x"}))
	from := ok[client.CopyFromContainerResult](t)(c.CopyFromContainer(ctx, "box", client.CopyFromContainerOptions{SourcePath: "/dir"}))
	if text, err := io.ReadAll(from.Content); err != nil || string(text) != "archive of /dir" || from.Stat.Size != 7 || !from.Stat.Mode.IsDir() {
		t.Errorf("%q %v %+v", text, err, from.Stat)
	}
	isClass[client.CopyFromContainerResult](t, errdefs.IsNotFound)(c.CopyFromContainer(ctx, "box", client.CopyFromContainerOptions{SourcePath: "/x"}))
	ok[client.CopyToContainerResult](t)(c.CopyToContainer(ctx, "box", client.CopyToContainerOptions{
		DestinationPath: "/dir", Content: strings.NewReader("words"), CopyUIDGID: true}))
	f.eventually(t, "extract /dir {NoOverwriteDirNonDir:true CopyUIDGID:true} words")

	if d := ok[client.ContainerDiffResult](t)(c.ContainerDiff(ctx, "box", client.ContainerDiffOptions{})); len(d.Changes) != 1 || d.Changes[0].Path != "/gone" {
		t.Errorf("changes %+v", d)
	}
	all := ok[client.ContainerExportResult](t)(c.ContainerExport(ctx, "box", client.ContainerExportOptions{}))
	if text, err := io.ReadAll(all); err != nil || string(text) != "all" {
		t.Errorf("export %q %v", text, err)
	}

	image := ok[client.ContainerCommitResult](t)(c.ContainerCommit(ctx, "box", client.ContainerCommitOptions{
		Reference: "mine", Comment: "why", Author: "me", Changes: []string{"CMD a", "ENV b=c"}, Config: &container.Config{User: "u"}}))
	if image.ID != "sha256:1" {
		t.Errorf("commit %+v", image)
	}
	f.eventually(t, "commit {Reference:mine:latest Author:me Comment:why Changes:[CMD a ENV b=c] Pause:true Config:<nil>} u")
	ok[client.ContainerCommitResult](t)(c.ContainerCommit(ctx, "box", client.ContainerCommitOptions{NoPause: true}))
	f.eventually(t, "commit {Reference: Author: Comment: Changes:[] Pause:false Config:<nil>} no config")
	ok[client.ContainerUpdateResult](t)(c.ContainerUpdate(ctx, "box", client.ContainerUpdateOptions{
		Resources: &container.Resources{Memory: 5}, RestartPolicy: &container.RestartPolicy{Name: "always"}}))
	f.eventually(t, "update 5 always")
}
