// Package house is an installation of cradle of a test's own: directories, an environment, a daemon, and a look at what is
// left of it all when the test has ended. Tests of the programs share it; it is no part of cradle.
package house

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build is what `make build guest images` makes: the directories of programs, guest and images.
type Build struct{ Bin, Guest, Images string }

// Find finds the build that the environment names (CRADLE_TEST_BIN, CRADLE_GUEST, CRADLE_TEST_IMAGES), or the checkout's
// own, in which the caller's test lies two directories deep. An error says what of it is missing, one of the images
// among it, or which of the programs the machine lacks; Promised says what to do then.
func Find(images []string, programs ...string) (Build, error) {
	top, err := filepath.Abs("../..")
	if err != nil {
		return Build{}, err
	}
	or := func(name, fallback string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return filepath.Join(top, fallback)
	}
	b := Build{Bin: or("CRADLE_TEST_BIN", "bin"), Guest: or("CRADLE_GUEST", "out/guest"), Images: or("CRADLE_TEST_IMAGES", "out/images")}
	files := []string{b.Cradle(), filepath.Join(b.Guest, "manifest")}
	for _, image := range images {
		files = append(files, b.Image(image))
	}
	for _, path := range files {
		if _, err := os.Stat(path); err != nil {
			return b, fmt.Errorf("%w (make build guest images)", err)
		}
	}
	for _, program := range append([]string{"qemu-system-x86_64"}, programs...) {
		if _, err := exec.LookPath(program); err != nil {
			return b, err
		}
	}
	return b, nil
}

// Promised reports whether everything is said to be there (make test): then what is missing is an error, else a reason
// to skip a test.
func Promised() bool { return os.Getenv("CRADLE_TEST_BIN") != "" }

// Cradle is the path of the program.
func (b Build) Cradle() string { return filepath.Join(b.Bin, "cradle") }

// Image is the path of an image's archive.
func (b Build) Image(name string) string { return filepath.Join(b.Images, name+".tar") }
