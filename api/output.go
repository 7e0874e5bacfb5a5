package api

import (
	"encoding/binary"
	"fmt"
)

// OutputHeaderSize is the length of an output record's header: one byte stream (1 stdout, 2 stderr), three zero
// bytes, big-endian uint32 payload length (1..MaxOutputChunk). It is docker's stdcopy header, so an attach can
// pass records on as they are.
const OutputHeaderSize = 8

// Streams of an output record.
const (
	Stdout byte = 1
	Stderr byte = 2
)

// ExitRecord is the stream of the record that says how a process ended. It has no place in the journal.
const ExitRecord byte = 4

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code      int   `json:"code"`      // 0..255; 128+n when signal n killed it
	OOMKilled bool  `json:"oomKilled"` // of a container's first process: its memory limit, or the guest's, has killed one of it
	UnixNanos int64 `json:"unixNanos"` // guest clock: a hint, not evidence
}

// exitSize is the length of an exit record's payload: code (1), OOMKilled (1: 0 or 1), big-endian UnixNanos (8).
const exitSize = 1 + 1 + 8

// AppendRecord appends the exit record, header included.
func (s ExitStatus) AppendRecord(b []byte) []byte {
	b = append(b, ExitRecord, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, exitSize)
	killed := byte(0)
	if s.OOMKilled {
		killed = 1
	}
	return binary.BigEndian.AppendUint64(append(b, byte(s.Code), killed), uint64(s.UnixNanos))
}

// ParseExit reads the payload of an exit record.
func ParseExit(payload []byte) (ExitStatus, error) {
	if len(payload) != exitSize || payload[1] > 1 {
		return ExitStatus{}, fmt.Errorf("an exit record of % x", payload[:min(len(payload), exitSize)])
	}
	return ExitStatus{
		Code: int(payload[0]), OOMKilled: payload[1] == 1, UnixNanos: int64(binary.BigEndian.Uint64(payload[2:])),
	}, nil
}
