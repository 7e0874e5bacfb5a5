package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
)

// pathStatHeader carries, in base64, the JSON of what is at an archive's path.
const pathStatHeader = "X-Docker-Container-Path-Stat"

func (s *server) fileRoutes() []route {
	return []route{
		{"HEAD", "/containers/{id}/archive", "", s.containerStatPath},
		{"GET", "/containers/{id}/archive", "", s.containerArchive},
		{"PUT", "/containers/{id}/archive", "", s.containerExtract},
		{"GET", "/containers/{id}/changes", "", s.containerChanges},
		{"GET", "/containers/{id}/export", "", s.containerExport},
		{"POST", "/commit", "", s.containerCommit},
		{"POST", "/containers/{id}/update", "", s.containerUpdate},
	}
}

// archivePath reads the path in the container, which has to be given.
func (c *call) archivePath() (string, error) {
	path := c.query.Get("path")
	if path == "" {
		return "", invalid("path: value cannot be empty")
	}
	return path, nil
}

func (c *call) setPathStat(stat container.PathStat) error {
	text, err := json.Marshal(stat)
	if err != nil {
		return fmt.Errorf("encode stat: %w", err)
	}
	c.w.Header().Set(pathStatHeader, base64.StdEncoding.EncodeToString(text))
	return nil
}

func (s *server) containerStatPath(c *call) error {
	path, err := c.archivePath()
	if err != nil {
		return err
	}
	stat, err := s.b.ContainerStatPath(c.r.Context(), c.id(), path)
	if err != nil {
		return err
	}
	if err := c.setPathStat(stat); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

func (s *server) containerArchive(c *call) error {
	path, err := c.archivePath()
	if err != nil {
		return err
	}
	return s.b.ContainerArchive(c.r.Context(), c.id(), path, func(stat container.PathStat) io.Writer {
		if err := c.setPathStat(stat); err != nil {
			c.log.Error("archive", "error", err)
		}
		c.w.Header().Set("Content-Type", "application/x-tar")
		c.w.WriteHeader(http.StatusOK)
		return c.w
	})
}

func (s *server) containerExtract(c *call) error {
	path, err := c.archivePath()
	if err != nil {
		return err
	}
	o := ExtractOptions{NoOverwriteDirNonDir: c.flag("noOverwriteDirNonDir"), CopyUIDGID: c.flag("copyUIDGID")}
	if err := s.b.ContainerExtract(c.r.Context(), c.id(), path, o, c.r.Body); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

func (s *server) containerChanges(c *call) error {
	changes, err := s.b.ContainerChanges(c.r.Context(), c.id())
	if err != nil {
		return err
	}
	return list(c, changes)
}

func (s *server) containerExport(c *call) error {
	// With an error before the first byte the answer is that error, in JSON; later it is cut short.
	c.w.Header().Set("Content-Type", "application/octet-stream")
	return s.b.ContainerExport(c.r.Context(), c.id(), c.w)
}

func (s *server) containerCommit(c *call) error {
	name := c.query.Get("container")
	if name == "" {
		return invalid("container: value cannot be empty")
	}
	o := CommitOptions{
		Author: c.query.Get("author"), Comment: c.query.Get("comment"), Changes: c.query["changes"],
		Pause: c.flagOr("pause", true),
	}
	if repo := c.query.Get("repo"); repo != "" {
		ref, err := joinReference(repo, c.query.Get("tag"))
		if err != nil {
			return err
		}
		if _, digested := ref.(reference.Digested); digested {
			return invalid("refusing to create a tag with a digest reference")
		}
		o.Reference = reference.FamiliarString(reference.TagNameOnly(ref))
	}
	// A config is optional, and so are the body and its content type without one.
	if c.r.ContentLength != 0 && c.r.Header.Get("Content-Type") != "" {
		var config *container.Config
		if _, err := c.body(&config); err != nil {
			return err
		}
		o.Config = config
	}
	id, err := s.b.ContainerCommit(c.r.Context(), name, o)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, container.CommitResponse{ID: id})
}

func (s *server) containerUpdate(c *call) error {
	var u container.UpdateConfig
	text, err := c.body(&u)
	if err != nil {
		return err
	}
	if field := unknownField(text, reflect.TypeFor[container.UpdateConfig]()); field != "" {
		return unsupported("Updating the field " + field + " of a container")
	}
	r, err := s.b.ContainerUpdate(c.r.Context(), c.id(), u)
	if err != nil {
		return err
	}
	r.Warnings = orList(r.Warnings)
	return c.json(http.StatusOK, r)
}
