package api

import "net"

// MethodNetwork is NetworkRequest → none: the guest's interfaces become as the request says. It may be called again at any
// time; an interface that is not named loses its addresses and goes down.
const MethodNetwork = "network"

// MaxSlots bounds the interfaces of a guest (vm.MaxNICs).
const MaxSlots = 4

// SlotMAC is the hardware address that the interface at index slot (0 to MaxSlots-1) of vm.Config.NICs is made with. It is the
// same in all guests, so that saved ones fit every VM; the address a guest uses on its network is Interface.MAC. It is
// locally administered: 02, then "crdl".
func SlotMAC(slot int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 'c', 'r', 'd', 'l', byte(slot)}
}

// NetworkRequest describes all of a guest's network beside its loopback interface, which is always up.
type NetworkRequest struct {
	Interfaces []Interface `json:"interfaces"`
	// Files are new contents of the files that follow the network: a container that joins
	// or leaves one gets other /etc/hosts and /etc/resolv.conf. They must have been given at create.
	Files []ContainerFiles `json:"files,omitempty"`
}

// ContainerFiles are new contents of files of one container (CreateRequest.Files).
type ContainerFiles struct {
	ID    string `json:"id"`
	Files []File `json:"files"`
}

// Interface is one network interface of a guest.
type Interface struct {
	Slot       int         `json:"slot"`                 // index in vm.Config.NICs
	Name       string      `json:"name"`                 // eth0, …
	MAC        string      `json:"mac,omitempty"`        // as net.ParseMAC takes it; empty: as made
	MTU        int         `json:"mtu,omitempty"`        // bytes, 68 to 65535; 0: as it is
	Addresses  []string    `json:"addresses"`            // in CIDR form; IPv6 ones skip duplicate address detection
	Routes     []Route     `json:"routes"`               // beside those of the addresses' own subnets
	Neighbours []Neighbour `json:"neighbours,omitempty"` // that are not to be asked for their hardware addresses
	Sysctls    []Sysctl    `json:"sysctls,omitempty"`    // below net.ipv4.conf.<Name> and net.ipv6.conf.<Name>
}

// Route is a route through an interface.
type Route struct {
	Destination string `json:"destination"`       // in CIDR form; 0.0.0.0/0 and ::/0 are the default routes
	Gateway     string `json:"gateway,omitempty"` // empty: on the link
	Metric      int    `json:"metric,omitempty"`
	MTU         int    `json:"mtu,omitempty"` // bytes, 68 to 65535; 0: the interface's
}

// Neighbour is another host on an interface's link.
type Neighbour struct {
	Address string `json:"address"`
	MAC     string `json:"mac"` // as net.ParseMAC takes it
}

// Sysctl is a key below an interface's directory and its value.
type Sysctl struct {
	Family string `json:"family"` // "ipv4" or "ipv6"
	Key    string `json:"key"`    // one word, such as accept_ra
	Value  string `json:"value"`
}
