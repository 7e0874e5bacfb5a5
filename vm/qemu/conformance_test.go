package qemu_test

import (
	"testing"

	"github.com/cradlevm/cradle/vm/qemu"
	"github.com/cradlevm/cradle/vm/vmtest"
)

func TestConformance(t *testing.T) {
	vmtest.Run(t, qemu.New(qemu.Options{}), testGuest(t))
}
