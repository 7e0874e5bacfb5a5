//go:build !amd64

package fork

import "os"

// Supported tells whether processes can be copied on this kind of machine.
const Supported = false

// Parent is a process that copies are made of: none on this kind of machine yet.
type Parent struct{}

// Seize answers ErrUnsupported.
func Seize(int, *os.File) (*Parent, error) { return nil, ErrUnsupported }

// Unfiltered tells nothing.
func (*Parent) Unfiltered() bool { return false }

// Able tells nothing.
func (*Parent) Able() bool { return false }

// Close ends the parent.
func (*Parent) Close() {}

// Fork answers ErrUnsupported.
func (*Parent) Fork(Options) (int, *os.File, error) { return 0, nil, ErrUnsupported }

// Redirect answers ErrUnsupported.
func Redirect(int, int, []int) error { return ErrUnsupported }
