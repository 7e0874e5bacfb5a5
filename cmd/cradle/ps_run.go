package main

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/opts"

	"github.com/cradlevm/cradle/cmd/cradle/front"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node"
)

// addListHandler serves package front: a list of containers as docker's library prints it.
func addListHandler(mux *http.ServeMux, n *node.Node) {
	mux.HandleFunc("POST /cradle/v1/ps", func(w http.ResponseWriter, r *http.Request) {
		if err := listOnce(n, w, r); err != nil {
			dockerapi.WriteError(w, err)
		}
	})
}

// listOnce answers a list. An error means that nothing has been answered.
func listOnce(n *node.Node, w http.ResponseWriter, r *http.Request) error {
	words, err := readWords(w, r)
	if err != nil {
		return err
	}
	o, err := parseList(words)
	if err != nil {
		return err
	}
	items, err := n.ContainerList(r.Context(), o.all, 0, false, dockerapi.Filters(o.filters.Value()))
	if err != nil {
		return err
	}
	var table bytes.Buffer
	err = formatter.ContainerWrite(formatter.Context{
		Output: &table, Format: formatter.NewContainerFormat("", o.quiet, false), Trunc: !o.noTrunc,
	}, items)
	if err != nil {
		return err
	}
	reply := &recordReply{w: w}
	defer reply.end()
	reply.setHead()
	for table.Len() > 0 {
		if _, err := (recordStream{reply, front.Stdout}).Write(table.Next(front.MaxRecord)); err != nil {
			return nil // nobody is there to read it
		}
	}
	recordStream{reply, front.Exit}.Write([]byte{0})
	return nil
}

// listOptions is what is to be listed, and how.
type listOptions struct {
	all, quiet, noTrunc bool
	filters             opts.FilterOpt
}

// parseList reads the words of package front's request. What it refuses is left to docker's library.
func parseList(words []string) (*listOptions, error) {
	o := &listOptions{filters: opts.NewFilterOpt()}
	for _, word := range words {
		filter, isFilter := strings.CutPrefix(word, front.ListFilter)
		switch {
		case word == "": // there are no words
		case word == front.ListAll:
			o.all = true
		case word == front.ListQuiet:
			o.quiet = true
		case word == front.ListNoTrunc:
			o.noTrunc = true
		case isFilter:
			if err := o.filters.Set(filter); err != nil {
				return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
			}
		default:
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unknown setting %q", word))
		}
	}
	return o, nil
}
