package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"sync"

	"net/http"

	"github.com/containerd/errdefs"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/node"
	"github.com/cradlevm/cradle/vm/qemu"
)

// runDaemon runs the node daemon until ctx ends or it has been idle for long enough.
func runDaemon(ctx context.Context, c daemonConfig) error {
	return serveDaemon(ctx, c, openService)
}

// openService wires the daemon's parts together: the one place that knows them all.
func openService(ctx context.Context, c daemonConfig) (*service, error) {
	if c.Guest == "" {
		return nil, errors.New("no guest kernel found: make one with `make guest`, or name its directory with --guest or CRADLE_GUEST")
	}
	guest, err := guestos.Open(c.Guest)
	if err != nil {
		return nil, err
	}
	images, err := image.Open(filepath.Join(c.Root, "images"), image.Options{})
	if err != nil {
		return nil, err
	}
	driver := qemu.New(qemu.Options{Apart: c.Apart})
	accel, why := driver.Accel(ctx)
	c.Log.Info("accelerator", "accel", accel, "why", why)
	n, err := node.Open(ctx, node.Options{
		Root: c.Root, Run: c.Run, Version: c.Version, Driver: driver, Guest: guest, Images: images, Log: c.Log,
		// A daemon that ends when it is idle is there for what was asked of it, and nothing is made before.
		Pool: c.Pool, PoolSettings: c.PoolSettings, PoolKeep: c.IdleTimeout == 0,
		Networks: c.Networks, Streams: c.Streams,
	})
	if err != nil {
		return nil, errors.Join(err, images.Close())
	}
	ended := make(chan struct{})
	extra := http.NewServeMux()
	extra.Handle("POST /cradle/v1/reset", resetHandler(n, sync.OnceFunc(func() { close(ended) })))
	extra.Handle("POST /cradle/v1/summon", summonHandler(n))
	extra.Handle("GET /cradle/v1/pool", poolHandler(n))
	extra.Handle("GET /cradle/v1/starts", startsHandler(n))
	extra.Handle("GET /cradle/v1/metrics", n.Metrics())
	extra.Handle("POST /cradle/v1/pool", poolChangeHandler(n))
	addSavedHandlers(extra, n)
	addSnapshotHandlers(extra, n)
	addCostHandlers(extra, n)
	addExecHandler(extra, n)
	addRunHandler(extra, n)
	addListHandler(extra, n)
	addPolicyHandlers(extra, n)
	return &service{
		Handler: dockerapi.New(n, dockerapi.Options{
			Version: c.Version, Log: c.Log, Extra: map[string]http.Handler{"/cradle/v1/": extra},
		}),
		Busy:  n.Busy,
		Close: func() error { return errors.Join(n.Close(), images.Close()) },
		Ended: ended,
	}, nil
}

// resetHandler removes every container and then ends the daemon.
func resetHandler(n *node.Node, end func()) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := n.Reset(r.Context()); err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		end()
	})
}

// poolHandler tells what the pool has ready.
func poolHandler(n *node.Node) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(n.PoolStatus())
	})
}

// startsHandler tells how long the last starts took, or those of one container.
func startsHandler(n *node.Node) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(n.Starts(r.URL.Query().Get("container")))
	})
}

// poolChangeHandler changes the pool, and tells what it has then.
func poolChangeHandler(n *node.Node) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var change node.PoolSet
		body := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
		body.DisallowUnknownFields()
		err := body.Decode(&change)
		if err != nil {
			err = errdefs.ErrInvalidArgument.WithMessage("invalid change of the pool: " + err.Error())
		} else {
			err = n.PoolChange(change)
		}
		if err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		poolHandler(n).ServeHTTP(w, r)
	})
}

// summonHandler streams the directory of a virtual machine as a tar archive.
func summonHandler(n *node.Node) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		platform, err := dockerapi.ParsePlatform(r.URL.Query().Get("platform"))
		if err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		answerTar(w, func(begin func()) error {
			return n.Summon(r.Context(), r.URL.Query().Get("image"), platform, begin, w)
		})
	})
}

// answerTar answers with the archive that write writes to w, which calls begin before the first byte.
func answerTar(w http.ResponseWriter, write func(begin func()) error) {
	begun := false
	err := write(func() {
		begun = true
		w.Header().Set("Content-Type", "application/x-tar")
		w.WriteHeader(http.StatusOK)
	})
	switch {
	case err != nil && !begun:
		dockerapi.WriteError(w, err)
	case err != nil:
		// The answer has begun: breaking it off is the one way left to say that it is not whole.
		panic(http.ErrAbortHandler)
	}
}
