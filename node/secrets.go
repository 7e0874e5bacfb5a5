package node

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
)

// secretName finds names of variables whose values no warm image may hold.
var secretName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)pass(w|phrase|code|[_-]|$)|_pwd$|secret|token|credential|private|api_?key|access_?key|_key$|^key$|auth|cookie|dsn$|` +
		`connection_?str|jwt|bearer|mnemonic|webhook|signing`)
})

// secretText finds secrets in values and commands whatever they are called: a URL with a password; words like "Password=x" and options like
// "--requirepass x"; private keys in PEM; and tokens that AWS, GitHub, Slack and others make so that they are known, and those of RFC 7519.
var secretText = sync.OnceValue(func() *regexp.Regexp {
	const word = `(?:password|passwd|passphrase|pwd|secret|token|credentials?|api[_-]?key|access[_-]?key|private[_-]?key)`
	return regexp.MustCompile(`://[^\s/@:]*:[^\s/@]+@` +
		`|(?i:\b[\w-]*` + word + `["']?\s*[=:]\s*["']?[^\s"'])` +
		`|(?i:(?:^|\s)--?[\w-]*(?:` + word + `|pass)(?:[_-]\w+)*(?:[\s=]|$))` +
		`|-----BEGIN [A-Z ]*PRIVATE KEY` +
		`|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bxox[abeprs]-\w{8,}|\bsk[-_][\w-]{16,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.`)
})

// secretIn tells, without saying it, what of a container's configuration that is not its image's own may be a secret; empty when nothing does.
func secretIn(config container.Config, own dockerspec.DockerOCIImageConfig) string {
	for _, pair := range config.Env {
		name, value, _ := strings.Cut(pair, "=")
		if !slices.Contains(own.Env, pair) && (secretName().MatchString(name) || secretText().MatchString(value)) {
			return "its environment has " + strconv.Quote(name)
		}
	}
	command, ownCommand := slices.Concat(config.Entrypoint, config.Cmd), slices.Concat(own.Entrypoint, own.Cmd)
	probe, ownProbe := []string{config.Labels[warmReadyLabel]}, []string{}
	if config.Healthcheck != nil {
		probe = append(probe, config.Healthcheck.Test...)
	}
	if own.Healthcheck != nil {
		ownProbe = own.Healthcheck.Test
	}
	for _, part := range []struct {
		what       string
		words, own []string
	}{{"its command has", command, ownCommand}, {"its healthcheck, or readiness command, has", probe, ownProbe}} {
		for _, w := range part.words {
			if !slices.Contains(part.own, w) && secretText().MatchString(w) {
				return part.what + " what looks like a password or a key"
			}
		}
	}
	return ""
}
