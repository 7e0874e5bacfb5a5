package main

import (
	"sync"
	"time"
	"unsafe"

	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
	"golang.org/x/sys/unix"
)

// Numbers of churn. Pages are few enough that a processor's cache of translations keeps them all.
const (
	churnPages = 512
	churnPage  = 4096
	// churnZero is each how many writes a page is made zeros again. It has no divisor in common with churnPages, so
	// that each page is at times.
	churnZero = 7
	churnRun  = 4 * churnPages // writes between two naps
)

// churn writes to page after page, for ever, and knows what it last wrote to each: a page that is as it was at another
// time than the rest of the machine is noticed when its turn comes.
var churn = sync.OnceValues(func() (func() guestapi.Churn, error) {
	memory, err := unix.Mmap(-1, 0, churnPages*churnPage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	seen := guestapi.Churn{Pages: churnPages}
	run := func(n int64) {
		for range churnRun {
			n++
			page := memory[n%churnPages*churnPage:][:churnPage]
			word := (*int64)(unsafe.Pointer(&page[0]))
			if *word != churned(n-churnPages) {
				seen.Wrong++
			}
			if *word = churned(n); *word == 0 {
				clear(page)
			}
		}
		seen.Writes = n
	}
	go func() {
		for ; ; time.Sleep(time.Millisecond) {
			mu.Lock()
			run(seen.Writes)
			mu.Unlock()
		}
	}()
	return func() guestapi.Churn {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}, nil
})

// churned is what the n-th write writes.
func churned(n int64) int64 {
	if n < 0 || n%churnZero == 0 {
		return 0
	}
	return n
}
