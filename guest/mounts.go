package guest

import (
	"fmt"
	"path"
	"strings"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guest/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// grafts are mounts made outside the container's root that are attached inside of it: detached trees by path.
type graft struct {
	path string
	tree int // from open_tree; closed once attached
	dir  bool
	done bool
}

// mounter makes a container's mounts. It runs on the container's thread, inside its root.
type mounter struct {
	volumes []*graft
	// later are mounts that only a process inside the new PID and cgroup namespaces can make.
	later []launch.Mount
	// disks finds the device of a serial.
	disks map[string]string
}

// laterType tells which filesystems show the namespaces of the process that mounts them.
func laterType(fstype string) bool {
	return fstype == "proc" || fstype == "cgroup" || fstype == "cgroup2"
}

// all makes the spec's mounts in their order, each volume before the first mount that lies inside of it.
func (m *mounter) all(mounts []specs.Mount) error {
	for i := range mounts {
		for _, v := range m.volumes {
			if !v.done && within(mounts[i].Destination, v.path) {
				if err := v.attach(); err != nil {
					return err
				}
			}
		}
		if err := m.one(&mounts[i]); err != nil {
			return fmt.Errorf("mount %s: %w", mounts[i].Destination, err)
		}
	}
	for _, v := range m.volumes {
		if !v.done {
			if err := v.attach(); err != nil {
				return err
			}
		}
	}
	return nil
}

// within reports whether p lies below dir.
func within(p, dir string) bool {
	return strings.HasPrefix(path.Clean(p), strings.TrimSuffix(dir, "/")+"/")
}

func (m *mounter) one(s *specs.Mount) error {
	if len(s.UIDMappings)+len(s.GIDMappings) > 0 {
		return api.Errorf(api.CodeUnsupported, "mounts.uidMappings is not supported")
	}
	o, err := parseMountOptions(s.Options)
	if err != nil {
		return err
	}
	if o.flags&unix.MS_BIND != 0 {
		return api.Errorf(api.CodeUnsupported, "a bind mount of %q is not supported: host paths do not exist in the guest", s.Source)
	}
	source := s.Source
	switch s.Type {
	case "proc", "sysfs", "devpts", "mqueue", "cgroup2", "tmpfs":
	case "cgroup":
		// Docker's name for "the cgroup filesystem", whichever version.
	case "ext4", "erofs":
		if source = m.disks[s.Source]; source == "" {
			return api.Errorf(api.CodeNotFound, "disk %q", s.Source)
		}
	default:
		return api.Errorf(api.CodeUnsupported, "mount type %.40q is not supported", s.Type)
	}
	if len(o.propagation) > 0 && laterType(s.Type) {
		return api.Errorf(api.CodeUnsupported, "propagation of %s is not supported", s.Type)
	}
	target, err := makeTarget(s.Destination, true)
	if err != nil {
		return err
	}
	if laterType(s.Type) || m.insideLater(target) {
		fstype := s.Type
		if fstype == "cgroup" {
			fstype = "cgroup2"
		}
		m.later = append(m.later, launch.Mount{Source: source, Target: target, Type: fstype, Flags: o.flags, Data: o.data})
		return nil
	}
	if s.Type == "tmpfs" {
		if o.data, err = keepMode(target, o.data); err != nil {
			return err
		}
	}
	if err := unix.Mount(source, target, s.Type, o.flags, o.data); err != nil {
		return api.Errorf(api.CodeInvalid, "%s (%s): %w", s.Type, strings.Join(s.Options, ","), err)
	}
	for _, p := range o.propagation {
		if err := unix.Mount("", target, "", p, ""); err != nil {
			return err
		}
	}
	return nil
}

// insideLater reports whether target lies inside a mount that is not there yet.
func (m *mounter) insideLater(target string) bool {
	for _, l := range m.later {
		if within(target, l.Target) {
			return true
		}
	}
	return false
}

// keepMode lets a tmpfs begin with the mode of the directory it covers; options given later win.
func keepMode(target, data string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		return "", err
	}
	mode := fmt.Sprintf("mode=%04o", st.Mode&0o7777)
	if data == "" {
		return mode, nil
	}
	return mode + "," + data, nil
}

// attach mounts the tree at its path.
func (g *graft) attach() error {
	target, err := makeTarget(g.path, g.dir)
	if err != nil {
		return err
	}
	g.done = true
	err = unix.MoveMount(g.tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	unix.Close(g.tree)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "mount %s: %w", g.path, err)
	}
	return nil
}

// openTree returns a detached copy of what is mounted at p.
func openTree(p string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree %s: %w", p, err)
	}
	return fd, nil
}

// makeReadOnly makes a detached mount one that nobody can write through. On error it is closed.
func makeReadOnly(tree int) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(tree)
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// hiddenMounts cover masked paths, then protect read-only ones. A path that does not exist needs neither.
func hiddenMounts(l *specs.Linux) []launch.Mount {
	var list []launch.Mount
	for _, p := range l.MaskedPaths {
		list = append(list,
			// One of the two fits: a file is covered by a device, a directory by an empty filesystem.
			launch.Mount{Source: "/dev/null", Target: p, Flags: unix.MS_BIND, Optional: true},
			launch.Mount{Source: "tmpfs", Target: p, Type: "tmpfs", Flags: unix.MS_RDONLY, Optional: true})
	}
	for _, p := range l.ReadonlyPaths {
		list = append(list,
			launch.Mount{Source: p, Target: p, Flags: unix.MS_BIND | unix.MS_REC, Optional: true},
			launch.Mount{Target: p, Flags: unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | strict, Optional: true})
	}
	return list
}
