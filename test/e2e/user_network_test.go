package e2e

import "testing"

// On networks without privileges (daemon --networks user) all is as on the kernel's.
func TestUserNetworks(t *testing.T) {
	c := inOwn(t, "CRADLE_NETWORKS=user")
	for _, test := range []struct {
		name string
		run  func(*testing.T, client)
	}{
		{"names and ports", networks}, {"ports move", publishedPortsMove}, {"files", networkFiles}, {"clone", cloneOnNetwork},
		{"hibernated", hibernatedOnNetwork}, {"warm", warmOnNetwork}, {"kills of the daemon", networksOutliveTheDaemon},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}
