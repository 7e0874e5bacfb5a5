package front

// entry is the program's, where the linker is told so (-E, in the Makefile).
//
//lint:ignore U1000 the kernel calls it
func entry()
