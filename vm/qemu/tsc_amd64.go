package qemu

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// tscSpan is how long tscKHz measures. Reading both clocks together is some 50 ns uncertain, so this span gives
// about 3 parts per million.
const tscSpan = 20 * time.Millisecond

// tscKHz measures the frequency of the host's time stamp counter, in kHz. Under TCG the guest's counter is the
// host's, and a guest that has to find its frequency with the emulated timer chip fails on a busy machine.
//
// It is measured because no source is there on every host: CPUID leaves 0x15 and 0x16 are empty on AMD and in
// most VMs, and "cpu MHz" of /proc/cpuinfo is the core's present clock wherever there is frequency scaling.
// CLOCK_MONOTONIC_RAW is the right yardstick: the others may be slewed by NTP just now.
func tscKHz() int {
	ticks0, nanos0 := readClocks()
	time.Sleep(tscSpan)
	ticks1, nanos1 := readClocks()
	return int(math.Round(float64(ticks1-ticks0) / float64(nanos1-nanos0) * 1e6))
}

// readClocks reads the counter and CLOCK_MONOTONIC_RAW at the same moment: of many tries, the one that took the
// least time, so that being descheduled in between does not count.
func readClocks() (ticks uint64, nanos int64) {
	best := uint64(math.MaxUint64)
	for range 64 {
		var ts unix.Timespec
		before := rdtsc()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
			continue
		}
		if took := rdtsc() - before; took < best {
			best, ticks, nanos = took, before+took/2, ts.Nano()
		}
	}
	return ticks, nanos
}
