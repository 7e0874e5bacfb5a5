#include "textflag.h"

// func vfork(args *cloneArgs, size uintptr, steps *step, n uintptr, out *outcome) (pid, errno uintptr)
//
// The child shares the parent's memory and stack pointer while the parent sleeps in clone3. It therefore lives in
// registers only: not one push, not one call, so that the parent wakes up in the frame it left.
TEXT ·vfork(SB),NOSPLIT,$0-56
	MOVQ	out+32(FP), R12

	// Block every signal: no handler of the Go runtime may run in the child.
	MOVQ	$14, AX             // rt_sigprocmask
	MOVQ	$2, DI              // SIG_SETMASK
	LEAQ	16(R12), SI         // out.block
	LEAQ	24(R12), DX         // where the mask is saved
	MOVQ	$8, R10
	SYSCALL

	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	$435, AX            // clone3
	SYSCALL
	TESTQ	AX, AX
	JEQ	child

	MOVQ	AX, R13
	MOVQ	$14, AX
	MOVQ	$2, DI
	LEAQ	24(R12), SI
	MOVQ	$0, DX
	MOVQ	$8, R10
	SYSCALL
	CMPQ	R13, $0xfffffffffffff001
	JCS	ok
	NEGQ	R13
	MOVQ	$0, pid+40(FP)
	MOVQ	R13, errno+48(FP)
	RET
ok:
	MOVQ	R13, pid+40(FP)
	MOVQ	$0, errno+48(FP)
	RET

child:
	MOVQ	steps+16(FP), BX
	MOVQ	n+24(FP), R13       // steps left
next:
	TESTQ	R13, R13
	JEQ	ended
	MOVQ	0(BX), AX
	MOVQ	8(BX), DI
	MOVQ	16(BX), SI
	MOVQ	24(BX), DX
	MOVQ	32(BX), R10
	MOVQ	40(BX), R8
	MOVQ	48(BX), R9
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	MOVQ	56(BX), R8          // step.save
	TESTQ	R8, R8
	JEQ	advance
	MOVQ	AX, (R8)
advance:
	ADDQ	$80, BX
	DECQ	R13
	JMP	next
failed:
	NEGQ	AX
	CMPQ	AX, 64(BX)          // step.allow[0]
	JEQ	advance
	CMPQ	AX, 72(BX)          // step.allow[1]
	JEQ	advance
	MOVQ	R13, 0(R12)         // out.left
	MOVQ	AX, 8(R12)          // out.errno
ended:
	MOVQ	$127, DI
	MOVQ	$231, AX            // exit_group
	SYSCALL
	JMP	ended
