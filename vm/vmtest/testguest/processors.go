package main

import (
	"runtime"
	"time"

	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
	"golang.org/x/sys/unix"
)

// processors has all of the machine's work at the same time.
func processors() ([]guestapi.Processor, error) {
	all := make([]guestapi.Processor, runtime.NumCPU())
	errs := make(chan error)
	for i := range all {
		go func() {
			var err error
			all[i], err = processor(i)
			errs <- err
		}()
	}
	var err error
	for range all {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return all, err
}

// processor has one of them count and sleep in turns. Its thread, which runs nowhere else, ends with it.
func processor(number int) (p guestapi.Processor, err error) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(number)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return p, err
	}
	p.Random = randomNumbers()
	for range guestapi.Sleeps {
		for began := time.Now(); time.Since(began) < guestapi.SleepNanos; {
			p.Rounds++
		}
		began := time.Now()
		nap := unix.NsecToTimespec(guestapi.SleepNanos)
		for unix.Nanosleep(&nap, &nap) == unix.EINTR {
		}
		if slept := time.Since(began).Nanoseconds(); p.SleptNanos == 0 || slept < p.SleptNanos {
			p.SleptNanos = slept
		}
	}
	return p, nil
}
