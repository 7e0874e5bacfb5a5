package node

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cradlevm/cradle/api"
)

// psColumn is a column that top can show.
type psColumn struct {
	title string
	value func(api.Process) string
}

// psColumns are those of ps that the guest's account of a process can fill, by ps's names for them.
func psColumns() map[string]psColumn {
	args := func(p api.Process) string { return clean(p.Command) }
	return map[string]psColumn{
		"pid":     {"PID", func(p api.Process) string { return strconv.Itoa(p.PID) }},
		"ppid":    {"PPID", func(p api.Process) string { return strconv.Itoa(p.PPID) }},
		"uid":     {"UID", func(p api.Process) string { return strconv.FormatUint(uint64(p.UID), 10) }},
		"user":    {"USER", func(p api.Process) string { return userName(p.UID) }},
		"tty":     {"TT", func(p api.Process) string { return clean(p.TTY) }},
		"time":    {"TIME", func(p api.Process) string { return psTime(p.CPUTime) }},
		"stime":   {"STIME", func(p api.Process) string { return time.Unix(0, p.Start).Format("15:04") }},
		"comm":    {"COMMAND", func(p api.Process) string { return clean(programName(p.Command)) }},
		"args":    {"COMMAND", args},
		"command": {"COMMAND", args},
		"cmd":     {"CMD", args},
	}
}

// psFull are the columns of `ps -ef`, which is what docker's top shows when asked for nothing else.
func psFull() []psColumn {
	c := psColumns()
	user, tty := c["user"], c["tty"]
	user.title, tty.title = "UID", "TTY"
	return []psColumn{user, c["pid"], c["ppid"], {"C", func(api.Process) string { return "0" }}, c["stime"], tty, c["time"], c["cmd"]}
}

// psLayout reads the ps options that top knows: -ef, and a list of columns with -o. docker needs the PID among them
// to find the container's processes in the host's list; here all are the container's, but a script should not work
// with one and not with the other.
func psLayout(options string) ([]psColumn, error) {
	words := strings.Fields(options)
	if slices.Equal(words, []string{"-ef"}) || len(words) == 0 {
		return psFull(), nil
	}
	rest, listed := strings.CutPrefix(strings.TrimSpace(strings.TrimPrefix(strings.Join(words, " "), "-e")), "-o")
	if !listed {
		rest, listed = strings.CutPrefix(words[0], "-eo")
		rest += " " + strings.Join(words[1:], " ")
	}
	if !listed {
		return nil, unsupported("top with ps options %q is not supported: only -ef and -o with a list of columns are", options)
	}
	known := psColumns()
	var layout []psColumn
	pid := false
	for _, name := range strings.FieldsFunc(rest, func(r rune) bool { return r == ',' || r == ' ' }) {
		column, ok := known[name]
		if !ok {
			return nil, unsupported("top with ps column %q is not supported", name)
		}
		pid = pid || name == "pid"
		layout = append(layout, column)
	}
	if !pid {
		return nil, invalid("Couldn't find PID field in ps output")
	}
	return layout, nil
}

// psTime is CPU time as ps prints it.
func psTime(nanos int64) string {
	d := time.Duration(nanos)
	return fmt.Sprintf("%02d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
}

// userName is ps's: the guest's users have no names here but one.
func userName(uid uint32) string {
	if uid == 0 {
		return "root"
	}
	return strconv.FormatUint(uint64(uid), 10)
}

// programName is the first word of a command, without its directory.
func programName(command string) string {
	first, _, _ := strings.Cut(command, " ")
	return path.Base(first)
}
