#!/usr/bin/env bash
# Benchmarks: gets the peers (packages of PEER_PACKAGES; the rest built once by version, cached outside the clone), then
# runs test/bench, which prints one table. Called by `make bench`, which has built the programs, the guest and the test
# images; arguments go to test/bench. What cannot be had is said, and the rest is measured.
set -euo pipefail

containerd=v2.4.2
runsc=v0.0.0-20260905035102-160fafc42237
peers=${CRADLE_CACHE:-/var/cache/cradle}/peers
bin=${CRADLE_TEST_BIN:?run this through make bench}

# build DIR PACKAGE...: builds what DIR lacks into it. A build that was cut short leaves nothing half made: go install
# moves whole programs into place.
build() {
  local dir=$1 package name missing=()
  shift
  mkdir -p "$dir"
  exec 9>"$dir/.lock"
  flock 9
  for package in "$@"; do
    name=${package%@*}
    [ -x "$dir/${name##*/}" ] || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    echo "building for comparison (minutes, once): ${missing[*]}" >&2
    CGO_ENABLED=0 GOBIN=$dir go install "${missing[@]}" || echo "not to be had: ${missing[*]}" >&2
  fi
  exec 9>&-
}

lacking=()
for package in ${PEER_PACKAGES:-}; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || lacking+=("$package")
done
if [ ${#lacking[@]} -gt 0 ]; then
  echo "installing ${lacking[*]}" >&2
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${lacking[@]}"; } >/dev/null ||
    echo "not to be had: ${lacking[*]}" >&2
fi

c=github.com/containerd/containerd/v2/cmd
build "$peers/containerd-$containerd" "$c/containerd@$containerd" "$c/ctr@$containerd" "$c/containerd-shim-runc-v2@$containerd"
build "$peers/runsc-$runsc" "gvisor.dev/gvisor/runsc@$runsc"

flags=(-bin "$bin" -guest "${CRADLE_GUEST:?}" -images "${CRADLE_TEST_IMAGES:?}")
[ ! -x "$peers/containerd-$containerd/containerd-shim-runc-v2" ] || flags+=(-containerd "$peers/containerd-$containerd")
[ ! -x "$peers/runsc-$runsc/runsc" ] || flags+=(-runsc "$peers/runsc-$runsc/runsc")

# Built, not run by go run: signals are to reach it, and nobody else.
program=$(mktemp -d)
trap 'rm -rf "$program"' EXIT
go build -o "$program/bench" ./test/bench
"$program/bench" "${flags[@]}" "$@" &
bench=$!
trap 'kill -INT $bench 2>/dev/null' INT TERM
# A trap interrupts wait: the program is still cleaning up then.
while kill -0 $bench 2>/dev/null; do
  status=0
  wait $bench || status=$?
done
exit "$status"
