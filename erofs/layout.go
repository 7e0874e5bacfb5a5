package erofs

// placement finds a place for each inode: first all inodes, each with its xattrs and what is inline, then the blocks
// that are too big to be inline. Inodes of one directory lie side by side, for they are read together.
type placement struct {
	bits   uint8
	block  int64
	start  int64    // of the metadata area in the image, a multiple of metaAlign
	end    int64    // of the inodes, later of everything
	order  []*inode // as they lie in the image
	blocks int64    // how many data blocks follow the inodes
	chunks bool     // an inode is by chunks
}

const (
	metaAlign = 4096 // the guest's page cache then holds no page that is half tar
	// The first slots stay empty: inode number 0 means "none" to too many programs. And a multiple of inodeSize.
	firstInode = 64
)

func newPlacement(bits uint8, start int64) *placement {
	start = (start + metaAlign - 1) &^ (metaAlign - 1)
	return &placement{bits: bits, block: 1 << bits, start: start, end: start + firstInode}
}

// all places the tree. dirs are all directories, the root first: the superblock has only 16 bits for its nid.
func (p *placement) all(dirs []*inode) error {
	p.one(dirs[0])
	for _, d := range dirs {
		for _, e := range d.dir.sorted {
			if e.inode.nid == 0 {
				p.one(e.inode)
			}
		}
	}
	p.end = (p.end + p.block - 1) &^ (p.block - 1)
	base := p.end
	p.end += p.blocks * p.block
	if _, err := blockAddr(p.end+imageAlign, p.bits); err != nil {
		return err
	}
	for _, i := range p.order {
		if n, _ := p.split(i); n > 0 {
			i.addr += uint32(base >> p.bits) // counted from the first such block until now
		}
	}
	return nil
}

// split says how much of what an inode carries in the metadata area lies in blocks of its own and how much follows
// the inode: a directory's entries, a symlink's target, the chunk table of a sparse file.
func (p *placement) split(i *inode) (blocks, tail int64) {
	switch {
	case i.sparse != nil:
		return 0, i.sparse.tableSize(i.size)
	case i.is(modeDir), i.is(modeSymlink):
		blocks, tail = i.size>>p.bits, i.size&(p.block-1)
		if tail > p.block-2*inodeSize { // inode and tail would hardly meet in one block
			blocks, tail = blocks+1, 0
		}
	}
	return blocks, tail
}

// one places an inode. It lies within one block, for kernels before 5.9 read it so, and so does its inline tail, for
// all do (erofs_map_blocks_flatmode, data.c). A chunk table may go on.
func (p *placement) one(i *inode) {
	if i.is(modeDir) {
		i.size = dirSize(i.dir.sorted, int(p.block))
	}
	blocks, tail := p.split(i)
	pos := alignInode(p.end)
	head := int64(inodeSize)
	if i.xattrs != nil {
		head += int64(len(i.xattrs.body))
	}
	if i.sparse != nil {
		p.chunks = true
	} else if off := (pos + head) & (p.block - 1); off+tail > p.block {
		pos = alignInode(pos + p.block - off)
	}
	if blocks > 0 {
		i.addr = uint32(p.blocks)
		p.blocks += blocks
	}
	i.nid = uint64(pos-p.start) / slotSize
	p.end = pos + head + tail
	p.order = append(p.order, i)
}

func alignInode(pos int64) int64 { return (pos + inodeSize - 1) &^ (inodeSize - 1) }
