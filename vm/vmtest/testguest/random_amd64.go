package main

import "golang.org/x/sys/cpu"

// rdrand and rdseed are the processor's instructions; 0 when they have nothing to give.
func rdrand() uint64
func rdseed() uint64

// randomNumbers are those that the processor makes itself, as far as it does.
func randomNumbers() (all []uint64) {
	for range 4 {
		if cpu.X86.HasRDRAND {
			all = append(all, rdrand())
		}
		if cpu.X86.HasRDSEED {
			all = append(all, rdseed())
		}
	}
	return all
}
