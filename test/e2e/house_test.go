package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cradlevm/cradle/test/house"
)

// commandLimit is for one command on a slow machine that emulates its virtual machines.
const commandLimit = 3 * time.Minute

// logLines is how much of each log a failure shows.
const logLines = 15

// suite is what all tests use: TestMain makes it.
type suite struct {
	build   house.Build
	missing error // why virtual machines cannot be tested here
	house   *house.House
}

var shared suite //nolint:gochecknoglobals // the one place TestMain can leave it

func TestMain(m *testing.M) { os.Exit(mainCode(m)) }

func mainCode(m *testing.M) int {
	images := []string{"busybox", "debian", "redis", "nginx"}
	shared.build, shared.missing = house.Find(images)
	if os.Geteuid() != 0 {
		shared.missing = errors.New("needs root")
	}
	if shared.missing != nil {
		if house.Promised() {
			fmt.Fprintln(os.Stderr, "e2e:", shared.missing)
			return 1
		}
		return m.Run()
	}
	h, err := house.New(shared.build, "cradle-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	err = h.StartDaemon()
	for _, image := range images {
		if err == nil {
			err = h.Load(commandLimit, image)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		h.DumpLog(os.Stderr, logLines)
		_ = h.Close(commandLimit)
		return 1
	}
	shared.house = h
	code := m.Run()
	if err := h.Close(commandLimit); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: at the end:", err)
		code = max(code, 1)
	}
	return code
}
