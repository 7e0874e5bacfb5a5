package runspec

import (
	"strconv"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// LogOptions say how a container's output is kept.
type LogOptions struct {
	Driver   string // "json-file", "local" or "none"; with "none" nothing can be read back
	MaxSize  int64  // bytes of one file before it is rotated; 0: the node's default
	MaxFiles int    // files kept, the current one included; 0: the node's default
}

// Log reads HostConfig.LogConfig. json-file and local are the same here: bounded files that `logs` reads; of their
// options max-size and max-file are honoured here, and what json-file tells of each line by LogDetails. Errors:
// ErrInvalidArgument, ErrNotImplemented.
func Log(hc *container.HostConfig) (LogOptions, error) {
	o := LogOptions{Driver: hc.LogConfig.Type}
	switch o.Driver {
	case "":
		o.Driver = "json-file"
	case "json-file", "local":
	case "none": // its options mean nothing, and docker does not look at them
		return o, nil
	case "awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "journald", "splunk", "syslog": // docker has these
		return o, unsupported("the log driver %q (json-file, local and none are there; another one)", o.Driver)
	default:
		return o, invalid("error looking up logging plugin %s: plugin %q not found", o.Driver, o.Driver)
	}
	for key, value := range hc.LogConfig.Config {
		if err := o.set(key, value); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (o *LogOptions) set(key, value string) error {
	switch key {
	case "max-size":
		n, err := units.RAMInBytes(value)
		if err != nil || n == 0 || n < -1 {
			return invalid("invalid log option max-size=%s", value)
		}
		// docker's -1 is "unlimited"; the largest size stands for it.
		if o.MaxSize = n; n == -1 {
			o.MaxSize = 1 << 62
		}
	case "max-file":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return invalid("max-file cannot be less than 1")
		}
		if n > 1000 {
			return invalid("max-file cannot be more than 1000")
		}
		o.MaxFiles = n
	case "mode":
		if value != string(container.LogModeBlocking) && value != "" {
			return unsupported("the log option mode=%s", value)
		}
	case "compress":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return invalid("invalid log option compress=%s", value)
		}
		if on {
			return unsupported("the log option compress=%s", value)
		}
	case "max-buffer-size":
		if value != "" {
			return unsupported("the log option %s", key)
		}
	case "labels", "labels-regex", "env", "env-regex", "tag": // LogDetails reads them
		if !detailed(o.Driver) {
			return o.unknown(key)
		}
	default:
		return o.unknown(key)
	}
	return nil
}

// unknown refuses an option in docker's words, which are each driver's own.
func (o *LogOptions) unknown(key string) error {
	if o.Driver == "local" {
		return invalid("unknown log opt '%s' for log driver %s", key, o.Driver)
	}
	return invalid("unknown log opt '%s' for %s log driver", key, o.Driver)
}
