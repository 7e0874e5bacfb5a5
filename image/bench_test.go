package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cradlevm/cradle/image/imagetest"
)

// benchMiB is the size of the benchmark's image: that of the goal.
const benchMiB = 450

// benchLayer makes a tar of n MiB that compresses about as well as programs and their data do, 2.5 to 1.
func benchLayer(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = binary.LittleEndian.AppendUint64(nil, rnd.Uint64())[:3+rnd.IntN(6)]
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := 0; b.Len() < n<<20; i++ {
		body := make([]byte, 0, 64<<10)
		for len(body) < 60<<10 {
			if rnd.IntN(4) == 0 {
				body = binary.LittleEndian.AppendUint16(body, uint16(rnd.Uint32()))
			} else {
				body = append(body, words[rnd.IntN(1+rnd.IntN(len(words)))]...)
			}
		}
		must(0, tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/f%d", i), Mode: 0o644, Size: int64(len(body))}))
		must(tw.Write(body))
	}
	must(0, tw.Close())
	return b.Bytes()
}

// BenchmarkLoad loads a docker-archive of 450 MiB, compressed as a whole ("docker save | gzip") or by layer, and
// beside it, on the same machine in the same minute, runs what one would do by hand: gunzip | sha256sum.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	var tars [][]byte
	for i := range 3 {
		tars = append(tars, benchLayer(benchMiB/3, uint64(i)))
	}
	img := must(imagetest.Image(v1.Config{}, tars...))
	byLayer, whole := filepath.Join(dir, "layers.tar"), filepath.Join(dir, "whole.tar.gz")
	f := must(os.Create(byLayer))
	must(0, imagetest.WriteDockerArchive(f, "bench:1", img))
	f.Close()
	f = must(os.Create(whole))
	z := gzip.NewWriter(f)
	writePlainArchive(z, tars)
	z.Close()
	f.Close()
	img, tars = nil, nil
	b.Run("gunzip-sha256sum", func(b *testing.B) {
		b.SetBytes(benchMiB << 20)
		for b.Loop() {
			if out, err := exec.Command("sh", "-c", "gunzip -c "+whole+" | sha256sum").CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
	for name, file := range map[string]string{"whole-gzip": whole, "layers-gzip": byLayer} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchMiB << 20)
			for b.Loop() {
				b.StopTimer()
				s := openStore(b, Options{})
				r := must(os.Open(file))
				b.StartTimer()
				start := time.Now()
				if _, err := s.Load(context.Background(), r, nil); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(start).Seconds(), "s/load")
				b.StopTimer()
				r.Close()
				must2(s.Remove("bench:1", true))
				b.StartTimer()
			}
		})
	}
}

// writePlainArchive writes a docker-archive of plain layers.
func writePlainArchive(z *gzip.Writer, tars [][]byte) {
	var names []string
	var files []imagetest.File
	for i, t := range tars {
		names = append(names, fmt.Sprintf("%d/layer.tar", i))
		files = append(files, imagetest.File{Name: names[i], Body: t})
	}
	files = append(files, imagetest.File{Name: "c.json", Body: configOf(tars...)},
		imagetest.File{Name: "manifest.json", Body: manifestJSON("c.json", []string{"bench:1"}, names...)})
	must(z.Write(imagetest.Tar(files...)))
}
