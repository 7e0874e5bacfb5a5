package guestos

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
)

// WriteInitrd writes an initial ramdisk with the static program initPath as /init and the modules, in the order
// given, as /modules/NNN-name.ko. /modules/order lists their file names one a line: the agent loads them in that
// order. The archive is not compressed (unpacking costs more than reading under emulation), and the same inputs
// give the same bytes.
func WriteInitrd(w io.Writer, initPath string, modules []Module) error {
	f, err := os.Open(initPath)
	if err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return fmt.Errorf("write initrd: %s is not a program", initPath)
	}

	c := &cpioWriter{w: w}
	c.dir(".", 0o755)
	c.dir("dev", 0o755)
	// The kernel opens /dev/console for init's stdio before init can mount devtmpfs.
	c.device("dev/console", 0o600, 5, 1)
	c.device("dev/null", 0o666, 1, 3)
	c.dir("modules", 0o755)
	c.dir("proc", 0o555)
	c.dir("run", 0o755)
	c.dir("sys", 0o555)
	c.dir("tmp", 0o1777)
	c.file("init", 0o755, info.Size(), f)
	if err := writeModules(c, modules); err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	if err := c.close(); err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	return nil
}

func writeModules(c *cpioWriter, modules []Module) error {
	var order strings.Builder
	for i, m := range modules {
		data, err := m.read()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%03d-%s.ko", i, m.Name)
		order.WriteString(name + "\n")
		c.file("modules/"+name, 0o644, int64(len(data)), bytes.NewReader(data))
	}
	c.file("modules/order", 0o644, int64(order.Len()), strings.NewReader(order.String()))
	return nil
}
