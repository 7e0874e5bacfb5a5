package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
)

// testVM is a QEMU with the agent in it, for the tests of this package.
type testVM struct {
	t       *testing.T
	dir     string
	console string
	token   wire.Token
	client  *wire.Client
	qmp     net.Conn
	qmpIn   *json.Decoder
	cmd     *exec.Cmd
	mu      sync.Mutex
	disks   int
	split   bool // containers are prepared, then made
}

// testKernel finds a kernel to boot or skips the test.
func testKernel(t testing.TB) string {
	t.Helper()
	k := os.Getenv("CRADLE_TEST_KERNEL")
	if k == "" {
		k = "/var/cache/cradle-dev/bzImage"
	}
	if _, err := os.Stat(k); err != nil {
		t.Skipf("no guest kernel (CRADLE_TEST_KERNEL): %v", err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, tool := range []string{"qemu-system-x86_64", "mkfs.erofs", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if testing.Short() {
		t.Skip("boots a VM")
	}
	return k
}

// tscKHz is the host's TSC frequency, without which the guest may fail to calibrate under load: what the kernel's log says
// or, when that has forgotten, what the processor runs at.
func tscKHz() string {
	out, _ := exec.Command("sh", "-c", `{ dmesg | sed -n 's/.*tsc: Detected \([0-9]*\)\.\([0-9]*\) MHz.*/\1\2/p'
		sed -n 's/^cpu MHz.*: \([0-9]*\)\.\([0-9]*\)$/\1\2/p' /proc/cpuinfo; } 2>/dev/null | head -1`).Output()
	if s := strings.TrimSpace(string(out)); s != "" {
		return " tsc_early_khz=" + s
	}
	return ""
}

// startVM boots a guest; disks are host paths of images by serial.
func startVM(t *testing.T, memory string) *testVM {
	kernel := testKernel(t)
	v := &testVM{t: t, dir: t.TempDir()}
	v.console = filepath.Join(v.dir, "console")
	copy(v.token[:], "token of the test")
	agent := filepath.Join(v.dir, "cradle-init")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", agent, "../cmd/cradle-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cradle-init: %v\n%s", err, out)
	}
	initrd := filepath.Join(v.dir, "initrd")
	body, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(initrd, newc(map[string][]byte{"init": body}), 0o644); err != nil {
		t.Fatal(err)
	}
	v.cmd = exec.Command("qemu-system-x86_64",
		"-M", "microvm,x-option-roms=off,rtc=on,acpi=on", "-accel", "tcg,tb-size=64", "-cpu", "max,cx16=off",
		"-m", memory, "-smp", "1", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 reboot=t panic=-1 quiet tsc=reliable norandmaps"+tscKHz(),
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "file:"+v.console, "-no-reboot",
		"-device", "virtio-serial-device,max_ports=4",
		"-chardev", "socket,id=a,path="+v.dir+"/agent,server=on,wait=off",
		"-device", "virtserialport,chardev=a,name="+api.AgentPortName,
		"-device", "virtio-scsi-device,id=scsi0", "-qmp", "unix:"+v.dir+"/qmp,server=on,wait=off")
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if v.client != nil {
			v.client.Close()
		}
		v.cmd.Process.Kill()
		v.cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(v.console)
			t.Logf("console:\n%s", b)
		}
	})
	v.qmp = v.connect("qmp")
	v.qmpIn = json.NewDecoder(v.qmp)
	var greeting any
	v.qmpIn.Decode(&greeting)
	v.command("qmp_capabilities", nil)
	v.dial()
	return v
}

func (v *testVM) connect(name string) net.Conn {
	v.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", filepath.Join(v.dir, name))
		if err == nil {
			return c
		}
		if time.Now().After(deadline) {
			v.t.Fatal(err)
		}
	}
}

// dial opens a new session.
func (v *testVM) dial() {
	v.t.Helper()
	// More than the 90 s that a sandbox has for its boot: other tests may be at work on the same processors.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c, err := wire.Dial(ctx, v.connect("agent"), v.token)
	if err != nil {
		v.t.Fatal(err)
	}
	v.client = c
}

// command gives the monitor a command that must succeed.
func (v *testVM) command(name string, args any) {
	v.t.Helper()
	if err := v.ask(name, args); err != nil {
		v.t.Fatal(err)
	}
}

func (v *testVM) ask(name string, args any) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	req := map[string]any{"execute": name}
	if args != nil {
		req["arguments"] = args
	}
	json.NewEncoder(v.qmp).Encode(req)
	for {
		var resp struct {
			Return, Error any
			Event         string
		}
		if err := v.qmpIn.Decode(&resp); err != nil {
			return fmt.Errorf("qmp %s: %w", name, err)
		}
		if resp.Error != nil {
			return fmt.Errorf("qmp %s: %v", name, resp.Error)
		}
		if resp.Event == "" {
			return nil
		}
	}
}

// plug makes a host file a disk of the guest.
func (v *testVM) plug(path string, readOnly bool) string {
	v.t.Helper()
	v.disks++
	serial := fmt.Sprintf("disk%d", v.disks)
	v.command("blockdev-add", map[string]any{
		"driver": "raw", "node-name": serial, "read-only": readOnly,
		"file": map[string]any{"driver": "file", "filename": path, "locking": "off", "read-only": readOnly},
	})
	v.command("device_add", map[string]any{
		"driver": "scsi-hd", "bus": "scsi0.0", "id": "d" + serial, "drive": serial, "serial": serial,
		"channel": 0, "scsi-id": v.disks / 200, "lun": v.disks % 200,
	})
	return serial
}

// erofsLayer makes a layer from a shell script that fills a directory.
func (v *testVM) erofsLayer(script string) api.Disk {
	v.t.Helper()
	dir, err := os.MkdirTemp(v.dir, "layer")
	if err != nil {
		v.t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		v.t.Fatalf("%v\n%s", err, out)
	}
	img := dir + ".erofs"
	if out, err := exec.Command("mkfs.erofs", img, dir).CombinedOutput(); err != nil {
		v.t.Fatalf("%v\n%s", err, out)
	}
	return api.Disk{Serial: v.plug(img, true), FSType: "erofs"}
}

// scratch makes an empty ext4 disk.
func (v *testVM) scratch() *api.Disk {
	v.t.Helper()
	img := filepath.Join(v.dir, fmt.Sprintf("scratch%d", v.disks))
	f, err := os.Create(img)
	if err != nil {
		v.t.Fatal(err)
	}
	f.Truncate(1 << 30)
	f.Close()
	out, err := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", img).CombinedOutput()
	if err != nil {
		v.t.Fatalf("%v\n%s", err, out)
	}
	return &api.Disk{Serial: v.plug(img, false), FSType: "ext4"}
}

// call makes a call that must succeed.
func (v *testVM) call(method string, params, result any) {
	v.t.Helper()
	if err := v.try(method, params, result); err != nil {
		v.t.Fatal(err)
	}
}

func (v *testVM) try(method string, params, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if method != api.MethodWait {
		return v.client.Call(ctx, method, params, result)
	}
	s, err := v.client.Stream(ctx, method, params, result) // whose end would end the waiting
	if err == nil {
		s.Close()
	}
	return err
}

// output reads all of a process's output, acknowledging as it goes.
func (v *testVM) output(ref api.ProcessRef) (stdout, stderr []byte) {
	v.t.Helper()
	s, err := v.client.Stream(context.Background(), api.MethodOutput, api.OutputRequest{ProcessRef: ref}, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	defer s.Close()
	out, errs, err := readRecords(s, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	return out, errs
}

// firstOutput returns when a process has written something.
func (v *testVM) firstOutput(ref api.ProcessRef) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := v.client.Stream(ctx, api.MethodOutput, api.OutputRequest{ProcessRef: ref}, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	defer s.Close()
	s.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := s.Read(make([]byte, 1)); err != nil {
		v.t.Fatal(err)
	}
}

// newc writes a cpio archive of executables.
func newc(files map[string][]byte) []byte {
	var b bytes.Buffer
	ino := 1
	add := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		b.Write(data)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		ino++
	}
	for name, data := range files {
		add(name, 0o100755, data)
	}
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// code returns the agent's error code, or the empty string.
func code(err error) api.ErrorCode {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
