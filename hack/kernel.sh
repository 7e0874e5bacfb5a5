#!/usr/bin/env bash
# Builds cradle's guest kernel: OUT_DIR/bzImage, from Debian's linux-source, hack/kernel-patches and guestos/kernel/config.
#
#   hack/kernel.sh [--update] OUT_DIR
#
# The result is kept in ${CRADLE_CACHE:-/var/cache/cradle}/kernel/KEY, where KEY is the sha256 of the source package's
# version, the config, the patches and the build function below. Once built, no network, apt or compiler is needed; --update looks
# for newer sources. CRADLE_QUIET=1 prints nothing but errors.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
config=$here/../guestos/kernel/config
patches=("$here"/kernel-patches/*.patch) # applied in this order; each says why it is there
min_version=6.6

exec 3>&2
# shellcheck source=hack/cache.sh
. "$here/cache.sh" kernel

# newest_source prints "PACKAGE VERSION" of the newest linux-source-N.N apt can give, with apt's options as arguments.
newest_source() {
	apt-cache "$@" search --names-only '^linux-source-[0-9.]+$' | cut -d' ' -f1 | sort -V | tail -n1 | while read -r name; do
		dpkg --compare-versions "${name#linux-source-}" ge "$min_version" || continue
		apt-cache "$@" madison "$name" | awk -v n="$name" 'NR == 1 { print n, $3 }'
	done
}

# backports_apt prepares an apt of its own in the directory $1, which knows only the backports suite of the mirror that
# the system's apt uses, so that the system's sources stay as they are. It sets apt_options.
backports_apt() {
	local dir=$1 codename uri key
	codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	# shellcheck disable=SC2016 # apt expands it
	uri=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Origin: Debian" "Label: Debian" \
		"Codename: $codename" | head -n1)
	[ -n "$uri" ] || die "no linux-source >= $min_version in apt, and no Debian mirror in its sources (apt-get update first?)"
	key=$(find /usr/share/keyrings -name 'debian-archive-keyring.*' | head -n1)
	mkdir -p "$dir"/{lists/partial,cache/archives/partial}
	echo "deb ${key:+[signed-by=$key] }$uri $codename-backports main" >"$dir/sources.list"
	apt_options+=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache")
	apt-get "${apt_options[@]}" update -qq >&2
}

# check_config fails unless every line of the fragment came true in the .config file $1.
check_config() {
	awk -F= '
		!/^CONFIG_/ { next }
		{ value = substr($0, length($1) + 2) }
		NR == FNR { have[$1] = value; next }
		{ got = ($1 in have) ? have[$1] : "n" }
		got != value { printf "kernel: %s: wanted %s, got %s\n", $1, value, got; bad = 1 }
		END { exit bad }' "$1" "$config" >&2
}

# build makes the kernel from the source package $1 of version $2 in the directory $3.
build() {
	local name=$1 version=$2 work=$3 tarball change
	need bc bison flex gcc libc6-dev libelf-dev libssl-dev lz4 make patch xz-utils
	say "downloading $name $version"
	(cd "$work" && apt-get "${apt_options[@]}" download -qq "$name=$version")
	dpkg-deb -x "$work"/*.deb "$work/deb"
	tarball=$(find "$work/deb/usr/src" -name 'linux-source-*.tar.*' -type f | head -n1)
	[ -n "$tarball" ] || die "$name holds no source"
	mkdir "$work/linux"
	tar -xf "$tarball" -C "$work/linux" --strip-components=1
	rm -r "$work/deb" "$work"/*.deb

	cd "$work/linux"
	for change in "${patches[@]}"; do
		patch -p1 --fuzz=0 <"$change"
	done
	# Fixed, so that the same sources and compiler give the same bytes.
	export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=cradle KBUILD_BUILD_HOST=cradle KBUILD_BUILD_VERSION=1
	make allnoconfig KCONFIG_ALLCONFIG="$config"
	check_config .config
	say "building with $(nproc) jobs; this takes some minutes"
	make -j"$(nproc)" bzImage
}

update=
if [ "${1:-}" = --update ]; then
	update=yes
	shift
fi
[ $# = 1 ] || die "usage: hack/kernel.sh [--update] OUT_DIR"
out=$1

# Only what decides the result: a change of a message is no reason to build for minutes.
recipe=$( (cat "$config" "${patches[@]}" && declare -f build) | sum -)
# The last build of this recipe, whatever the source version: what a run without --update takes.
latest=$cache/recipe-$recipe
apt_options=(-o APT::Sandbox::User=root)

# made tells whether there is nothing to do.
made() { [ -z "$update" ] && [ -e "$latest/bzImage" ]; }

if ! made; then
	lock_cache
fi
# Asked again: another run may have held the lock to build it.
if ! made; then
	work=$(mktemp -d "$cache/.build-XXXXXX")
	trap 'rm -rf "$work"' EXIT
	read -r name version < <(newest_source "${apt_options[@]}") || {
		backports_apt "$work/apt"
		read -r name version < <(newest_source "${apt_options[@]}") ||
			die "no linux-source >= $min_version, neither in apt's suites nor in backports"
	}
	key=$(printf '%s %s %s\n' "$name" "$version" "$recipe" | sum -)
	if [ ! -e "$cache/$key/bzImage" ]; then
		say "building $name $version (log: $work/log)"
		# In a shell of its own with -e: inside a condition bash would not stop at the first error.
		set +e
		(
			set -e
			build "$name" "$version" "$work"
		) >"$work/log" 2>&1
		status=$?
		set -e
		if [ $status != 0 ]; then
			tail -n 40 "$work/log" >&2
			die "the build failed"
		fi
		mkdir -p "$work/done"
		cp "$work/linux/arch/x86/boot/bzImage" "$work/done/bzImage"
		cp "$work/linux/.config" "$work/done/config"
		cp "$work/linux/System.map" "$work/done/System.map"
		sync "$work"/done/*
		rm -rf "${cache:?}/$key"
		mv "$work/done" "$cache/$key"
	fi
	ln -sfn "$key" "$latest.new.$$"
	mv -T "$latest.new.$$" "$latest"
fi

mkdir -p "$out"
place "$latest/bzImage" "$out/bzImage"
say "$out/bzImage is ready"
