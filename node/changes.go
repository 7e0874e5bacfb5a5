package node

import (
	"encoding/json"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// applyChanges applies the Dockerfile instructions of docker import's and commit's --change to an image's config.
func applyChanges(config *dockerspec.DockerOCIImageConfig, changes []string) error {
	entrypoint, cmd := false, false
	for _, change := range changes {
		word, rest, _ := strings.Cut(strings.TrimSpace(change), " ")
		rest = strings.TrimSpace(rest)
		if word == "" {
			continue
		}
		if rest == "" {
			return invalid("%s needs an argument in --change %q", word, change)
		}
		word = strings.ToUpper(word)
		if err := applyChange(config, word, rest); err != nil {
			return err
		}
		entrypoint, cmd = entrypoint || word == "ENTRYPOINT", cmd || word == "CMD"
	}
	if entrypoint && !cmd {
		config.Cmd = nil // it was the arguments of another program
	}
	return nil
}

func applyChange(config *dockerspec.DockerOCIImageConfig, word, rest string) error {
	set := func(m map[string]struct{}, keys []string, suffix string) map[string]struct{} {
		if m == nil {
			m = map[string]struct{}{}
		}
		for _, k := range keys {
			if suffix != "" && !strings.Contains(k, "/") {
				k += suffix
			}
			m[k] = struct{}{}
		}
		return m
	}
	switch word {
	case "CMD":
		config.Cmd = commandOf(rest)
	case "ENTRYPOINT":
		config.Entrypoint = commandOf(rest)
	case "ENV":
		for _, pair := range pairs(rest) {
			config.Env = slices.DeleteFunc(config.Env, func(e string) bool { return strings.HasPrefix(e, pair[0]+"=") })
			config.Env = append(config.Env, pair[0]+"="+pair[1])
		}
	case "LABEL":
		if config.Labels == nil {
			config.Labels = map[string]string{}
		}
		for _, pair := range pairs(rest) {
			config.Labels[pair[0]] = pair[1]
		}
	case "EXPOSE":
		config.ExposedPorts = set(config.ExposedPorts, strings.Fields(rest), "/tcp")
	case "VOLUME":
		var list []string
		if json.Unmarshal([]byte(rest), &list) != nil {
			list = strings.Fields(rest)
		}
		config.Volumes = set(config.Volumes, list, "")
	case "USER":
		config.User = rest
	case "WORKDIR":
		config.WorkingDir = rest
	case "STOPSIGNAL":
		config.StopSignal = rest
	case "ONBUILD":
		config.OnBuild = append(config.OnBuild, rest)
	default:
		return invalid("%s is not a valid change command", strings.ToLower(word))
	}
	return nil
}

// commandOf reads the exec form (a JSON list) or the shell form.
func commandOf(s string) []string {
	var list []string
	if json.Unmarshal([]byte(s), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", s}
}

// pairs reads `k=v k2="v 2"` or the old form `k v`.
func pairs(s string) [][2]string {
	if first, _, _ := strings.Cut(s, " "); !strings.Contains(first, "=") {
		k, v, _ := strings.Cut(s, " ")
		return [][2]string{{k, strings.TrimSpace(v)}}
	}
	var out [][2]string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		k, rest, _ := strings.Cut(s, "=")
		var v strings.Builder
		quote := byte(0)
		i := 0
		for ; i < len(rest) && (quote != 0 || rest[i] != ' '); i++ {
			switch b := rest[i]; {
			case quote != 0 && b == quote:
				quote = 0
			case quote == 0 && (b == '"' || b == '\''):
				quote = b
			case b == '\\' && i+1 < len(rest):
				i++
				v.WriteByte(rest[i])
			default:
				v.WriteByte(b)
			}
		}
		out = append(out, [2]string{strings.TrimSpace(k), v.String()})
		s = rest[i:]
	}
	return out
}
