// Package dockerapi serves the Docker Engine API over HTTP from a Backend, and nothing else: no state, no policy.
//
// Errors: a Backend answers with the classes of github.com/containerd/errdefs (ErrNotFound, ErrInvalidArgument,
// ErrConflict, ErrAlreadyExists, ErrFailedPrecondition, ErrNotImplemented, ErrUnavailable, ErrPermissionDenied,
// ErrUnauthenticated) or ErrNotModified; one mapper turns them into docker's HTTP status codes. The message of an
// error reaches the user as it is, less the class's own text at its end: fmt.Errorf("No such image: %s: %w", ref,
// errdefs.ErrNotFound) reads "No such image: x".
package dockerapi

import (
	"context"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotModified is the answer to starting a started container and to stopping a stopped one: docker's 304, which
// its clients take for success. It is errdefs' own class, named here because no other API needs it.
var ErrNotModified error = errdefs.ErrNotModified

// Filters are the API's filters: key → set of values, every value true. The names were checked against those that
// docker accepts at the endpoint; a Backend refuses the ones it does not know with ErrNotImplemented.
type Filters map[string]map[string]bool

// Progress sends one message of a JSON progress stream to the client.
type Progress func(jsonstream.Message)

// Backend is the daemon as the API needs it. Names are a container's name, id or unambiguous id prefix.
type Backend interface {
	SystemBackend
	ContainerBackend
	FileBackend
	ExecBackend
	ImageBackend
	NetworkBackend
	VolumeBackend
}

// AuthBackend is an optional power of a Backend, found by assertion: it checks credentials for docker login.
type AuthBackend interface {
	Auth(ctx context.Context, auth registry.AuthConfig) (registry.AuthResponse, error)
}

// PushBackend is an optional power of a Backend, found by assertion: it sends an image to a registry; all tags of a ref
// that has none.
type PushBackend interface {
	ImagePush(ctx context.Context, ref reference.Named, auth *registry.AuthConfig, progress Progress) error
}

// SystemBackend answers about the daemon itself.
type SystemBackend interface {
	Info(ctx context.Context) (system.Info, error)
	Version(ctx context.Context) (system.VersionResponse, error)
	// Events calls send with every event from since on (zero: from now) until until (zero: for ever),
	// ctx's end, or send's error.
	Events(ctx context.Context, since, until time.Time, filters Filters, send func(events.Message) error) error
	// DiskUsage counts everything, items included: the API leaves out what was not asked for.
	DiskUsage(ctx context.Context) (system.DiskUsage, error)
}

// ContainerBackend is the containers' part.
type ContainerBackend interface {
	// ContainerCreate: Config, HostConfig and NetworkingConfig are never nil.
	ContainerCreate(ctx context.Context, name string, platform *ocispec.Platform, r container.CreateRequest) (container.CreateResponse, error)
	// ContainerStart of a running container is ErrNotModified. docker's command line makes exit code 127 of an
	// ErrInvalidArgument that says "executable file not found" or "no such file or directory", 126 of one that
	// says "permission denied", 125 of anything else. A failed start ends attachments and waits, and removes the
	// container if AutoRemove is set: docker run waits for that.
	ContainerStart(ctx context.Context, name string) error
	// ContainerStop: timeout nil is the container's own (default 10 s); negative waits for ever. Of a stopped
	// container it is ErrNotModified.
	ContainerStop(ctx context.Context, name, signal string, timeout *int) error
	ContainerRestart(ctx context.Context, name, signal string, timeout *int) error
	ContainerKill(ctx context.Context, name, signal string) error
	ContainerPause(ctx context.Context, name string) error
	ContainerUnpause(ctx context.Context, name string) error
	ContainerRemove(ctx context.Context, name string, force, volumes bool) error
	ContainerRename(ctx context.Context, name, to string) error
	ContainerResize(ctx context.Context, name string, height, width uint) error
	ContainerList(ctx context.Context, all bool, limit int, size bool, filters Filters) ([]container.Summary, error)
	ContainerInspect(ctx context.Context, name string, size bool) (container.InspectResponse, error)
	ContainerTop(ctx context.Context, name, psArgs string) (container.TopResponse, error)
	ContainerPrune(ctx context.Context, filters Filters) (container.PruneReport, error)
	// ContainerWait registers the wait before it returns, so that nothing is missed between this call and
	// the reading of the channel, which gets exactly one value. It ends with ctx.
	ContainerWait(ctx context.Context, name string, condition container.WaitCondition) (<-chan WaitResult, error)
	// ContainerAttach registers the attachment before it returns; serve then pumps until the container's output
	// ends, whatever the state of Stdin. ctx lasts until serve returns and ends early when the client hangs up;
	// when it ends with serve never called the attachment is released too.
	ContainerAttach(ctx context.Context, name string, o AttachOptions) (serve func(Streams) error, tty bool, err error)
	// ContainerLogs likewise checks first; serve writes the log.
	ContainerLogs(ctx context.Context, name string, o LogsOptions) (serve func(stdout, stderr io.Writer) error, tty bool, err error)
	// ContainerStats: one sample per call of send, the last one alone when stream is false.
	ContainerStats(ctx context.Context, name string, stream, oneShot bool, send func(container.StatsResponse) error) error
}

// WaitResult ends a wait.
type WaitResult struct {
	StatusCode int
	Err        error // the wait itself failed
}

// Streams are what an attach or exec start pumps. Stdin is nil when it was not asked for; Stdout and Stderr never
// are: output that was not asked for is discarded. With a terminal all output goes to Stdout. Stdin ends with
// io.EOF in every case: half-close, hang-up and the end of the call.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// AttachOptions of ContainerAttach.
type AttachOptions struct {
	Logs, Stream          bool
	Stdin, Stdout, Stderr bool
	DetachKeys            string
}

// LogsOptions of ContainerLogs. Tail below 0 means all.
type LogsOptions struct {
	Stdout, Stderr, Follow, Timestamps, Details bool
	Since, Until                                time.Time
	Tail                                        int
}

// FileBackend is the part of containers' files and limits. It works whether the container runs or not.
type FileBackend interface {
	// ContainerStatPath: ErrNotFound in docker's words when there is nothing, or no container.
	ContainerStatPath(ctx context.Context, name, path string) (container.PathStat, error)
	// ContainerArchive calls begin at most once, when nothing but the reading can go wrong any more, and writes the
	// archive to what begin returns.
	ContainerArchive(ctx context.Context, name, path string, begin func(container.PathStat) io.Writer) error
	// ContainerExtract unpacks an archive, compressed or not, into a directory that is there.
	ContainerExtract(ctx context.Context, name, path string, o ExtractOptions, r io.Reader) error
	ContainerChanges(ctx context.Context, name string) ([]container.FilesystemChange, error)
	ContainerExport(ctx context.Context, name string, w io.Writer) error
	// ContainerCommit makes an image of the container and returns its id.
	ContainerCommit(ctx context.Context, name string, o CommitOptions) (id string, err error)
	ContainerUpdate(ctx context.Context, name string, u container.UpdateConfig) (container.UpdateResponse, error)
}

// ExtractOptions of ContainerExtract.
type ExtractOptions struct {
	// NoOverwriteDirNonDir refuses to put something else in a directory's place, or a directory in something else's.
	NoOverwriteDirNonDir bool
	// CopyUIDGID gives what is extracted to the container's user; otherwise it belongs to whom the archive says.
	CopyUIDGID bool
}

// CommitOptions of ContainerCommit.
type CommitOptions struct {
	Reference       string // familiar form, with a tag; empty: the image gets no name
	Author, Comment string
	Changes         []string          // Dockerfile instructions
	Pause           bool              // the container stands still meanwhile
	Config          *container.Config // nil: the container's own
}

// ExecBackend is the execs' part.
type ExecBackend interface {
	ExecCreate(ctx context.Context, name string, r container.ExecCreateRequest) (id string, err error)
	// ExecStart starts the exec. Detached (streams nil) it returns at once; else when the process has ended
	// and its output is written. ready is called once the process is known to have started, before the first
	// byte is written: the moment to hijack the connection and to set Streams up. It is called at most once and
	// from the goroutine of ExecStart. A process that cannot be started (no such executable, not permitted) is
	// ErrInvalidArgument or ErrPermissionDenied, and ExecInspect answers exit code 127 or 126 from then on: docker
	// shows that error in the stream. ctx is as in ContainerAttach.
	ExecStart(ctx context.Context, id string, r container.ExecStartRequest, ready func() (Streams, error)) error
	// ExecInspect: OpenStdin, OpenStdout and OpenStderr are what ExecCreate asked to attach; the API reads them to
	// choose the Streams.
	ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error)
	ExecResize(ctx context.Context, id string, height, width uint) error
}

// ImageBackend is the images' part.
type ImageBackend interface {
	ImagePull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, progress Progress) error
	ImageImport(ctx context.Context, r io.Reader, ref, message string, changes []string, platform *ocispec.Platform, progress Progress) error
	ImageLoad(ctx context.Context, r io.Reader, quiet bool, progress Progress) error
	ImageSave(ctx context.Context, refs []string, w io.Writer) error
	ImageList(ctx context.Context, all bool, filters Filters) ([]image.Summary, error)
	ImageInspect(ctx context.Context, ref string) (image.InspectResponse, error)
	ImageHistory(ctx context.Context, ref string) ([]image.HistoryResponseItem, error)
	ImageRemove(ctx context.Context, ref string, force, noPrune bool) ([]image.DeleteResponse, error)
	ImageTag(ctx context.Context, ref, target string) error
	ImagePrune(ctx context.Context, filters Filters) (image.PruneReport, error)
}
