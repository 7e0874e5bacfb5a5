#!/usr/bin/env bash
# Makes container images to test with, from Debian packages and without a container engine or registry:
#
#   hack/images.sh [--update] OUT_DIR [busybox] [debian] [redis] [nginx]        (none named: all)
#
# Each becomes OUT_DIR/NAME.tar, tagged NAME:latest, laid out as `docker save` does today: an OCI layout that is a docker
# archive as well. debian, redis and nginx share their base layer. Results are kept by the hash of this script in
# ${CRADLE_CACHE:-/var/cache/cradle}/images; --update makes them again from today's packages. CRADLE_QUIET=1 prints
# nothing but errors. All but busybox need root, to install packages in a chroot.
set -euo pipefail

arch=$(dpkg --print-architecture)
# The newest time a file may have: one date for all makes equal contents equal layers.
export SOURCE_DATE_EPOCH=1735689600
export LC_ALL=C.UTF-8

# Within a build descriptor 3 is the caller's stderr already, and stderr a log.
[ "${1:-}" = --inside ] || exec 3>&2
# shellcheck source=hack/cache.sh
. "$(dirname "$(realpath "$0")")/cache.sh" images

# --- layers -----------------------------------------------------------------------------------------------------------

# layer packs the directory $1 as a layer tar $2.
layer() {
	tar --create --file "$2" --directory "$1" --sort=name --numeric-owner --format=posix \
		--mtime="@$SOURCE_DATE_EPOCH" --clamp-mtime --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
		--xattrs --xattrs-include='security.capability' .
}

# whiteouts turns the deletions overlayfs noted in its upper directory $1 into those of OCI layers.
whiteouts() {
	local f
	find "$1" -type c -print0 | while IFS= read -r -d '' f; do
		[ "$(stat -c %t:%T "$f")" = 0:0 ] || continue
		rm "$f"
		: >"$(dirname "$f")/.wh.$(basename "$f")"
	done
	find "$1" -mindepth 1 -type d -print0 | while IFS= read -r -d '' f; do
		[ "$(getfattr --absolute-names --only-values -n trusted.overlay.opaque "$f" 2>/dev/null)" = y ] || continue
		: >"$f/.wh..wh..opq"
	done
}

# tidy removes from a root directory what differs between two equal builds, or is of no use in an image.
tidy() {
	rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/ldconfig/* "$1"/var/cache/debconf/*-old \
		"$1"/var/lib/dpkg/*-old "$1"/var/log/apt/* "$1"/var/log/*.log "$1"/tmp/* "$1"/usr/sbin/policy-rc.d
}

# debian_base makes the directory base and its layer, base.tar, or takes the layer that an earlier run left in the store:
# all images made from it share that layer.
debian_base() {
	[ ! -d base ] || return 0
	if [ -e "$store/base.tar" ]; then
		mkdir base
		tar --extract --file "$store/base.tar" --directory base --numeric-owner --xattrs --xattrs-include='*'
		ln "$store/base.tar" base.tar
		return
	fi
	local sources
	# Take packages from where this system's apt takes them.
	# shellcheck disable=SC2016 # apt expands it
	sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' \
		"Created-By: Packages" "Origin: Debian" "Component: main" | grep -v -- -backports | sort -u)
	[ -n "$sources" ] || die "apt has no Debian mirror in its sources (apt-get update first?)"
	mmdebstrap --mode=root --variant=minbase --quiet --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' '' base - <<<"$sources"
	tidy base
	: >base/etc/machine-id
	rm -rf base/etc/hostname base/etc/resolv.conf base/dev/*
	layer base base.tar
	ln base.tar "$store/base.tar"
}

# on_base makes the layer tar $1 of what the command after it changes in the base, with the root as its last argument.
# The changes live in a tmpfs: the cache may itself be on a file system that cannot be overlayfs's upper.
on_base() {
	local tar=$1
	shift
	mkdir -p mnt
	mount -t tmpfs -o mode=755 changes mnt
	mkdir mnt/upper mnt/work mnt/root
	mount -t overlay -o "lowerdir=$PWD/base,upperdir=mnt/upper,workdir=mnt/work" overlay mnt/root
	"$@" "$PWD/mnt/root"
	tidy mnt/root
	rm -f mnt/root/etc/resolv.conf
	umount mnt/root
	whiteouts mnt/upper
	layer mnt/upper "$tar"
	umount mnt
}

# install_packages installs all but its last argument into the root that the last one names.
install_packages() {
	local root=${*: -1}
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	# No daemon starts in the chroot.
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	export DEBIAN_FRONTEND=noninteractive
	mount -t proc proc "$root/proc"
	mount --bind /dev "$root/dev"
	chroot "$root" apt-get update -qq
	chroot "$root" apt-get install -qq -y --no-install-recommends "${@:1:$#-1}"
	umount "$root/proc" "$root/dev"
}

# --- images -----------------------------------------------------------------------------------------------------------

# blob moves the file $1 into the layout and prints its digest in hex.
blob() {
	local hex
	hex=$(sum "$1")
	mv "$1" "layout/blobs/sha256/$hex"
	echo "$hex"
}

# join prints its arguments with commas between.
join() {
	local IFS=,
	echo "$*"
}

# image writes NAME.tar of the image config $2 (the JSON members of "config") and the layer tars after it.
image() {
	local name=$1 config=$2 l hex size created diffs=() descs=() paths=()
	shift 2
	rm -rf layout
	mkdir -p layout/blobs/sha256
	for l in "$@"; do
		hex=$(sum "$l")
		ln "$l" "layout/blobs/sha256/$hex"
		diffs+=("\"sha256:$hex\"")
		paths+=("\"blobs/sha256/$hex\"")
		descs+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:$hex\",\"size\":$(stat -c %s "$l")}")
	done
	created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)
	printf '{"architecture":"%s","os":"linux","created":"%s","config":{%s},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
		"$arch" "$created" "$config" "$(join "${diffs[@]}")" >config.json
	size=$(stat -c %s config.json)
	hex=$(blob config.json)
	printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s:latest"],"Layers":[%s]}]' \
		"$hex" "$name" "$(join "${paths[@]}")" >layout/manifest.json
	printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%d},"layers":[%s]}' \
		"$hex" "$size" "$(join "${descs[@]}")" >manifest.json
	size=$(stat -c %s manifest.json)
	hex=$(blob manifest.json)
	printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%d,"annotations":{"io.containerd.image.name":"docker.io/library/%s:latest","org.opencontainers.image.ref.name":"latest"}}]}' \
		"$hex" "$size" "$name" >layout/index.json
	printf '{"imageLayoutVersion":"1.0.0"}' >layout/oci-layout
	(cd layout && tar --create --file ../image.tar --sort=name --owner=0 --group=0 --numeric-owner \
		--mtime="@$SOURCE_DATE_EPOCH" -- *)
	mv image.tar "$name.tar"
	rm -rf layout
}

path_env='"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]'

make_busybox() {
	local a
	mkdir -p bb/{bin,dev,etc,home,proc,root,sys,tmp,usr/bin,usr/sbin,var/spool/mail,var/www}
	ln -s bin bb/sbin
	chmod 1777 bb/tmp
	chmod 700 bb/root
	apt-get -o APT::Sandbox::User=root download -qq busybox-static
	dpkg-deb -x busybox-static_*.deb bb-deb
	cp "$(find bb-deb -name busybox -type f -perm -u+x | head -n1)" bb/bin/busybox
	chmod 755 bb/bin/busybox
	for a in $(bb/bin/busybox --list); do
		[ "$a" = busybox ] || ln -s busybox "bb/bin/$a"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >bb/etc/passwd
	echo 'www-data:x:33:33:www-data:/var/www:/bin/false' >>bb/etc/passwd
	echo 'nobody:x:65534:65534:nobody:/home:/bin/false' >>bb/etc/passwd
	printf '%s\n' 'root:x:0:' 'daemon:x:1:' 'tty:x:5:' 'www-data:x:33:' 'nogroup:x:65534:' >bb/etc/group
	[ "$(id -u)" != 0 ] || chown -R 0:0 bb
	layer bb busybox-layer.tar
	image busybox "$path_env,\"Cmd\":[\"sh\"]" busybox-layer.tar
	rm -rf bb bb-deb busybox-static_*.deb busybox-layer.tar
}

make_debian() {
	debian_base
	image debian "$path_env,\"Cmd\":[\"bash\"]" base.tar
}

make_redis() {
	debian_base
	on_base redis-packages.tar install_packages redis-server
	# What the official image adds, in a layer of its own.
	mkdir -p redis/usr/local/bin redis/data
	cat >redis/usr/local/bin/docker-entrypoint.sh <<'END'
#!/bin/sh
set -e
# `docker run redis --appendonly yes` and `docker run redis /etc/my.conf` mean redis-server.
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then
	set -- redis-server "$@"
fi
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
	find . \! -user redis -exec chown redis '{}' +
	exec setpriv --reuid=redis --regid=redis --clear-groups -- "$0" "$@"
fi
# The official image is compiled without protected mode, which would refuse every peer but loopback.
if [ "$*" = redis-server ]; then
	set -- redis-server --protected-mode no
fi
exec "$@"
END
	chmod 755 redis/usr/local/bin/docker-entrypoint.sh
	layer redis redis-entrypoint.tar
	image redis "$path_env,\"Entrypoint\":[\"docker-entrypoint.sh\"],\"Cmd\":[\"redis-server\"],\"ExposedPorts\":{\"6379/tcp\":{}},\"Volumes\":{\"/data\":{}},\"WorkingDir\":\"/data\"" \
		base.tar redis-packages.tar redis-entrypoint.tar
	rm -rf redis redis-packages.tar redis-entrypoint.tar
}

make_nginx() {
	debian_base
	on_base nginx-packages.tar install_packages nginx-light curl
	mkdir -p nginx/var/log/nginx
	ln -s /dev/stdout nginx/var/log/nginx/access.log
	ln -s /dev/stderr nginx/var/log/nginx/error.log
	layer nginx nginx-logs.tar
	image nginx "$path_env,\"Cmd\":[\"nginx\",\"-g\",\"daemon off;\"],\"ExposedPorts\":{\"80/tcp\":{}},\"StopSignal\":\"SIGQUIT\"" \
		base.tar nginx-packages.tar nginx-logs.tar
	rm -rf nginx nginx-packages.tar nginx-logs.tar
}

# --- main -------------------------------------------------------------------------------------------------------------

if [ "${1:-}" = --inside ]; then
	# The second life of this script: --inside WORK STORE NAME... It has a mount namespace of its own, so that no mount
	# outlives it however it ends.
	cd "$2"
	store=$3
	for name in "${@:4}"; do
		say "making $name"
		"make_$name"
		mv "$name.tar" "$store/$name.tar"
	done
	exit
fi

update=
if [ "${1:-}" = --update ]; then
	update=yes
	shift
fi
[ $# -ge 1 ] || die "usage: hack/images.sh [--update] OUT_DIR [busybox] [debian] [redis] [nginx]"
out=$1
shift
[ $# -gt 0 ] || set -- busybox debian redis nginx
for name in "$@"; do
	declare -F "make_$name" >/dev/null || die "no such image: $name"
done

script=$(realpath "$0")
store=$cache/$(cat "$script" <(echo "$arch") | sum)
mkdir -p "$store" "$out"
lock_cache

todo=()
for name in "$@"; do
	[ -z "$update" ] && [ -e "$store/$name.tar" ] || todo+=("$name")
done
if [ ${#todo[@]} -gt 0 ]; then
	work=$(mktemp -d "$store/.build-XXXXXX")
	trap 'rm -rf "$work"' EXIT
	[ -z "$update" ] || rm -f "$store/base.tar"
	apart=()
	if [ "${todo[*]}" != busybox ]; then
		[ "$(id -u)" = 0 ] || die "making ${todo[*]} takes root"
		need mmdebstrap attr
		apart=(unshare --mount --propagation private)
	fi
	if ! "${apart[@]}" bash "$script" --inside "$work" "$store" "${todo[@]}" >"$work/log" 2>&1; then
		tail -n 40 "$work/log" >&2
		die "failed"
	fi
fi
for name in "$@"; do
	place "$store/$name.tar" "$out/$name.tar"
	say "$out/$name.tar is ready"
done
