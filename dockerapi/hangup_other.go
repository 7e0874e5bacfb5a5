//go:build !linux

package dockerapi

import "net"

// watchHangup needs Linux's poll; elsewhere a hang-up shows at the next write.
func watchHangup(net.Conn, func()) (stop func()) { return func() {} }
