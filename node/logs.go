package node

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node/logfile"
	"github.com/cradlevm/cradle/node/runspec"
)

// logTime is the layout of docker's log timestamps: RFC 3339 with all nine digits.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// ContainerLogs implements dockerapi.Backend.
func (n *Node) ContainerLogs(ctx context.Context, name string, o dockerapi.LogsOptions) (func(stdout, stderr io.Writer) error, bool, error) {
	c, err := n.find(name)
	if err != nil {
		return nil, false, err
	}
	if !o.Stdout && !o.Stderr {
		return nil, false, invalid("Bad parameters: you must choose at least one stream")
	}
	rec := c.snapshot()
	log, err := c.openLog()
	if err != nil {
		return nil, false, err
	}
	if log == nil {
		return nil, false, unsupported("configured logging driver does not support reading")
	}
	var details string
	if o.Details {
		host, _ := os.Hostname()
		names := runspec.LogNames{ID: rec.ID, Name: rec.Name, ImageID: rec.ImageID, Hostname: host}
		if details, err = runspec.LogDetails(&rec.Config, &rec.HostConfig, names); err != nil {
			return nil, false, err
		}
		details += " " // also without any, as docker has it
	}
	serve := func(stdout, stderr io.Writer) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stop := context.AfterFunc(n.ctx, cancel)
		defer stop()
		opts := logfile.ReadOptions{
			Since: o.Since, Until: o.Until, Tail: o.Tail, Stdout: o.Stdout, Stderr: o.Stderr,
			Follow: o.Follow && c.isUp(), // an ended run closes the log, and with it the followers
		}
		var line []byte
		return log.Read(ctx, opts, func(r logfile.Record) error {
			line = line[:0]
			if o.Timestamps && !r.Continues {
				line = r.Time.UTC().AppendFormat(line, logTime)
				line = append(line, ' ')
			}
			if !r.Continues {
				line = append(line, details...)
			}
			line = append(line, r.Data...)
			w := stdout
			if r.Stream == api.Stderr && !rec.Config.Tty {
				w = stderr
			}
			_, err := w.Write(line)
			return err
		})
	}
	return serve, rec.Config.Tty, nil
}

// formatTime writes a time as docker's API has it; a zero time is year 1.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return "0001-01-01T00:00:00Z"
	}
	return t.UTC().Format(time.RFC3339Nano)
}
