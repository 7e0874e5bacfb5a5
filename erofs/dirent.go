package erofs

// dirent is one name of a directory.
type dirent struct {
	name  string
	inode *inode
}

// packDir calls f for each run of entries that share a block: struct erofs_dirent for each, then their names, nothing
// crossing the block's end. The entries must be sorted as bytes, across blocks too, "." and ".." among them: the
// kernel searches by halves (namei.c).
func packDir(entries []dirent, block int, f func(run []dirent, size int)) {
	start, size := 0, 0
	for k, e := range entries {
		need := direntSize + len(e.name)
		if size+need > block {
			f(entries[start:k], size)
			start, size = k, 0
		}
		size += need
	}
	f(entries[start:], size)
}

// dirSize is the directory's i_size: all blocks count whole but the last.
func dirSize(entries []dirent, block int) (size int64) {
	packDir(entries, block, func(_ []dirent, n int) {
		size = (size+int64(block)-1)/int64(block)*int64(block) + int64(n)
	})
	return size
}

// appendRun encodes one block's entries.
func appendRun(b []byte, run []dirent) []byte {
	offset := direntSize * len(run) // of the first name, which also tells how many entries there are
	for _, e := range run {
		var d [direntSize]byte
		le.PutUint64(d[0:], e.inode.nid)
		le.PutUint16(d[8:], uint16(offset))
		d[10] = fileType(e.inode.mode)
		b = append(b, d[:]...)
		offset += len(e.name)
	}
	for _, e := range run {
		b = append(b, e.name...)
	}
	return b
}
