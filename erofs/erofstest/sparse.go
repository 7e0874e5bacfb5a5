package erofstest

import (
	"fmt"
	"io"
	"strings"
)

// run is a piece of a sparse file's data.
type run struct {
	off int64
	len int
}

// sparseShapes are the files that each format is tried with.
var sparseShapes = []struct {
	name string
	size int64
	runs []run
}{
	{"aligned", 1 << 20, []run{{0, 4096}, {65536, 8192}, {1<<20 - 4096, 4096}}},
	{"hole-at-end", 300_000, []run{{4096, 4096}, {131072, 512}}},
	{"all-hole", 123_456, nil},
	{"odd", 100_001, []run{{1, 10}, {700, 1000}, {50_000, 50_001}}},
	{"tail", 70_000, []run{{65536, 4464}}},
	{"many", 40 * 8192, manyRuns()},
	{"no-hole", 5000, []run{{0, 5000}}},
}

func manyRuns() (runs []run) {
	for i := range 40 {
		runs = append(runs, run{int64(i) * 8192, 512})
	}
	return runs
}

// sparse writes every shape in every format; archive/tar cannot, so headers are made by hand.
func (h *hard) sparse() {
	h.dir("sparse/", 0o755)
	if h.err == nil {
		h.err = h.tw.Flush()
	}
	for _, s := range sparseShapes {
		var data strings.Builder
		for i, r := range s.runs {
			data.WriteString(Pattern(r.len, uint32(i)))
		}
		h.oldSparse("sparse/old-"+s.name, s.size, s.runs, data.String())
		h.paxSparse("sparse/0.0-"+s.name, s.size, s.runs, data.String(), "0.0")
		h.paxSparse("sparse/0.1-"+s.name, s.size, s.runs, data.String(), "0.1")
		h.paxSparse("sparse/1.0-"+s.name, s.size, s.runs, data.String(), "1.0")
	}
}

func (h *hard) raw(b []byte) {
	if h.err == nil {
		_, h.err = h.w.Write(b)
	}
	if pad := -len(b) & 511; pad > 0 && h.err == nil {
		_, h.err = io.WriteString(h.w, strings.Repeat("\x00", pad))
	}
}

// Block makes a tar header block with a right checksum; edit may change it before.
func Block(name string, typ byte, size int64, edit func([]byte)) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], fmt.Sprintf("%011o\x00", epoch.Unix()))
	b[156] = typ
	copy(b[257:], "ustar\x0000")
	if edit != nil {
		edit(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// withEnd ends a map as GNU tar does where the file ends in a hole.
func withEnd(runs []run, size int64) []run {
	if n := len(runs); n == 0 || runs[n-1].off+int64(runs[n-1].len) < size {
		return append(runs[:n:n], run{size, 0})
	}
	return runs
}

func (h *hard) oldSparse(name string, size int64, runs []run, data string) {
	runs = withEnd(runs, size)
	pairs := func(b []byte, n int) (more byte) {
		for ; n > 0 && len(runs) > 0; n, runs = n-1, runs[1:] {
			copy(b, fmt.Sprintf("%011o\x00%011o\x00", runs[0].off, runs[0].len))
			b = b[24:]
		}
		if len(runs) > 0 {
			return 1
		}
		return 0
	}
	h.raw(Block(name, 'S', int64(len(data)), func(b []byte) {
		copy(b[257:], "ustar  \x00")
		b[482] = pairs(b[386:], 4)
		copy(b[483:], fmt.Sprintf("%011o\x00", size))
	}))
	for len(runs) > 0 {
		b := make([]byte, 512)
		b[504] = pairs(b, 21)
		h.raw(b)
	}
	h.raw([]byte(data))
}

func (h *hard) paxSparse(name string, size int64, runs []run, data, format string) {
	runs = withEnd(runs, size)
	var x strings.Builder
	rec := func(key string, value any) { x.WriteString(Record("GNU.sparse."+key, fmt.Sprint(value))) }
	switch format {
	case "0.0":
		rec("size", size)
		rec("numblocks", len(runs))
		for _, r := range runs {
			rec("offset", r.off)
			rec("numbytes", r.len)
		}
	case "0.1":
		rec("size", size)
		rec("numblocks", len(runs))
		var m []string
		for _, r := range runs {
			m = append(m, fmt.Sprintf("%d,%d", r.off, r.len))
		}
		rec("name", name)
		rec("map", strings.Join(m, ","))
	case "1.0":
		rec("major", 1)
		rec("minor", 0)
		rec("name", name)
		rec("realsize", size)
		m := fmt.Sprintln(len(runs))
		for _, r := range runs {
			m += fmt.Sprintf("%d\n%d\n", r.off, r.len)
		}
		data = m + strings.Repeat("\x00", -len(m)&511) + data
	}
	stored := name
	if format != "0.0" {
		stored = strings.Replace(name, "/", "/GNUSparseFile.0/", 1)
	}
	h.raw(Block(stored, 'x', int64(x.Len()), nil))
	h.raw([]byte(x.String()))
	h.raw(Block(stored, '0', int64(len(data)), nil))
	h.raw([]byte(data))
}

// Record makes a pax record.
func Record(key, value string) string {
	for n := len(key) + len(value) + 3; ; n++ {
		if s := fmt.Sprintf("%d %s=%s\n", n, key, value); len(s) == n {
			return s
		}
	}
}
