package dockerapi

import "github.com/containerd/errdefs"

// swarmRoutes answer as a docker that is not in a swarm does.
func (s *server) swarmRoutes() []route {
	rows := []route{
		{"POST", "/swarm/init", "", refused("Swarm mode")},
		{"POST", "/swarm/join", "", refused("Swarm mode")},
		{"POST", "/swarm/leave", "", notInSwarm},
		{"POST", "/swarm/update", "", notManager},
		{"POST", "/swarm/unlock", "", notInSwarm},
		{"GET", "/swarm", "", notManager},
		{"GET", "/swarm/unlockkey", "", notManager},
		{"GET", "/services/{id}/logs", "", notManager},
		{"GET", "/tasks/{id}/logs", "", notManager},
	}
	for _, kind := range []string{"/nodes", "/services", "/tasks", "/secrets", "/configs"} {
		rows = append(rows, route{"GET", kind, "", notManager}, route{"GET", kind + "/{id}", "", notManager})
		if kind == "/tasks" { // the services' own
			continue
		}
		rows = append(rows, route{"DELETE", kind + "/{id}", "", notManager}, route{"POST", kind + "/{id}/update", "", notManager})
		if kind != "/nodes" { // they join
			rows = append(rows, route{"POST", kind + "/create", "", notManager})
		}
	}
	return rows
}

func notManager(*call) error {
	return errdefs.ErrUnavailable.WithMessage(`This node is not a swarm manager. Use "docker swarm init" or ` +
		`"docker swarm join" to connect this node to swarm and try again.`)
}

func notInSwarm(*call) error {
	return errdefs.ErrUnavailable.WithMessage("This node is not part of a swarm")
}
