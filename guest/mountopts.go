package guest

import (
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// mountOptions are fstab-style options, taken apart.
type mountOptions struct {
	flags       uintptr   // MS_BIND included
	propagation []uintptr // applied after the mount, one call each
	data        string    // for the filesystem
}

// mountFlags are the options that set or clear a flag.
var mountFlags = map[string]struct {
	clear bool
	flag  uintptr
}{
	"defaults": {}, "ro": {false, unix.MS_RDONLY}, "rw": {true, unix.MS_RDONLY},
	"suid": {true, unix.MS_NOSUID}, "nosuid": {false, unix.MS_NOSUID},
	"dev": {true, unix.MS_NODEV}, "nodev": {false, unix.MS_NODEV},
	"exec": {true, unix.MS_NOEXEC}, "noexec": {false, unix.MS_NOEXEC},
	"sync": {false, unix.MS_SYNCHRONOUS}, "async": {true, unix.MS_SYNCHRONOUS},
	"dirsync": {false, unix.MS_DIRSYNC}, "mand": {false, unix.MS_MANDLOCK}, "nomand": {true, unix.MS_MANDLOCK},
	"atime": {true, unix.MS_NOATIME}, "noatime": {false, unix.MS_NOATIME},
	"diratime": {true, unix.MS_NODIRATIME}, "nodiratime": {false, unix.MS_NODIRATIME},
	"relatime": {false, unix.MS_RELATIME}, "norelatime": {true, unix.MS_RELATIME},
	"strictatime": {false, unix.MS_STRICTATIME}, "nostrictatime": {true, unix.MS_STRICTATIME},
	"iversion": {false, unix.MS_I_VERSION}, "noiversion": {true, unix.MS_I_VERSION},
	"silent": {false, unix.MS_SILENT}, "loud": {true, unix.MS_SILENT},
	"nosymfollow": {false, unix.MS_NOSYMFOLLOW}, "symfollow": {true, unix.MS_NOSYMFOLLOW},
	"bind": {false, unix.MS_BIND}, "rbind": {false, unix.MS_BIND | unix.MS_REC},
}

var propagationFlags = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// refusedOptions mean something to runtimes, not to filesystems, and are not done here.
var refusedOptions = map[string]bool{
	"tmpcopyup": true, "idmap": true, "ridmap": true, "rro": true, "rrw": true, "rnosuid": true, "rsuid": true,
	"rnodev": true, "rdev": true, "rnoexec": true, "rexec": true, "rnoatime": true, "ratime": true,
	"rnodiratime": true, "rdiratime": true, "rrelatime": true, "rnorelatime": true, "rstrictatime": true,
	"rnostrictatime": true, "rnosymfollow": true, "rsymfollow": true,
}

// parseMountOptions takes options apart; what it does not know is left to the filesystem, which refuses what it
// does not know either.
func parseMountOptions(options []string) (o mountOptions, err error) {
	var data []string
	for _, opt := range options {
		if f, ok := mountFlags[opt]; ok {
			if f.clear {
				o.flags &^= f.flag
			} else {
				o.flags |= f.flag
			}
		} else if p, ok := propagationFlags[opt]; ok {
			o.propagation = append(o.propagation, p)
		} else if refusedOptions[opt] {
			return o, api.Errorf(api.CodeUnsupported, "mount option %q is not supported", opt)
		} else if opt != "" {
			data = append(data, opt)
		}
	}
	o.data = strings.Join(data, ",")
	if len(o.data) >= 4096 {
		return o, api.Errorf(api.CodeInvalid, "mount options of %d bytes", len(o.data))
	}
	return o, nil
}
