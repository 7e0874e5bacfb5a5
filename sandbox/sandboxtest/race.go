//go:build race

package sandboxtest

import "runtime"

// Alone keeps a test binary that has bubbles (testing/synctest) to one processor under the race detector; TestMain calls it. The timers of
// a bubble share one context of the detector, and those that are due when they are set run on the processor that sets them: two at once
// corrupt it, which ends in a SIGSEGV in __tsan::SlotLock (Go 1.26.8, runtime/time.go, (*timer).modify and unlockAndRun; 64 goroutines of a
// bubble that all call time.AfterFunc(0, …) show it within a second). Goroutines still run in any order, and the detector sees as much.
func Alone() { runtime.GOMAXPROCS(1) }
