#include "textflag.h"

// The frame of entry. Its end is where the kernel has put the program's arguments.
#define WORDS	0(SP)	// start's arguments: the kernel's,
#define ROOM	8(SP)	// and room
#define STACK	16(SP)	// the stack as it was
#define TLS	32(SP)	// the word before it is where Go's code looks for its g
#define G	64(SP)	// a goroutine of which nothing is used but that its stack has no end
#define BUFFER	1088(SP)	// 64 KiB, of which only what is used is ever touched
#define SIZE	66624

// entry is where the kernel starts the program.
TEXT ·entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ	SP, AX
	SUBQ	$SIZE, SP
	MOVQ	AX, STACK
	MOVQ	AX, WORDS
	LEAQ	BUFFER, AX
	MOVQ	AX, ROOM
	LEAQ	G, AX
	MOVQ	AX, 24(SP)
	MOVQ	$0, 0(AX)	// stack.lo
	MOVQ	$0, 8(AX)	// stack.hi
	MOVQ	$0, 16(AX)	// stackguard0
	MOVQ	$0, 24(AX)	// stackguard1
	MOVL	$0x1002, DI	// ARCH_SET_FS; the runtime will do so for itself
	LEAQ	TLS, SI
	MOVL	$158, AX	// arch_prctl
	SYSCALL
	CALL	·start(SB)
	MOVQ	STACK, SP
	JMP	_rt0_amd64_linux(SB)
