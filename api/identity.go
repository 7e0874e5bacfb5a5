package api

// MethodIdentify (IdentifyRequest → IdentifyResult) makes a container that was saved while it ran another one. It is called after
// MethodConfigure, while the container's processes stand still (MethodFreeze), so that none of them sees the one it
// was. CodeFailedPrecondition when its first process does not run. Execs of the container, at whose other end nobody is any more, are killed and forgotten.
const MethodIdentify = "identify"

// IdentifyRequest says who a restored container is. The zero value of a field leaves it as it is.
type IdentifyRequest struct {
	ID    string `json:"id"`              // as it is known now
	NewID string `json:"newId,omitempty"` // as it is to be known from now on

	Hostname  string `json:"hostname,omitempty"`
	BootID    string `json:"bootId,omitempty"`    // a UUID: what /proc/sys/kernel/random/boot_id shows in the container
	MachineID string `json:"machineId,omitempty"` // 32 hex digits: put in the place of an /etc/machine-id that is there
	// Env is what execs have that are told of none, as the new one's first process would have it.
	Env []string `json:"env"`
	// Files replace what CreateRequest.Files gave the same paths.
	Files []File `json:"files,omitempty"`
}

// IdentifyResult tells where the container's output stands.
type IdentifyResult struct {
	OutputEnd uint64 `json:"outputEnd"` // offset of the first process's journal after all it has printed so far
}
