package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// The on-disk format, from the kernel's fs/erofs/erofs_fs.h. Names follow it so that they can be looked up there.
const (
	superMagic    = 0xE0F5E1E2 // EROFS_SUPER_MAGIC_V1, include/uapi/linux/magic.h
	superOffset   = 1024       // EROFS_SUPER_OFFSET
	superSize     = 128        // struct erofs_super_block
	slotSize      = 32         // a nid counts slots of this size from meta_blkaddr (erofs_iloc, internal.h)
	inodeSize     = 64         // struct erofs_inode_extended
	direntSize    = 12         // struct erofs_dirent
	xattrHeadSize = 12         // struct erofs_xattr_ibody_header
	xattrItemSize = 4          // struct erofs_xattr_entry
	nullAddr      = 1<<32 - 1  // EROFS_NULL_ADDR: a chunk that is a hole
	nameLen       = 255        // EROFS_NAME_LEN

	compatSBChecksum    = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	compatMtime         = 0x2 // EROFS_FEATURE_COMPAT_MTIME
	incompatChunkedFile = 0x4 // EROFS_FEATURE_INCOMPAT_CHUNKED_FILE, Linux 5.15

	layoutPlain  = 0 // EROFS_INODE_FLAT_PLAIN
	layoutInline = 2 // EROFS_INODE_FLAT_INLINE
	layoutChunks = 4 // EROFS_INODE_CHUNK_BASED

	// i_format: bit 0 EROFS_INODE_LAYOUT_EXTENDED, bits 1..3 the data layout (EROFS_I_DATALAYOUT_BIT).
	formatExtended  = 1
	formatLayoutBit = 1
)

// erofs_xattr_entry.e_name_index
const (
	xattrUser       = 1
	xattrACLAccess  = 2
	xattrACLDefault = 3
	xattrTrusted    = 4
	xattrSecurity   = 6
)

// File modes as include/uapi/linux/stat.h has them; package syscall would tie the format to the host.
const (
	modeFmt     = 0o170000
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// fileType is erofs_dirent.file_type: the generic FT_* of include/linux/fs_types.h.
func fileType(mode uint16) byte {
	switch mode & modeFmt {
	case modeRegular:
		return 1
	case modeDir:
		return 2
	case modeChar:
		return 3
	case modeBlock:
		return 4
	case modeFIFO:
		return 5
	case modeSymlink:
		return 7
	}
	return 0
}

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// superblock is what varies of struct erofs_super_block.
type superblock struct {
	blockBits uint8
	incompat  uint32
	rootNid   uint16
	inodes    uint64
	blocks    uint32
	metaBlock uint32
	uuid      [16]byte
}

// encode returns the checksummed part of the front of the image: from superOffset to the end of the first block, or
// one block where blocks are smaller than that (erofs_superblock_csum_verify, super.c).
func (s *superblock) encode() []byte {
	n := 1 << s.blockBits
	if n > superOffset {
		n -= superOffset
	}
	b := make([]byte, n)
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatSBChecksum|compatMtime)
	b[12] = s.blockBits
	le.PutUint16(b[14:], s.rootNid)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	le.PutUint32(b[40:], s.metaBlock)
	copy(b[48:64], s.uuid[:])
	le.PutUint32(b[80:], s.incompat)
	// The kernel's crc32c(~0, …) leaves out the final inversion.
	le.PutUint32(b[4:], ^crc32.Checksum(b, castagnoli))
	return b
}

// encodeDev is the kernel's new_encode_dev (include/linux/kdev_t.h): 12 bits of major, 20 of minor.
func encodeDev(major, minor int64) (uint32, bool) {
	if major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20 {
		return 0, false
	}
	return uint32(minor&0xff | major<<8 | (minor&^0xff)<<12), true
}
