package runspec

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template/parse"

	"github.com/moby/moby/api/types/container"
)

// LogNames are what a log's tag can name of its container.
type LogNames struct {
	ID, Name, ImageID string // Name without a slash, ImageID with its "sha256:"
	Hostname          string // of the machine that the daemon runs on
}

// LogDetails returns what `logs --details` tells of each line: the container's labels and variables that the options
// labels, labels-regex, env and env-regex of its json-file log name, and its tag. Docker's form: key=value, both
// escaped as in a URL's query, sorted by key, with commas between; empty when the options name nothing.
//
// Labels and variables are the container's for life; of a tag that names the container docker keeps in each line what
// the name was at the start, and this is what it is now.
func LogDetails(c *container.Config, hc *container.HostConfig, n LogNames) (string, error) {
	o := hc.LogConfig.Config
	if !detailed(hc.LogConfig.Type) || len(o) == 0 {
		return "", nil
	}
	env := map[string]string{}
	for _, kv := range c.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	attrs := map[string]string{}
	for _, from := range []struct {
		option string
		values map[string]string
	}{{"labels", c.Labels}, {"env", env}} {
		for key := range strings.SplitSeq(o[from.option], ",") {
			if v, ok := from.values[key]; ok {
				attrs[key] = v
			}
		}
		if text := o[from.option+"-regex"]; text != "" {
			re, err := regexp.Compile(text)
			if err != nil {
				return "", invalid("failed to initialize logging driver: %v", err)
			}
			for k, v := range from.values {
				if re.MatchString(k) {
					attrs[k] = v
				}
			}
		}
	}
	tag, err := logTag(o["tag"], c, n)
	if err != nil {
		return "", err
	}
	if tag != "" {
		attrs["tag"] = tag
	}
	list := make([]string, 0, len(attrs))
	for k, v := range attrs {
		list = append(list, url.QueryEscape(k)+"="+url.QueryEscape(v))
	}
	slices.SortFunc(list, func(a, b string) int {
		x, _, _ := strings.Cut(a, "=")
		y, _, _ := strings.Cut(b, "=")
		return strings.Compare(x, y)
	})
	return strings.Join(list, ","), nil
}

// detailed reports whether lines of the driver's logs have details.
func detailed(driver string) bool { return driver == "" || driver == "json-file" }

// logTag fills in a tag's template. Of Go's templates, text and plain fields are understood: the rest is refused, for
// a template can run for as long and grow as large as it likes.
func logTag(text string, c *container.Config, n LogNames) (string, error) {
	if text == "" {
		return "", nil
	}
	trees, err := parse.Parse("log-tag", text, "", "")
	if err != nil {
		return "", invalid("failed to initialize logging driver: %v", err)
	}
	tree := trees["log-tag"]
	if tree == nil || tree.Root == nil { // blanks
		return text, nil
	}
	var b strings.Builder
	for _, node := range tree.Root.Nodes {
		switch node := node.(type) {
		case *parse.TextNode:
			b.Write(node.Text)
		case *parse.ActionNode:
			field := fieldOf(node)
			if field == "" {
				return "", unsupported("the log option tag=%s (text and fields like {{.Name}} are; %s)", text, node)
			}
			value, ok := n.field(field, c)
			if !ok {
				return "", invalid("failed to initialize logging driver: template: log-tag: can't evaluate field %s", field)
			}
			b.WriteString(value)
		default:
			return "", unsupported("the log option tag=%s (text and fields like {{.Name}} are; %s)", text, node)
		}
	}
	return b.String(), nil
}

// fieldOf returns the field that an action writes, "" when it does something else.
func fieldOf(a *parse.ActionNode) string {
	if len(a.Pipe.Decl) != 0 || len(a.Pipe.Cmds) != 1 || len(a.Pipe.Cmds[0].Args) != 1 {
		return ""
	}
	f, ok := a.Pipe.Cmds[0].Args[0].(*parse.FieldNode)
	if !ok || len(f.Ident) != 1 {
		return ""
	}
	return f.Ident[0]
}

// field is a field of docker's by its name there.
func (n *LogNames) field(name string, c *container.Config) (string, bool) {
	short := func(id string) string { return id[:min(len(id), 12)] } // docker counts an image's "sha256:" among the 12
	switch name {
	case "ID":
		return short(n.ID), true
	case "FullID", "ContainerID":
		return n.ID, true
	case "Name":
		return n.Name, true
	case "ContainerName":
		return "/" + n.Name, true
	case "ImageID":
		return short(n.ImageID), true
	case "ImageFullID", "ContainerImageID":
		return n.ImageID, true
	case "ImageName", "ContainerImageName":
		return c.Image, true
	case "Command":
		return strings.Join(slices.Concat(c.Entrypoint, c.Cmd), " "), true
	case "Hostname":
		return n.Hostname, true
	case "DaemonName":
		return "docker", true
	}
	return "", false
}
