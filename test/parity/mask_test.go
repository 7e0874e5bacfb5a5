package parity

import (
	"regexp"
	"strings"
	"testing"
)

// mask is what a row hides beyond ids, times and sizes.
type mask int

const (
	numbers  mask = 1 << iota // any number: process ids, counts that depend on the machine
	imageIDs                  // ids of images that are made by the command, at their time
	sorted                    // the order of lines
)

// pattern is replaced by what it stands for.
type pattern struct {
	re *regexp.Regexp
	by string
}

// everywhere is masked in all outputs: ids of containers and execs (an image's id is its content's, and has to be
// equal), times, durations, sizes. Where runc is named as what failed, cradle has no runc to name: the frame around the
// sentence is masked, the sentence is not.
func everywhere() []pattern {
	return []pattern{
		{regexp.MustCompile(`\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|[+-]\d\d:?\d\d)( UTC)?)?`), "<time>"},
		{regexp.MustCompile(`(?i)\b(about (a|an)|less than a|\d+) (second|minute|hour|day|week|month|year)s?\b`), "<duration>"},
		{regexp.MustCompile(`\b\d+(\.\d+)?([kKMGT]i?)?B\b`), "<size>"},
		{regexp.MustCompile(`failed to create shim task: OCI runtime create failed: runc create failed: |failed to create task for container: `), "<runtime>: "},
		{regexp.MustCompile(`(?m): unknown(\.?\r?)$`), "$1"},
		{regexp.MustCompile(`(^|[^:0-9a-f])([0-9a-f]{64}|[0-9a-f]{12})\b`), "$1<id>"},
	}
}

// hide masks one output of a side whose own directory is dir.
func (m mask) hide(text, dir string) string {
	text = strings.ReplaceAll(text, dir, "{dir}")
	// After a start that failed, docker's older command lines say this or not: two answers of the daemon's race in them.
	text = regexp.MustCompile(`(?m)^time=.* msg="error waiting for container: context canceled" *\n`).ReplaceAllString(text, "")
	// As they say this or not when they ask for a size while the container's start is slow.
	text = regexp.MustCompile(`(?m)^failed to resize tty, using default size\r?\n`).ReplaceAllString(text, "")
	// Today's says this or not of a copy that fails before its archive is written.
	text = regexp.MustCompile(`(?m)^time=.* msg="Can't (add file|close tar writer).*closed pipe" *\n`).ReplaceAllString(text, "")
	for _, p := range everywhere() {
		text = p.re.ReplaceAllString(text, p.by)
	}
	if m&imageIDs != 0 {
		text = regexp.MustCompile(`sha256:[0-9a-f]{64}`).ReplaceAllString(text, "sha256:<id>")
	}
	if m&numbers != 0 {
		text = regexp.MustCompile(`\d+(\.\d+)?`).ReplaceAllString(text, "<n>")
	}
	// Between 20.10 and now docker has begun to begin its errors with small letters, and cradle speaks today's.
	text = regexp.MustCompile(`Error response from daemon: .*`).ReplaceAllStringFunc(text, strings.ToLower)
	// Columns are as wide as what they hold was before it was masked.
	text = regexp.MustCompile(`[ \t]{2,}`).ReplaceAllString(text, "  ")
	text = regexp.MustCompile(`[ \t]+(\r?\n)`).ReplaceAllString(text, "$1")
	if m&sorted != 0 {
		text = sortLines(text)
	}
	return text
}

func TestMask(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string]string{
		id + "\n":                                 "<id>\n",
		"sha256:" + id + "\n":                     "sha256:" + id + "\n",
		id[:12] + "   busybox":                    "<id>  busybox",
		"Up 3 seconds":                            "Up <duration>",
		"Exited (137) Less than a second ago":     "Exited (137) <duration> ago",
		"2026-11-22T03:39:20.156753514Z line":     "<time> line",
		"busybox  1.93MB":                         "busybox  <size>",
		"Error response from daemon: Container x": "error response from daemon: container x",
		"exit 12, 7 lines":                        "exit 12, 7 lines",
		"in /tmp/x/env":                           "in {dir}/env",
	} {
		if got := mask(0).hide(in, "/tmp/x"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := (numbers | sorted).hide("b 1.5\na 20\n", "/tmp/x"); got != "a <n>\nb <n>\n" {
		t.Errorf("%q", got)
	}
}
