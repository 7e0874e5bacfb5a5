package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
)

var all = ReadOptions{Tail: -1, Stdout: true, Stderr: true}

func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func text(t testing.TB, l *Log, o ReadOptions) string {
	t.Helper()
	var b strings.Builder
	if err := l.Read(t.Context(), o, func(r Record) error { b.Write(r.Data); return nil }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func add(t testing.TB, l *Log, stream byte, data string) {
	t.Helper()
	if err := l.Append(stream, []byte(data), time.Now(), l.Offset()+api.OutputHeaderSize+uint64(len(data))); err != nil {
		t.Fatal(err)
	}
}

func TestLines(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	long := strings.Repeat("x", MaxLine+5)
	add(t, l, api.Stdout, "one\ntwo\nthr")
	add(t, l, api.Stderr, "err\n")
	add(t, l, api.Stdout, "ee\n"+long+"\n")
	if err := l.Append(api.Stdout, nil, time.Now(), 99999); err != nil || l.Offset() != 99999 {
		t.Error(err, l.Offset())
	}
	type row struct {
		n                  int
		partial, continues bool
	}
	var got []row
	if err := l.Read(t.Context(), all, func(r Record) error {
		got = append(got, row{len(r.Data), r.Partial, r.Continues})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []row{{4, false, false}, {4, false, false}, {3, true, false}, {4, false, false}, {3, false, true}, {MaxLine, true, false}, {6, false, true}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	if s := text(t, l, ReadOptions{Tail: -1, Stdout: true}); s != "one\ntwo\nthree\n"+long+"\n" {
		t.Errorf("%.60q", s)
	}
	for n, want := range map[int]string{0: "", 1: long + "\n", 2: "err\n" + long + "\n", 3: "three\nerr\n" + long + "\n"} {
		if n == 3 {
			want = "threrr\nee\n" + long + "\n" // pieces in the order they came
		}
		if s := text(t, l, ReadOptions{Tail: n, Stdout: true, Stderr: true}); s != want {
			t.Errorf("tail %d: %.60q, want %.60q", n, s, want)
		}
	}
}

func TestSinceUntil(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	t0 := time.Unix(1000, 0)
	for i := range 10 {
		if err := l.Append(api.Stdout, fmt.Appendf(nil, "%d\n", i), t0.Add(time.Duration(i)*time.Second), uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if s := text(t, l, ReadOptions{Tail: -1, Stdout: true, Since: t0.Add(3 * time.Second), Until: t0.Add(5 * time.Second)}); s != "3\n4\n5\n" {
		t.Errorf("%q", s)
	}
	if s := text(t, l, ReadOptions{Tail: 2, Stdout: true, Until: t0.Add(5 * time.Second)}); s != "4\n5\n" {
		t.Errorf("%q", s)
	}
	// The clock is put back.
	if err := l.Append(api.Stdout, []byte("early\n"), t0.Add(4*time.Second), 11); err != nil {
		t.Fatal(err)
	}
	if s := text(t, l, ReadOptions{Tail: -1, Stdout: true, Since: t0.Add(3 * time.Second), Until: t0.Add(5 * time.Second)}); s != "3\n4\n5\nearly\n" {
		t.Errorf("%q", s)
	}
	// A follower stops by itself at an Until to come.
	start := time.Now()
	if s := text(t, l, ReadOptions{Tail: 1, Stdout: true, Follow: true, Until: start.Add(50 * time.Millisecond)}); s != "early\n" || time.Since(start) < 50*time.Millisecond {
		t.Errorf("%q after %v", s, time.Since(start))
	}
}

// TestTornTail cuts a log at every byte: what Open finds is a prefix of whole Appends, Offset is theirs, and reading the
// journal on from there gives the whole output, nothing doubled.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	chunks := []string{"a\nb\nhalf", "er", " line\n", "\n", "x\ny\n" + strings.Repeat("z", 40)}
	var offsets []uint64
	var sizes []int64
	for _, c := range chunks {
		add(t, l, api.Stdout, c)
		offsets = append(offsets, l.Offset())
		sizes = append(sizes, l.size)
	}
	l.Close()
	whole, err := os.ReadFile(l.path(1))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range whole {
		for _, junk := range []string{"", strings.Repeat("\xff", 40)} {
			d := t.TempDir()
			if err := os.WriteFile(filepath.Join(d, "0000000000000001.log"), append(bytes.Clone(whole[:cut]), junk...), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(d, Options{})
			if err != nil {
				t.Fatal(err)
			}
			kept := 0
			for kept < len(chunks) && sizes[kept] <= int64(cut) {
				kept++
			}
			var want uint64
			if kept > 0 {
				want = offsets[kept-1]
			}
			if l.Offset() != want {
				t.Fatalf("cut at %d: offset %d, want %d", cut, l.Offset(), want)
			}
			for _, c := range chunks[kept:] {
				add(t, l, api.Stdout, c)
			}
			if s := text(t, l, all); s != strings.Join(chunks, "") {
				t.Fatalf("cut at %d: %q", cut, s)
			}
			// The state of open lines came back too.
			if s := text(t, l, ReadOptions{Tail: 1, Stdout: true}); s != strings.Repeat("z", 40) {
				t.Fatalf("cut at %d: tail %q", cut, s)
			}
			l.Close()
		}
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxSize: 1000, MaxFiles: 3})
	for i := range 500 {
		add(t, l, api.Stdout, fmt.Sprintf("%06d\n", i))
	}
	files, err := list(dir)
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	s := text(t, l, all)
	if !strings.HasSuffix(s, "000498\n000499\n") || len(s) < 7*50 {
		t.Errorf("%d bytes: %.40q", len(s), s)
	}
	for n := range len(s)/7 + 10 {
		want := s[max(0, len(s)-7*n):]
		if got := text(t, l, ReadOptions{Tail: n, Stdout: true}); got != want {
			t.Fatalf("tail %d: %q", n, got)
		}
	}
	off := l.Offset()
	l.Close()
	if err := l.Append(api.Stdout, []byte("x"), time.Now(), 1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if got := text(t, l, all); got != s {
		t.Error("a closed log reads differently")
	}
	// A rotation that a crash interrupted: the next file is there, without a whole header.
	if err := os.WriteFile(l.path(l.last+1), []byte(fileMagic), 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, Options{MaxSize: 1000, MaxFiles: 3})
	if l.Offset() != off || text(t, l, all) != s {
		t.Error("reopening changed the log")
	}
	if err := l.Restart(time.Now()); err != nil || l.Offset() != 0 {
		t.Error(err, l.Offset())
	}
	l.Close()
	if l = open(t, dir, Options{}); l.Offset() != 0 || text(t, l, all) != s {
		t.Error("the restart was forgotten")
	}
}

func TestRestartBeginsALine(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	add(t, l, api.Stdout, "no newline")
	if err := l.Restart(time.Now()); err != nil {
		t.Fatal(err)
	}
	add(t, l, api.Stdout, "second\n")
	if s := text(t, l, ReadOptions{Tail: 1, Stdout: true}); s != "second\n" {
		t.Errorf("%q", s)
	}
}

// TestFollow has readers follow a writer across many rotations; those that keep up see everything.
func TestFollow(t *testing.T) {
	l := open(t, t.TempDir(), Options{MaxSize: 4 << 10, MaxFiles: 1000})
	const lines = 5000
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			n := 0
			o := all
			o.Follow = true
			if err := l.Read(t.Context(), o, func(r Record) error {
				if want := fmt.Sprintf("%d\n", n); string(r.Data) != want {
					return fmt.Errorf("%q, want %q", r.Data, want)
				}
				n++
				return nil
			}); err != nil || n != lines {
				t.Errorf("%d lines: %v", n, err)
			}
		})
	}
	for i := range lines {
		add(t, l, api.Stdout, fmt.Sprintf("%d\n", i))
		if i%500 == 0 {
			time.Sleep(time.Millisecond) // let them come to the end and wait there
		}
	}
	l.Close()
	wg.Wait()
}

func TestFollowerFallsBehind(t *testing.T) {
	l := open(t, t.TempDir(), Options{MaxSize: 1 << 10, MaxFiles: 2})
	add(t, l, api.Stdout, "first\n")
	started, goOn, done := make(chan struct{}), make(chan struct{}), make(chan string, 1)
	go func() {
		var last string
		once := sync.OnceFunc(func() { close(started); <-goOn })
		o := all
		o.Follow = true
		if err := l.Read(t.Context(), o, func(r Record) error { once(); last = string(r.Data); return nil }); err != nil {
			t.Error(err)
		}
		done <- last
	}()
	<-started
	for i := range 1000 {
		add(t, l, api.Stdout, fmt.Sprintf("%d\n", i))
	}
	close(goOn)
	l.Close()
	if last := <-done; last != "999\n" {
		t.Errorf("%q", last)
	}
}

func TestFollowEnds(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	add(t, l, api.Stdout, "prompt> ")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- l.Read(ctx, ReadOptions{Tail: 0, Follow: true, Stdout: true}, func(r Record) error { got <- string(r.Data); return nil })
	}()
	// A follower of the end gets the rest of a line that is under way.
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		waiting = l.grown != nil
		l.mu.Unlock()
	}
	add(t, l, api.Stdout, "more")
	if s := <-got; s != "more" {
		t.Errorf("%q", s)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	stop := errors.New("stop")
	if err := l.Read(t.Context(), all, func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

func TestDamageInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxSize: 500, MaxFiles: 10})
	for i := range 50 {
		add(t, l, api.Stdout, fmt.Sprintf("%02d\n", i))
	}
	f, err := os.OpenFile(l.path(2), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 200); err != nil {
		t.Fatal(err)
	}
	f.Close()
	n := 0
	if err := l.Read(t.Context(), all, func(Record) error { n++; return nil }); !errors.Is(err, ErrCorrupt) || n < 30 || n >= 50 {
		t.Error(n, err)
	}
	for tail := range 60 {
		if err := l.Read(t.Context(), ReadOptions{Tail: tail, Stdout: true}, func(Record) error { return nil }); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Error(tail, err)
		}
	}
}

func FuzzGarbage(f *testing.F) {
	dir := f.TempDir()
	l, err := Open(dir, Options{})
	if err != nil {
		f.Fatal(err)
	}
	add(f, l, api.Stdout, "a\nb\nc")
	add(f, l, api.Stderr, "d\n")
	l.Close()
	good, err := os.ReadFile(l.path(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, 60, byte(1))
	f.Add([]byte{}, 0, byte(0))
	f.Fuzz(func(t *testing.T, data []byte, at int, x byte) {
		if at >= 0 && at < len(data) {
			data = bytes.Clone(data)
			data[at] ^= x
		}
		d := t.TempDir()
		for _, name := range []string{"0000000000000007.log", "0000000000000008.log"} {
			if err := os.WriteFile(filepath.Join(d, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(d, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for _, tail := range []int{-1, 0, 1, 3} {
			n := 0
			err := l.Read(t.Context(), ReadOptions{Tail: tail, Stdout: true, Stderr: true}, func(r Record) error { n += len(r.Data); return nil })
			if err != nil && !errors.Is(err, ErrCorrupt) || n > 2*len(data) {
				t.Fatal(n, err)
			}
		}
		add(t, l, api.Stdout, "end\n")
		if s := text(t, l, ReadOptions{Tail: 1, Stdout: true}); !strings.HasSuffix(s, "end\n") {
			t.Errorf("%q", s)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	line := []byte(strings.Repeat("x", 79) + "\n")
	for _, per := range []int{1, 100} {
		b.Run(fmt.Sprintf("%d lines a call", per), func(b *testing.B) {
			l := open(b, b.TempDir(), Options{})
			data := bytes.Repeat(line, per)
			now := time.Now()
			b.ReportAllocs()
			b.SetBytes(int64(len(line)))
			for i := 0; i < b.N; i += per {
				if err := l.Append(api.Stdout, data, now, uint64(i)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRead reads 500,000 lines, whole and their last ten.
func BenchmarkRead(b *testing.B) {
	l := open(b, b.TempDir(), Options{})
	data := bytes.Repeat([]byte(strings.Repeat("x", 79)+"\n"), 100)
	for i := range 5000 {
		if err := l.Append(api.Stdout, data, time.Now(), uint64(i)); err != nil {
			b.Fatal(err)
		}
	}
	for name, tail := range map[string]int{"all": -1, "tail 10": 10, "tail 100000": 100000} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Read(b.Context(), ReadOptions{Tail: tail, Stdout: true}, func(Record) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What a full disk has left of an entry is cut off before the next one, also where that could not be done at once.
func TestTornAppend(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	add(t, l, api.Stdout, "one\n")
	l.mu.Lock()
	if _, err := l.file.Write([]byte("half an entry")); err != nil {
		t.Fatal(err)
	}
	l.torn = true
	l.mu.Unlock()
	if got := text(t, l, all); got != "one\n" {
		t.Errorf("torn, it reads %q", got)
	}
	add(t, l, api.Stdout, "two\n")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := text(t, open(t, dir, Options{}), all); got != "one\ntwo\n" {
		t.Errorf("opened again, it reads %q", got)
	}
}

// A process that says nothing leaves nothing; who follows it hears its first word.
func TestSilence(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir, Options{})
	if err := errors.Join(l.Restart(time.Now()), l.Sync()); err != nil {
		t.Fatal(err)
	}
	read := func(o ReadOptions) (got string) {
		t.Helper()
		o.Stdout = true
		if err := l.Read(t.Context(), o, func(r Record) error {
			got += string(r.Data)
			return l.Close() // which ends who follows
		}); err != nil {
			t.Error(err)
		}
		return got
	}
	for _, tail := range []int{-1, 0, 1} {
		if got := read(ReadOptions{Tail: tail}); got != "" {
			t.Errorf("it says %q", got)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	heard := make(chan string)
	go func() { heard <- read(ReadOptions{Tail: -1, Follow: true}) }()
	if err := l.Append(api.Stdout, []byte("word\n"), time.Now(), 5); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "word\n" {
		t.Errorf("it says %q", got)
	}
	if l = open(t, dir, Options{}); l.Offset() != 5 {
		t.Errorf("offset %d", l.Offset())
	}
	l.Close()
	// Of a container that is removed nothing comes back.
	l = open(t, filepath.Join(dir, "gone", "log"), Options{})
	if err := l.Append(api.Stdout, []byte("word\n"), time.Now(), 5); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	l.Close()
	if got := read(ReadOptions{Tail: -1, Follow: true}); got != "" {
		t.Errorf("it says %q", got)
	}
}
