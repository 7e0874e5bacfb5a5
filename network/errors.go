package network

import (
	"errors"
	"fmt"
)

// Sentinels, to be found with errors.Is. The texts of errors are docker's where docker has one.
var (
	ErrInvalid     = errors.New("invalid network configuration") // a bad spec, an address outside its subnet
	ErrNotFound    = errors.New("no such network")
	ErrExists      = errors.New("already exists")               // a network's name, an endpoint
	ErrInUse       = errors.New("in use")                       // a network with endpoints, a predefined one
	ErrExhausted   = errors.New("no address left")              // of a subnet, of the pools
	ErrPortTaken   = errors.New("port is taken")                // by another container or another program
	ErrUnsupported = errors.New("needs root, for the networks") // bridge networks as an ordinary user
	ErrOverlap     = errors.New("subnet is taken")              // by another interface of the host, while the bridge was away
	ErrLost        = errors.New("interface is gone")            // a live TAP that somebody has deleted
)

// failure is one of the sentinels with a text of its own, which is all that a person sees.
type failure struct {
	kind error
	text string
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.kind }

func fail(kind error, format string, args ...any) error {
	return &failure{kind, fmt.Sprintf(format, args...)}
}
