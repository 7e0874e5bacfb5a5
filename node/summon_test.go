package node

import (
	"io"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An image for another platform than the one asked for is not there, in the words that `create` has for it.
func TestSummonPlatform(t *testing.T) {
	h := newHouse(t)
	begun := false
	err := h.Summon(t.Context(), "img", &ocispec.Platform{OS: "linux", Architecture: "arm64"}, func() { begun = true }, io.Discard)
	wantNotFound(t, err)
	if begun || !strings.Contains(err.Error(), "image with reference img was found but its platform (linux/amd64) does not match the specified platform (linux/arm64)") {
		t.Errorf("begun %t: %v", begun, err)
	}
	for _, fits := range []*ocispec.Platform{nil, {OS: "linux", Architecture: "amd64"}} {
		img, err := h.images.Get("img")
		if err != nil {
			t.Fatal(err)
		}
		if err := checkPlatform("img", fits, img); err != nil {
			t.Error(err)
		}
	}
}
