package guest

import (
	"fmt"
	"testing"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// testSeccomp: each exec has the container's filter, once, whoever it is; and one of a container without a filter has none.
func testSeccomp(t *testing.T, v *testVM, box []api.Disk) {
	const script = "uname; id -u; grep -E '^(NoNewPrivs|Seccomp|Seccomp_filters):' /proc/self/status; cut -d' ' -f41 /proc/self/stat"
	all := &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: append(dockerCaps[:3:3], "CAP_SYS_ADMIN")}
	all.Bounding, all.Effective = all.Permitted, all.Permitted
	for _, c := range []struct {
		filter      []byte
		private     bool // no_new_privs
		uname       string
		mode, count int
	}{{noUname, false, "\n", 2, 1}, {noUname, true, "\n", 2, 1}, {nil, false, "Linux\n", 0, 0}, {nil, true, "Linux\n", 0, 0}} {
		id := fmt.Sprintf("filtered-%d-%v", len(c.filter), c.private)
		r := &api.CreateRequest{ID: id, Rootfs: api.Rootfs{Layers: box}, Seccomp: c.filter, Spec: dockerSpec("sleep", "1000")}
		r.Spec.Process.NoNewPrivileges = c.private
		v.startBox(r)
		private := 0
		if c.private {
			private = 1
		}
		for name, change := range map[string]func(*api.ExecRequest){
			"plain": nil, "user": func(r *api.ExecRequest) { r.User = "app" }, "wide": func(r *api.ExecRequest) { r.Capabilities = all },
		} {
			uid := 0
			if name == "user" {
				uid = 1000
			}
			// The policy is SCHED_OTHER, whatever that of the agent's thread is.
			want := fmt.Sprintf("%s%d\nNoNewPrivs:\t%d\nSeccomp:\t%d\nSeccomp_filters:\t%d\n0\n", c.uname, uid, private, c.mode, c.count)
			for i := range 3 { // what is known of a filter after the first changes nothing
				if e := v.execIn(id, fmt.Sprint(name, i), change, "sh", "-c", script); e.err != nil || e.stdout != want {
					t.Errorf("%s of %s: got %q (%q, %v), want %q", name, id, e.stdout, e.stderr, e.err, want)
				}
			}
		}
	}
}
