package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// bundle is a directory from which an OCI runtime runs true.
type bundle struct {
	dir, state string
	runs       int
}

// makeBundle prepares one, with busybox's files out of our own export.
func makeBundle(ctx context.Context, e env, from *side) (*bundle, error) {
	b := &bundle{dir: filepath.Join(e.dir, "bundle"), state: filepath.Join(e.dir, "runtime")}
	rootfs := filepath.Join(b.dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, err
	}
	archive := filepath.Join(e.dir, "rootfs.tar")
	for _, words := range [][]string{
		{"create", "--name", "bundle", "busybox", "true"},
		{"export", "-o", archive, "bundle"},
		{"rm", "bundle"},
	} {
		if err := from.do(ctx, words...); err != nil {
			return nil, err
		}
	}
	if _, err := output(ctx, ownEnv(), "tar", "-xf", archive, "-C", rootfs); err != nil {
		return nil, err
	}
	return b, b.configure(ctx)
}

// configure writes the runtime's own idea of a configuration, with true in it and without a terminal.
func (b *bundle) configure(ctx context.Context) error {
	if _, err := output(ctx, ownEnv(), "runc", "spec", "--bundle", b.dir); err != nil {
		return err
	}
	path := filepath.Join(b.dir, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	process, ok := config["process"].(map[string]any)
	if !ok {
		return errors.New("runc spec made a configuration without a process")
	}
	process["terminal"], process["args"] = false, []string{"true"}
	if text, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// enter makes a runtime a contestant that runs the bundle. b may be nil, with err the reason.
func (b *bundle) enter(name, program string, err error, flags ...string) contestant {
	if err == nil {
		_, err = exec.LookPath(program)
	}
	if err == nil && os.Geteuid() != 0 {
		err = errors.New(name + " needs root")
	}
	return contestant{name: name, err: err, once: func(ctx context.Context) error {
		b.runs++
		words := append([]string{"--root", filepath.Join(b.state, name)}, flags...)
		words = append(words, "run", "--bundle", b.dir, fmt.Sprintf("cradle-bench-%d-%d", os.Getpid(), b.runs))
		_, err := output(ctx, ownEnv(), program, words...)
		return err
	}}
}
