// Command left is a program with package front in front of it, which says what is left to it.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/cradlevm/cradle/cmd/cradle/front"
)

func main() {
	said := make(chan int)
	go func() { // there is a runtime
		fmt.Printf("left: %s %s %s", strings.Join(os.Args[1:], "|"), os.Getenv("LEFT"), front.SetRemove)
		said <- 99
	}()
	os.Exit(<-said)
}
