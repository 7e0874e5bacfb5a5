package guest

import (
	"strings"
	"testing"

	"github.com/cradlevm/cradle/api"
)

// testIdentity makes a container that stands still another one, as it is done with one that was saved and restored.
func testIdentity(t *testing.T, v *testVM, box []api.Disk) {
	const who = "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id"
	r := &api.CreateRequest{ID: "first", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sh", "-c", "echo old >/etc/machine-id; sleep 1000"),
		Files: []api.File{{Path: "/etc/hostname", Data: []byte("first-name\n"), Mode: 0o644}}}
	v.startBox(r)
	before := strings.Fields(v.execIn("first", "a", nil, "sh", "-c", "until test -s /etc/machine-id; do sleep 0.1; done; "+who).stdout)
	if len(before) != 4 || before[0] != "box" || before[1] != "first-name" || before[2] != "old" {
		t.Fatalf("before: %q", before)
	}
	v.call(api.MethodExec, &api.ExecRequest{ID: "first", Exec: "left", Args: []string{"sleep", "100"}}, nil)
	v.call(api.MethodFreeze, api.FreezeRequest{ID: "first", Frozen: true}, nil)
	const boot, machine = "01234567-89ab-cdef-0123-456789abcdef", "00112233445566778899aabbccddeeff"
	v.call(api.MethodIdentify, api.IdentifyRequest{ID: "first", NewID: "second", Hostname: "other", BootID: boot, MachineID: machine, Env: []string{"PATH=/bin", "OTHER=1"},
		Files: []api.File{{Path: "/etc/hostname", Data: []byte("other\n"), Mode: 0o644}}}, nil)
	v.call(api.MethodFreeze, api.FreezeRequest{ID: "second", Frozen: false}, nil)
	e := v.execIn("second", "b", nil, "sh", "-c", who+"; ps -o args | grep -c '[s]leep 100$'; echo $OTHER")
	if want := strings.Join([]string{"other", "other", machine, boot, "0", "1", ""}, "\n"); e.stdout != want {
		t.Errorf("after: %q, not %q: %+v", e.stdout, want, e)
	}
	// Once more, as it is with a copy of a copy: nothing lies over what lay over the container's files.
	const boot2, machine2 = "11234567-89ab-cdef-0123-456789abcdef", "10112233445566778899aabbccddeeff"
	v.call(api.MethodIdentify, api.IdentifyRequest{ID: "second", BootID: boot2, MachineID: machine2}, nil)
	e = v.execIn("second", "c", nil, "sh", "-c", who+"; grep -c -e boot_id -e machine-id /proc/mounts")
	if want := strings.Join([]string{"other", "other", machine2, boot2, "2", ""}, "\n"); e.stdout != want {
		t.Errorf("after another: %q, not %q: %+v", e.stdout, want, e)
	}
	for name, r := range map[string]api.IdentifyRequest{
		"an id": {ID: "second", NewID: "../x"}, "a boot id": {ID: "second", BootID: "x"}, "a machine id": {ID: "second", MachineID: "abc"},
		"a file": {ID: "second", Files: []api.File{{Path: "/etc/passwd"}}}, "an id that is gone": {ID: "first"},
		"a host name": {ID: "second", Hostname: strings.Repeat("x", 65)},
	} {
		if err := v.try(api.MethodIdentify, r, nil); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	v.call(api.MethodDelete, api.ProcessRef{ID: "second"}, nil)
	// Nobody is called so any more.
	v.startBox(&api.CreateRequest{ID: "second", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sleep", "1")})
	v.call(api.MethodDelete, api.ProcessRef{ID: "second"}, nil)
}
