# shellcheck shell=bash
# What the scripts have in common that make something from Debian's packages and keep it. To be sourced with the name
# of what is kept, by a script that has its own stderr as descriptor 3:
#
#   exec 3>&2
#   . "$(dirname "$0")/cache.sh" images
#
# sets $cache to ${CRADLE_CACHE:-/var/cache/cradle}/images. CRADLE_QUIET=1 prints nothing but errors.

cache_name=$1
cache=${CRADLE_CACHE:-/var/cache/cradle}/$cache_name

# say and die write to descriptor 3: within a build, whose stderr goes to a log, too.
say() { [ -n "${CRADLE_QUIET:-}" ] || echo "$cache_name: $*" >&3; }
die() {
	echo "$cache_name: $*" >&3
	exit 1
}

sum() { sha256sum "$@" | cut -d' ' -f1; }

# need installs Debian packages that are missing.
need() {
	local missing=() p
	for p in "$@"; do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "please install: ${missing[*]}"
	say "installing ${missing[*]}"
	[ -n "$(apt-cache madison "${missing[0]}")" ] || apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

# lock_cache waits for other runs to finish; descriptor 9 holds the lock until the script ends.
lock_cache() {
	mkdir -p "$cache"
	exec 9>"$cache/.lock"
	flock 9
}

# place copies the file $1 to $2, unless it is there already; nobody sees half of it.
place() {
	! cmp -s "$1" "$2" || return 0
	cp "$1" "$2.new.$$"
	mv "$2.new.$$" "$2"
}
