#!/usr/bin/env bash
# Benchmarks: builds the peers once (cached outside the clone), then runs test/bench, which prints one table.
# Called by `make bench`, which has built the programs, the guest and the test images.
set -euo pipefail

containerd=v2.4.2
peers=${CRADLE_CACHE:-/var/cache/cradle}/peers/containerd-$containerd
bin=${CRADLE_TEST_BIN:?run this through make bench}

mkdir -p "$peers"
exec 9>"$peers/.lock"
flock 9
if [ ! -x "$peers/ctr" ] || [ ! -x "$peers/containerd" ]; then
  echo "building containerd $containerd for comparison (minutes, once)" >&2
  CGO_ENABLED=0 GOBIN=$peers go install \
    "github.com/containerd/containerd/v2/cmd/containerd@$containerd" \
    "github.com/containerd/containerd/v2/cmd/ctr@$containerd"
fi
exec 9>&-

exec go run ./test/bench -bin "$bin" -guest "${CRADLE_GUEST:?}" -images "${CRADLE_TEST_IMAGES:?}" -peers "$peers" "$@"
