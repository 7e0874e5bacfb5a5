package main

import (
	"runtime"
	"runtime/debug"

	"github.com/docker/cli/cli/version"
)

// product is what version and info call the client and the server.
const product = "cradle"

// setVersion completes docker's version variables, which `make build` fills by the linker and from which
// docker's commands print: a plain `go build` has what the toolchain recorded.
func setVersion() {
	version.PlatformName = product
	if version.Version != "unknown-version" {
		return
	}
	version.Version, version.GitCommit, version.BuildTime = "dev", "unknown", ""
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		version.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			version.GitCommit = s.Value[:min(12, len(s.Value))]
		case "vcs.time":
			version.BuildTime = s.Value
		}
	}
}

func userAgent() string { return "Cradle-Client/" + version.Version + " (" + runtime.GOOS + ")" }
