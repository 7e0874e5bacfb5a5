#include "textflag.h"

// func rdrand() uint64
TEXT ·rdrand(SB), NOSPLIT, $0-8
	XORQ AX, AX
	RDRANDQ AX
	MOVQ AX, ret+0(FP)
	RET

// func rdseed() uint64
TEXT ·rdseed(SB), NOSPLIT, $0-8
	XORQ AX, AX
	RDSEEDQ AX
	MOVQ AX, ret+0(FP)
	RET
