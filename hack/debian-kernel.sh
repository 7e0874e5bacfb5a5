#!/usr/bin/env bash
# Takes a guest kernel from Debian, ready made: OUT_DIR/bzImage and OUT_DIR/modules, a tree as in /lib/modules/RELEASE.
#
#   hack/debian-kernel.sh [--update] [--release] OUT_DIR
#
# It is the newest linux-image-*-cloud that apt offers; with --release, the one the distribution released with. Nothing
# is installed. Packages are unpacked into ${CRADLE_CACHE:-/var/cache/cradle}/debian-kernel/VERSION; with one there, apt is
# asked again only on --update. CRADLE_QUIET=1 prints nothing but errors.
set -euo pipefail

arch=$(dpkg --print-architecture)
# Older ones do not mount erofs with 512-byte blocks.
wanted_version=6.4

exec 3>&2
# shellcheck source=hack/cache.sh
. "$(dirname "$(realpath "$0")")/cache.sh" debian-kernel

# newest_image prints the newest package of the kind: linux-image-6.12.117+deb12-cloud-amd64.
newest_image() {
	apt-cache search --names-only "^linux-image-[0-9][0-9.]*[-+.0-9a-z]*-cloud-$arch\$" | cut -d' ' -f1 |
		grep -E '^linux-image-[0-9]+\.[0-9]+\.[0-9]' | sort -V | tail -n1
}

# release_image prints the package the release's own meta-package depends on.
release_image() {
	apt-cache depends "linux-image-cloud-$arch" | awk '/Depends: linux-image-/ { print $2; exit }'
}

# unpack downloads the package $1 and unpacks kernel and modules into the directory $2.
unpack() {
	local release=${1#linux-image-} work=$2
	(cd "$work" && apt-get -o APT::Sandbox::User=root download -qq "$1")
	dpkg-deb -x "$work"/*.deb "$work/deb"
	mkdir "$work/done"
	mv "$work/deb/boot/vmlinuz-$release" "$work/done/bzImage"
	# Debian 13 on has merged /lib into /usr.
	mv "$(find "$work/deb" -path "*/lib/modules/$release" -type d | head -n1)" "$work/done/modules"
	# The package leaves the list of dependencies to depmod, which wants the tree where it is installed.
	mkdir -p "$work/root/lib/modules"
	mv "$work/done/modules" "$work/root/lib/modules/$release"
	/sbin/depmod -b "$work/root" "$release"
	mv "$work/root/lib/modules/$release" "$work/done/modules"
}

update=
kind=newest
while [ $# -gt 1 ]; do
	case $1 in
	--update) update=yes ;;
	--release) kind=release ;;
	*) die "no such option: $1" ;;
	esac
	shift
done
[ $# = 1 ] || die "usage: hack/debian-kernel.sh [--update] [--release] OUT_DIR"
out=$1

lock_cache

if [ -n "$update" ] || [ ! -e "$cache/$kind/bzImage" ]; then
	if [ ! -x /sbin/depmod ] || ! command -v xz >/dev/null; then need kmod xz-utils; fi
	package=$("${kind}_image")
	[ -n "$package" ] || die "apt offers no linux-image-*-cloud-$arch (apt-get update first?)"
	version=${package#linux-image-}
	dpkg --compare-versions "${version%%-*}" ge "$wanted_version" ||
		say "$version is older than $wanted_version: erofs works with 4096-byte blocks only"
	if [ ! -e "$cache/$version/bzImage" ]; then
		say "unpacking $package"
		work=$(mktemp -d "$cache/.unpack-XXXXXX")
		trap 'rm -rf "$work"' EXIT
		unpack "$package" "$work"
		rm -rf "${cache:?}/$version"
		mv "$work/done" "$cache/$version"
	fi
	ln -sfn "$version" "$cache/.$kind.$$"
	mv -T "$cache/.$kind.$$" "$cache/$kind"
fi

# Hard links where the file systems allow: the tree is 60 MB.
mkdir -p "$out"
if ! cmp -s "$cache/$kind/bzImage" "$out/bzImage" || [ ! -e "$out/modules/modules.dep" ]; then
	rm -rf "$out/modules" "$out/.new"
	mkdir "$out/.new"
	cp -al "$cache/$kind/." "$out/.new/" 2>/dev/null || cp -a "$cache/$kind/." "$out/.new/"
	mv "$out/.new/modules" "$out/modules"
	mv -f "$out/.new/bzImage" "$out/bzImage"
	rmdir "$out/.new"
fi
say "$out/bzImage is $(basename "$(readlink "$cache/$kind")")"
