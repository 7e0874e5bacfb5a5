package qemu

import (
	"testing"

	"github.com/cradlevm/cradle/vm/vmtest"
)

func TestConformance(t *testing.T) {
	vmtest.Run(t, New(testOptions()), testGuest(t))
}
