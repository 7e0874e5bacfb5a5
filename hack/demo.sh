#!/usr/bin/env bash
# Runs a container in a virtual machine of its own, in an installation of its own, and leaves nothing behind. Wants
# bin/ and out/guest; `make demo` makes both.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
cradle=$here/bin/cradle
image=${1:-debian}

# Short paths: a unix socket's may have 107 bytes.
home=$(mktemp -d "${TMPDIR:-/tmp}/cradle-demo-XXXXXX")
export CRADLE_ROOT=$home/root CRADLE_RUN=$home/run CRADLE_GUEST=$here/out/guest
unset CRADLE_HOST
trap '"$cradle" system reset --force; rm -rf "$home"' EXIT

show() {
	echo "\$ $*" >&2
	"$@"
}
cradle() { "$cradle" "$@"; }

"$here/hack/images.sh" "$here/out/images" "$image"
show cradle load -i "$here/out/images/$image.tar"
outside=$(uname -r)
inside=$(show cradle run --rm "$image" uname -r)
# shellcheck disable=SC2016 # for the container's shell to expand
show cradle run --rm "$image" sh -c 'echo "hello from $HOSTNAME, pid $$, with $(grep -c ^processor /proc/cpuinfo) CPU"'
echo
echo "kernel outside: $outside"
echo "kernel inside:  $inside"
if [ "$inside" = "$outside" ]; then
	echo "the container did not run in a virtual machine" >&2
	exit 1
fi
