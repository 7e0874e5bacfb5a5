package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// webConnections is how many connections, which stay open, ask a web server at once.
const webConnections = 16

// webServer is one nginx, and how it is asked.
type webServer struct {
	name string
	url  string
	from []string // words before wrk's: where it runs
	err  error    // why there is none

	rate, median, p99 sample
}

// web measures an nginx behind a published port: through a TAP, our bridge and the kernel's DNAT; in the very same machine
// with QEMU's user networking in the TAP's place; and in docker's container. Ours is asked until it has served e.requests.
func web(ctx context.Context, e env) (rows []row, err error) {
	if _, err := exec.LookPath("wrk"); err != nil {
		return nil, err
	}
	ours, err := startCradle(ctx, e, "web", booting()...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	tap := &webServer{name: "cradle"}
	if tap.url, err = publish(ctx, e, ours); err != nil {
		return nil, err
	}
	user, stopUser := userWeb(ctx, e)
	defer func() { err = errors.Join(err, stopUser()) }()
	docker, dockerErr := startDocker(ctx, e)
	peer := &webServer{name: "docker run -p", err: dockerErr}
	if dockerErr == nil {
		defer func() { err = errors.Join(err, docker.stop()) }()
		peer.from = []string{"nsenter", "--net=/proc/" + fmt.Sprint(docker.pids()[0]) + "/ns/net"}
		peer.url, peer.err = publish(ctx, e, docker)
	}
	servers := []*webServer{tap, user, peer}
	served, err := askInTurns(ctx, e, servers)
	rows = []row{{name: "nginx: requests without an error", unit: unitCount, ours: sample{float64(served)}, goal: float64(e.requests), least: true}}
	for i, p := range servers[1:] {
		notes, goal := because(p.err), float64(1-i) // the TAP is no worse than what is in its place; docker's has no goal
		rows = append(rows,
			row{name: "nginx: requests a second", unit: unitRate, ours: tap.rate, peer: p.name, base: p.rate, goal: goal, least: true, notes: notes},
			row{name: "nginx: a request, median", unit: unitSeconds, ours: tap.median, peer: p.name, base: p.median, goal: goal, notes: notes},
			row{name: "nginx: a request, p99", unit: unitSeconds, ours: tap.p99, peer: p.name, base: p.p99, goal: goal, notes: notes})
	}
	return rows, err
}

// askInTurns asks all of them in turns, the first, which is ours, until it has served all requests. A peer that fails is out.
func askInTurns(ctx context.Context, e env, servers []*webServer) (served int, err error) {
	for turn := 0; turn <= e.few || served < e.requests; turn++ {
		for i, s := range servers {
			if s.err != nil || i > 0 && turn > e.few {
				continue
			}
			r, err := s.ask(ctx, e.turn)
			if err != nil {
				if i == 0 {
					return served, err
				}
				s.err = err
				continue
			}
			if i == 0 {
				served += r.requests
			}
			if turn > 0 && turn <= e.few { // the first finds cold caches
				s.rate = append(s.rate, r.rate)
				s.median.add(r.median)
				s.p99.add(r.p99)
			}
		}
	}
	return served, nil
}

// publish starts an nginx with a published port, and returns how it is reached through the gateway of its network, where
// the kernel passes connections on to the container.
func publish(ctx context.Context, e env, s *side, flags ...string) (string, error) {
	if err := s.do(ctx, "load", "-q", "-i", filepath.Join(e.images, "nginx.tar")); err != nil {
		return "", err
	}
	words := append([]string{"run", "-d", "--name", "web", "-p", "80"}, flags...)
	if err := s.do(ctx, append(words, "nginx")...); err != nil {
		return "", err
	}
	port, err := s.command(ctx, "inspect", "-f", `{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`, "web")
	if err != nil {
		return "", err
	}
	gateway, err := s.command(ctx, "inspect", "-f", `{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}`, "web")
	if err != nil {
		return "", err
	}
	return "http://" + net.JoinHostPort(strings.TrimSpace(gateway), strings.TrimSpace(port)) + "/", nil
}

// userWeb starts an nginx whose machine is ours in everything but that its first interface ends in QEMU's user networking:
// the daemon's QEMU is a script that says so to the real one. stop removes it all, also when there is an error.
func userWeb(ctx context.Context, e env) (s *webServer, stop func() error) {
	s = &webServer{name: "QEMU -netdev user"}
	var undo []func() error
	stop = func() (err error) {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
		return err
	}
	s.err = func() error {
		dir, err := os.MkdirTemp("", "cradle-bench-user-")
		if err != nil {
			return err
		}
		undo = append(undo, func() error { return os.RemoveAll(dir) })
		subnet, err := netip.ParsePrefix("10.213.0.0/24")
		if err != nil {
			return err
		}
		gateway := subnet.Addr().Next()
		guest := gateway.Next()
		port, err := freePort()
		if err != nil {
			return err
		}
		at := fmt.Sprintf("127.0.0.1:%d", port)
		backend := fmt.Sprintf("user,id=net0,net=%s,host=%s,hostfwd=tcp:%s-%s:80", subnet, gateway, at, guest)
		if err := writeQEMU(dir, backend); err != nil {
			return err
		}
		daemon, err := startCradleIn(ctx, e, "web-user", []string{"PATH=" + dir + ":" + os.Getenv("PATH")}, booting()...)
		if err != nil {
			return err
		}
		undo = append(undo, daemon.stop)
		if err := daemon.do(ctx, "network", "create", "--subnet", subnet.String(), "--gateway", gateway.String(), "user"); err != nil {
			return err
		}
		if _, err = publish(ctx, e, daemon, "--network", "user", "--ip", guest.String()); err != nil {
			return err
		}
		// Monitors have a network namespace without anything; its loopback interface is where this one listens.
		pid, err := daemon.command(ctx, "inspect", "-f", "{{.State.Pid}}", "web")
		if err != nil {
			return err
		}
		s.from = []string{"nsenter", "--net=/proc/" + strings.TrimSpace(pid) + "/ns/net"}
		s.url = "http://" + at + "/"
		_, err = output(ctx, ownEnv(), s.from[0], append(s.from[1:], "ip", "link", "set", "lo", "up")...)
		return err
	}()
	return s, stop
}

// writeQEMU writes a program that is QEMU with another backend for its first interface. Any user may run it.
func writeQEMU(dir, backend string) error {
	const name = "qemu-system-x86_64"
	real, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	script := `#!/bin/sh
for word; do
	shift
	case $word in tap,id=net0,*) word=` + backend + ` ;; esac
	set -- "$@" "$word"
done
exec ` + real + ` "$@"
`
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755)
}

// freePort is a TCP port of the loopback's that was free a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("a TCP listener at %v", l.Addr())
	}
	return a.Port, nil
}
