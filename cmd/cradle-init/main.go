// Command cradle-init is PID 1 of a cradle guest: /init in the initramfs.
package main

import (
	"fmt"
	"os"

	"github.com/cradlevm/cradle/guest"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == guest.InitMode {
		os.Exit(guest.ContainerInit(os.Args[2], os.Args[3:]))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "cradle-init is PID 1 of a cradle guest and does nothing elsewhere")
		os.Exit(2)
	}
	err := guest.Boot()
	if err == nil {
		err = guest.Run()
	}
	fmt.Printf("cradle-init: %v\n", err)
	guest.PowerOff()
}
