package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/version"
	"github.com/docker/cli/opts"
	"github.com/spf13/cobra"

	"github.com/cradlevm/cradle/pool"
)

// daemonConfig is all the daemon is told from outside.
type daemonConfig struct {
	Socket string // path of the socket to listen on; unused when systemd hands one over
	Root   string // images, templates, state
	Run    string // sockets, runtime files
	Guest  string // directory with the guest's kernel and initrd; empty when none was found

	// Pool tells whether VMs are started from templates, PoolSettings how many of each size are kept ready.
	Pool         bool
	PoolSettings pool.Settings
	// Apart has each VM restored, with a monitor that has an address space of its own making; else they are copied where that can be done.
	Apart bool

	// Networks tells whether containers are connected to networks, Streams whether these are an ordinary user's for root, too.
	Networks, Streams bool

	// IdleTimeout ends the daemon after so long without a connection and with nothing to keep; 0 never.
	IdleTimeout time.Duration

	Log             *slog.Logger
	Version, Commit string
}

// daemonFlags are the flags of `cradle daemon`, as given.
type daemonFlags struct {
	host, root, run, guest, pool, copies, networks, logLevel, logFormat string
	poolMemory                                                          opts.MemBytes
	idleTimeout                                                         time.Duration
}

// daemonFunc runs the daemon until ctx ends, or the daemon has reason to.
type daemonFunc func(ctx context.Context, c daemonConfig) error

func newDaemonCommand(run daemonFunc) *cobra.Command {
	var f daemonFlags
	cmd := &cobra.Command{
		Use:   "daemon [OPTIONS]",
		Short: "Run the node daemon",
		Long: "Run the node daemon in the foreground, until SIGTERM.\n" +
			"The other commands start one on demand; a system service is for daemons that begin with the machine.",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config(os.Getenv, os.Geteuid(), os.Stderr)
			if err != nil {
				return err
			}
			return daemonExit(cmd.Context(), run(cmd.Context(), c))
		},
		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.host, "host", "", "Socket to listen on (default: cradle.sock in the runtime directory)")
	flags.StringVar(&f.root, "root", "", "Directory of images and state (overrides CRADLE_ROOT)")
	flags.StringVar(&f.run, "run", "", "Directory of sockets and runtime files (overrides CRADLE_RUN)")
	flags.StringVar(&f.guest, "guest", "", "Directory of the guest's kernel and initrd (overrides CRADLE_GUEST)")
	flags.StringVar(&f.pool, "pool", "", `Virtual machines of each size in demand to keep ready (overrides CRADLE_POOL): a number, or "MIN-MAX" (default "2-16"), within which it follows demand; "restore": none, but start from templates; "off": every container boots its machine`)
	flags.Var(&f.poolMemory, "pool-memory", "Host's memory for what is kept ready (default: an eighth of it)")
	flags.StringVar(&f.copies, "pool-copies", "", `Virtual machines under software emulation (overrides CRADLE_POOL_COPIES): "auto": copied from one that is frozen, which takes less time and memory; "off": restored, each with an address space layout of its monitor's own (default "auto")`)
	flags.StringVar(&f.networks, "networks", "", `Networks of containers (overrides CRADLE_NETWORKS): "auto": bridges of the kernel's for root, a stack of the daemon's own for others; "user": the latter for root, too; "none" (default "auto")`)
	flags.DurationVar(&f.idleTimeout, "idle-timeout", 0, "End after so long without connections and containers (0: never)")
	flags.StringVar(&f.logLevel, "log-level", "info", `Least level to log ("debug", "info", "warn", "error")`)
	flags.StringVar(&f.logFormat, "log-format", "text", `Format of the log ("text", "json")`)
	return cmd
}

// config checks the flags and completes them from the environment.
func (f daemonFlags) config(getenv env, uid int, log io.Writer) (daemonConfig, error) {
	// A flag wins over the variable of the same meaning.
	get := func(name string) string {
		given := map[string]string{envRoot: f.root, envRun: f.run, envGuest: f.guest, envPool: f.pool, envCopies: f.copies, envNetworks: f.networks}[name]
		if given != "" {
			return given
		}
		return getenv(name)
	}
	c := daemonConfig{IdleTimeout: f.idleTimeout, Version: version.Version, Commit: version.GitCommit}
	var err error
	if c.Log, err = newLogger(f.logLevel, f.logFormat, log); err != nil {
		return c, err
	}
	if c.Root, err = rootDir(get, uid); err != nil {
		return c, err
	}
	if c.Run, err = runDir(get, uid); err != nil {
		return c, err
	}
	executable, err := os.Executable()
	if err != nil {
		return c, err
	}
	if c.Guest, err = guestDir(get, executable); err != nil {
		c.Log.Warn("containers cannot start", "reason", err)
	}
	if c.Pool, c.PoolSettings, err = poolSettings(get(envPool)); err != nil {
		return c, err
	}
	c.PoolSettings.Memory = f.poolMemory.Value()
	switch v := get(envCopies); v {
	case "", "auto":
	case "off":
		c.Apart = true
	default:
		return c, fmt.Errorf("invalid --pool-copies %q: it is auto or off", v)
	}
	switch v := get(envNetworks); v {
	case "", "auto":
		c.Networks = true
	case "user":
		c.Networks, c.Streams = true, true
	case "none":
	default:
		return c, fmt.Errorf("invalid --networks %q: it is auto, user or none", v)
	}
	if c.IdleTimeout < 0 {
		return c, fmt.Errorf("invalid --idle-timeout %s: it must not be negative", c.IdleTimeout)
	}
	c.Socket = filepath.Join(c.Run, socketName)
	if f.host != "" {
		path, ok := strings.CutPrefix(f.host, "unix://")
		if !ok && !strings.HasPrefix(f.host, "/") || !filepath.IsAbs(path) {
			return c, fmt.Errorf("invalid --host %q: the daemon listens on unix:///path/to/socket only", f.host)
		}
		c.Socket = path
	}
	if len(c.Socket)+len(newSocketSuffix) > maxSocketPath {
		return c, fmt.Errorf("the socket's path is too long for the system: %s", c.Socket)
	}
	return c, nil
}

// poolSettings reads --pool and CRADLE_POOL.
func poolSettings(text string) (on bool, s pool.Settings, err error) {
	switch text {
	case "":
		return true, pool.Settings{Min: pool.DefaultMin, Max: pool.DefaultMax}, nil
	case "off", "0":
		return false, s, nil
	case "restore":
		return true, s, nil
	}
	low, high, ranged := strings.Cut(text, "-")
	if s.Min, err = strconv.Atoi(low); err == nil {
		if s.Max = s.Min; ranged {
			s.Max, err = strconv.Atoi(high)
		}
	}
	if err != nil || s.Max < 1 || s.Check() != nil {
		return false, pool.Settings{}, fmt.Errorf(`invalid --pool %q: a number up to %d, two such with "-" between, "restore" or "off"`, text, pool.MaxReady)
	}
	return true, s, nil
}

func newLogger(level, format string, w io.Writer) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("invalid --log-level %q: one of debug, info, warn, error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("invalid --log-format %q: one of text, json", format)
}

// daemonExit makes an end on request the success it is.
func daemonExit(ctx context.Context, err error) error {
	if signalOf(ctx) != 0 && (errors.Is(err, context.Canceled) || errors.As(err, new(signalled))) {
		return nil
	}
	return err
}

// announceReady tells whoever started the daemon that its socket answers: the command line through a pipe,
// systemd through its notification socket.
func announceReady(getenv env) error {
	if fd := getenv(envReadyFD); fd != "" {
		n, err := strconv.Atoi(fd)
		if err != nil || n < 3 {
			return fmt.Errorf("invalid %s=%q", envReadyFD, fd)
		}
		pipe := os.NewFile(uintptr(n), "ready")
		_, err = io.WriteString(pipe, readyWord)
		// A starter that has gone meanwhile is no reason to end.
		_, _ = err, pipe.Close()
	}
	if path := getenv("NOTIFY_SOCKET"); path != "" {
		conn, err := net.Dial("unixgram", path)
		if err != nil {
			return fmt.Errorf("notify systemd: %w", err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "READY=1"); err != nil {
			return fmt.Errorf("notify systemd: %w", err)
		}
	}
	return nil
}
