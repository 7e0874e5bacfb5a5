package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/vm"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func TestArgs(t *testing.T) {
	for name, l := range map[string]launch{
		"7.2-tcg":  {version: version{7, 2}, accel: vm.AccelTCG, tscKHz: 2596122},
		"7.2-kvm":  {version: version{7, 2}, accel: vm.AccelKVM},
		"10.0-tcg": {version: version{10, 0}, accel: vm.AccelTCG, tscKHz: 2596122},
		"10.0-kvm": {version: version{10, 0}, accel: vm.AccelKVM},
	} {
		t.Run(name, func(t *testing.T) {
			l.binary, l.id, l.cpus, l.memory = "/usr/bin/qemu-system-x86_64", "a.b-c_1", 2, 128<<20
			l.cmdline = []string{"cradle.word=1"}
			l.kernel, l.initrd, l.monitor, l.console, l.port = 3, 4, 5, 6, 7
			l.nics = []nicArg{{tap: 8}, {}, {stream: 9}}
			got := strings.Join(l.args(), "\n") + "\n"
			golden := filepath.Join("testdata", name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the command line has changed; go test -update accepts it:\n%s", got)
			}
		})
	}
	if line := strings.Join((&launch{accel: vm.AccelTCG, code: 16 << 20}).args(), " "); !strings.Contains(line, " tcg,tb-size=16 ") {
		t.Errorf("with little translated code: %s", line)
	}
	bare := launch{accel: vm.AccelTCG, initrd: -1}
	if line := strings.Join(bare.args(), " "); strings.Contains(line, "-initrd") || strings.Contains(line, "tsc") {
		t.Errorf("without initrd and frequency: %s", line)
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n": {7, 2},
		"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright":   {10, 0},
		"QEMU emulator version 6.2.0":                                      {},
		"busybox":                                                          {},
		"version 99999999999999999999.1":                                   {},
	} {
		got, err := parseVersion(text)
		if got != want || (err == nil) != (want != version{}) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestDeviceID(t *testing.T) {
	if slot, serial, ok := parseDeviceID(deviceID(300, "ABC0")); slot != 300 || serial != "ABC0" || !ok {
		t.Error(slot, serial, ok)
	}
	for _, id := range []string{"", "scsi0", "disk-1", "disk-x-A", "disk--1-A", "disk-01-A", "disk-4096-A", "disk-1-A-B"} {
		if _, _, ok := parseDeviceID(id); ok {
			t.Errorf("%q counts as a disk", id)
		}
	}
}
