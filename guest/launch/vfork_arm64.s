#include "textflag.h"

// func vfork(args *cloneArgs, size uintptr, steps *step, n uintptr, out *outcome) (pid, errno uintptr)
//
// See vfork_amd64.s: the child lives in registers only.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-56
	MOVD	out+32(FP), R19

	MOVD	$135, R8            // rt_sigprocmask
	MOVD	$2, R0              // SIG_SETMASK
	ADD	$16, R19, R1        // out.block
	ADD	$24, R19, R2        // where the mask is saved
	MOVD	$8, R3
	SVC

	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	$435, R8            // clone3
	SVC
	CBZ	R0, child

	MOVD	R0, R20
	MOVD	$135, R8
	MOVD	$2, R0
	ADD	$24, R19, R1
	MOVD	$0, R2
	MOVD	$8, R3
	SVC
	CMN	$4095, R20
	BCC	ok
	NEG	R20, R20
	MOVD	$0, R1
	MOVD	R1, pid+40(FP)
	MOVD	R20, errno+48(FP)
	RET
ok:
	MOVD	R20, pid+40(FP)
	MOVD	$0, R1
	MOVD	R1, errno+48(FP)
	RET

child:
	MOVD	steps+16(FP), R20
	MOVD	n+24(FP), R21       // steps left
next:
	CBZ	R21, ended
	MOVD	0(R20), R8
	MOVD	8(R20), R0
	MOVD	16(R20), R1
	MOVD	24(R20), R2
	MOVD	32(R20), R3
	MOVD	40(R20), R4
	MOVD	48(R20), R5
	SVC
	CMN	$4095, R0
	BCS	failed
	MOVD	56(R20), R9         // step.save
	CBZ	R9, advance
	MOVD	R0, (R9)
advance:
	ADD	$80, R20
	SUB	$1, R21
	B	next
failed:
	NEG	R0, R0
	MOVD	64(R20), R9         // step.allow[0]
	CMP	R9, R0
	BEQ	advance
	MOVD	72(R20), R9         // step.allow[1]
	CMP	R9, R0
	BEQ	advance
	MOVD	R21, 0(R19)         // out.left
	MOVD	R0, 8(R19)          // out.errno
ended:
	MOVD	$127, R0
	MOVD	$94, R8             // exit_group
	SVC
	B	ended
