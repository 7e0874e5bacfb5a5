package api

import specs "github.com/opencontainers/runtime-spec/specs-go"

// Methods of the agent that concern a container's files and limits. All work in states created and running, so that a
// container that does not run is served by creating it and not starting it.
//
// The archives that the streaming methods carry are tar streams in chunks (package api/wire): the end of one is
// said, not concluded from the stream's, so that neither side takes a broken archive for a short one.
const (
	MethodStatPath = "statPath" // PathRequest → PathStat
	MethodFreeze   = "freeze"   // FreezeRequest → none; the container's processes stand still, or go on
	MethodUpdate   = "update"   // UpdateRequest → none

	// MethodArchive: PathRequest → PathStat, then guest → host an archive of what is at the path.
	MethodArchive = "archive"
	// MethodExport: ProcessRef → none, then guest → host an archive of the root file system without what is mounted
	// in it.
	MethodExport = "export"
	// MethodLayer: ProcessRef → none, then guest → host the changes as an OCI layer.
	MethodLayer = "layer"
	// MethodChanges: ProcessRef → none, then guest → host chunks of records: a byte of Change kinds, a path, a zero
	// byte.
	MethodChanges = "changes"
	// MethodExtract: ExtractRequest → none, then host → guest an archive, then guest → host the empty one, which says
	// how it went. That may come before all has been sent.
	MethodExtract = "extract"
)

// PathRequest names something in a container.
type PathRequest struct {
	ID   string `json:"id"`
	Path string `json:"path"` // relative is relative to the root
}

// PathStat describes what is at a path.
type PathStat struct {
	Name       string `json:"name"` // last element of the path asked for
	Size       int64  `json:"size"`
	Mode       uint32 `json:"mode"` // as in struct stat
	MtimeNanos int64  `json:"mtimeNanos"`
	LinkTarget string `json:"linkTarget,omitempty"` // of a symbolic link: where it leads in the end
}

// ExtractRequest unpacks an archive into a directory that is there.
type ExtractRequest struct {
	PathRequest
	// NoOverwriteDirNonDir refuses to put something else in a directory's place, or a directory in something else's.
	NoOverwriteDirNonDir bool `json:"noOverwriteDirNonDir,omitempty"`
	// Owner, docker's user[:group], owns everything extracted; empty: whoever the archive says.
	Owner string `json:"owner,omitempty"`
}

// Change kinds.
const (
	Modified byte = 'C'
	Added    byte = 'A'
	Deleted  byte = 'D'
)

// FreezeRequest stops or continues the container's processes.
type FreezeRequest struct {
	ID     string `json:"id"`
	Frozen bool   `json:"frozen"`
}

// UpdateRequest changes limits. What Resources leaves out stays as it is; Devices must be empty.
type UpdateRequest struct {
	ID        string                `json:"id"`
	Resources *specs.LinuxResources `json:"resources"`
}
