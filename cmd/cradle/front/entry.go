package front

import (
	"syscall"
	"unsafe"
)

// start does the command of the program if it is one of those that are done here, and ends the program. When it is not,
// nothing has happened, and it returns. stack is as the kernel hands it over: the number of arguments, they, nil, the
// environment, nil.
//
//lint:ignore U1000 the entry calls it
func start(stack *uintptr, room *[64 << 10]byte) {
	n := int(*stack)
	at := (**byte)(unsafe.Add(unsafe.Pointer(stack), unsafe.Sizeof(*stack)))
	var args [maxArgs]string
	if n < 2 || n > maxArgs {
		return
	}
	for i, word := range unsafe.Slice(at, n) {
		args[i] = text(word)
	}
	at = (**byte)(unsafe.Add(unsafe.Pointer(at), uintptr(n+1)*unsafe.Sizeof(at)))
	vars := 0
	for *(**byte)(unsafe.Add(unsafe.Pointer(at), uintptr(vars)*unsafe.Sizeof(at))) != nil {
		vars++
	}
	env := environment(unsafe.Slice(at, vars))
	if code, done := run(args[1:n], env, room[:]); done {
		for {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(code), 0, 0)
		}
	}
}

// maxArgs bounds the command's words.
const maxArgs = 128

// environment is the kernel's: words NAME=VALUE.
type environment []*byte

// get is the value of a variable, the first of that name as it is in package os; empty if there is none.
func (e environment) get(name string) string {
	for _, word := range e {
		line := text(word)
		if len(line) > len(name) && line[len(name)] == '=' && line[:len(name)] == name {
			return line[len(name)+1:]
		}
	}
	return ""
}

// text is what ends with a zero byte.
func text(word *byte) string {
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(word), n)) != 0 {
		n++
	}
	return unsafe.String(word, n)
}
