package launch

import (
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Error is a step of the child that failed. Step "exec" means that everything before it went well.
type Error struct {
	Step  string
	Errno unix.Errno
}

func (e *Error) Error() string { return e.Step + ": " + e.Errno.Error() }

func (e *Error) Unwrap() error { return e.Errno }

// program is the list of steps and the memory they point to. Go's collector does not see the pointers inside
// steps, so keep holds all of them.
type program struct {
	steps []step
	names []string
	keep  []any
	links []link
	err   error
}

// usual is how many steps, and pieces of memory, a program mostly has at most.
const usual = 32

func newProgram() *program {
	return &program{steps: make([]step, 0, usual), names: make([]string, 0, usual), keep: make([]any, 0, usual)}
}

// link hands the result of one step to a later one as its first argument.
type link struct{ from, to int }

// resolve makes the links once no step will move in memory any more.
func (p *program) resolve() {
	for _, l := range p.links {
		p.steps[l.from].save = &p.steps[l.to].args[0]
	}
}

// add appends a step that must succeed.
func (p *program) add(name string, nr uintptr, args ...uintptr) {
	p.try(name, nil, nr, args...)
}

// try appends a step for which some errors are no failure.
func (p *program) try(name string, allow []unix.Errno, nr uintptr, args ...uintptr) {
	s := step{nr: nr}
	copy(s.args[:], args)
	for i := range s.allow {
		if i < len(allow) {
			s.allow[i] = uintptr(allow[i])
		}
	}
	p.steps = append(p.steps, s)
	p.names = append(p.names, name)
}

// str returns the address of s as a C string; the empty string is a pointer to a zero byte.
func (p *program) str(s string) uintptr {
	if strings.IndexByte(s, 0) >= 0 {
		p.err = fmt.Errorf("string with a zero byte: %.40q", s)
		return 0
	}
	b := make([]byte, len(s)+1)
	copy(b, s)
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// optional is str, with a null pointer for the empty string.
func (p *program) optional(s string) uintptr {
	if s == "" {
		return 0
	}
	return p.str(s)
}

// strs returns the address of a C array of strings that ends with a null pointer.
func (p *program) strs(list []string) uintptr {
	arr := make([]uintptr, len(list)+1)
	for i, s := range list {
		arr[i] = p.str(s)
	}
	p.keep = append(p.keep, arr)
	return uintptr(unsafe.Pointer(&arr[0]))
}

// hold keeps v, a pointer, alive with the program and returns its address.
func hold[T any](p *program, v *T) uintptr {
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(v))
}

// held is hold for a slice; an empty one is a null pointer.
func held[T any](p *program, v []T) uintptr {
	if len(v) == 0 {
		return 0
	}
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(&v[0]))
}
