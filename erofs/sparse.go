package erofs

import "math/bits"

// segment is a run of a sparse file's data; what lies between segments is zeros.
type segment struct {
	logical  int64 // offset in the file
	length   int64
	physical int64 // offset in the image (TarIndex only)
}

// sparseFile is the data of a sparse file that stays where it is in the tar.
type sparseFile struct {
	segs      []segment
	chunkBits uint8 // chunks of this size have an address each; 0: not by chunks, the data was laid out anew
}

// checkSparse verifies a sparse map against the file's size and the length of its packed data, and drops empty
// segments: GNU tar ends a file that ends in a hole with one.
func checkSparse(segs []segment, size, packed int64) ([]segment, error) {
	var end, sum int64
	kept := segs[:0]
	for _, s := range segs {
		if s.logical < end || s.length < 0 || s.logical > size || s.length > size-s.logical {
			return nil, invalidf("bad sparse map")
		}
		end = s.logical + s.length
		sum += s.length
		if s.length > 0 {
			kept = append(kept, s)
		}
	}
	if size < 0 || sum != packed {
		return nil, invalidf("sparse map does not match the data")
	}
	return kept, nil
}

const (
	// maxSegments bounds the segments of one file: 24 MiB of memory.
	maxSegments = 1 << 20
	// maxChunks bounds the chunk table of one file: 4 MiB of the image. A file that needs more is laid out anew.
	maxChunks = 1 << 20
	// maxChunkBits: chunks of 1 GiB are plenty, and far from the format's limit (EROFS_CHUNK_FORMAT_BLKBITS_MASK).
	maxChunkBits = 30
)

// chunkBits finds the biggest chunk size by which the segments can be addressed where they are: each must start at a
// chunk's start, in the file, and at a block's, in the image, and fill its chunks, but for the file's end. 0: there is
// none, or the table would be too big.
func chunkBits(segs []segment, size int64) uint8 {
	all := int64(1) << maxChunkBits
	physical := int64(0)
	for _, s := range segs {
		all |= s.logical
		physical |= s.physical
		if s.logical+s.length != size {
			all |= s.length
		}
	}
	n := bits.TrailingZeros64(uint64(all))
	if n < tarIndexBits || physical&(blockSize-1) != 0 || chunks(size, uint8(n)) > maxChunks {
		return 0
	}
	return uint8(n)
}

func chunks(size int64, chunkBits uint8) int64 {
	n := size >> chunkBits
	if n<<chunkBits != size {
		n++
	}
	return n
}

// tableSize is the length of the chunk table, 0 when the file has none.
func (f *sparseFile) tableSize(size int64) int64 {
	if f.chunkBits == 0 {
		return 0
	}
	return 4 * chunks(size, f.chunkBits)
}

// chunkTable returns a block address for each chunk: an array of __le32 (EROFS_BLOCK_MAP_ENTRY_SIZE).
func (f *sparseFile) chunkTable(size int64) []byte {
	b := make([]byte, f.tableSize(size))
	for i := range b {
		b[i] = 0xff // nullAddr
	}
	for _, s := range f.segs {
		first := s.logical >> f.chunkBits
		for i := range chunks(s.length, f.chunkBits) {
			addr := (s.physical + i<<f.chunkBits) / blockSize
			le.PutUint32(b[4*(first+i):], uint32(addr))
		}
	}
	return b
}
