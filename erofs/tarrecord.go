package erofs

import (
	"errors"
	"hash/crc32"
	"io"
)

// A TarIndex image says where its tar is in the first bytes of the file, which erofs leaves to boot loaders:
//
//	0   8  "cradleta"
//	8   8  offset of the tar, little-endian
//	16  8  length of the tar
//	24  4  crc32c of bytes 0 to 23
const (
	tarMagic      = "cradleta"
	tarRecordSize = 28
)

func tarRecord(length int64) []byte {
	b := append(make([]byte, 0, tarRecordSize), tarMagic...)
	b = le.AppendUint64(b, tarOffset)
	b = le.AppendUint64(b, uint64(length))
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func openTar(image io.ReaderAt) (*io.SectionReader, error) {
	b := make([]byte, superOffset+4)
	if _, err := image.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return nil, invalidf("not an image")
	} else if err != nil {
		return nil, err
	}
	switch {
	case le.Uint32(b[superOffset:]) != superMagic:
		return nil, invalidf("not an erofs image")
	case string(b[:8]) != tarMagic || le.Uint32(b[24:]) != crc32.Checksum(b[:24], castagnoli):
		return nil, invalidf("no tar in this image")
	}
	off, n := le.Uint64(b[8:]), le.Uint64(b[16:])
	if off != tarOffset || n > 1<<62 {
		return nil, invalidf("no tar in this image")
	}
	if n > 0 {
		if _, err := image.ReadAt(b[:1], int64(off+n-1)); errors.Is(err, io.EOF) {
			return nil, invalidf("the image is truncated")
		} else if err != nil {
			return nil, err
		}
	}
	return io.NewSectionReader(image, int64(off), int64(n)), nil
}
