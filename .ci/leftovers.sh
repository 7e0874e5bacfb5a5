#!/usr/bin/env bash
# Finds what a run left behind: processes, mounts, loop devices, network devices, sockets, temporary files.
#
#   .ci/leftovers.sh snapshot >FILE     before
#   .ci/leftovers.sh compare FILE       after: prints what is new and exits 1 if anything is
#
# Only what cradle and its tests make is looked at, so that other work on the machine does not matter.
set -euo pipefail
shopt -s nullglob

# What belongs to us has one of these in its name.
ours='cradle|qemu-system|cloud-hypervisor|firecracker|erofs'

processes() {
	local proc exe
	for proc in /proc/[0-9]*; do
		exe=$(readlink "$proc/exe" 2>/dev/null) || continue
		[[ ${exe##*/} =~ ^(cradle|qemu-system|cloud-hypervisor|firecracker)|\.test$ ]] || continue
		echo "process ${proc#/proc/} $(tr '\0' ' ' <"$proc/cmdline" 2>/dev/null | cut -c1-200)"
	done
}

mounts() {
	awk '{ print "mount " $5 " " $1 }' /proc/self/mountinfo | grep -E "$ours|${TMPDIR:-/tmp}/" || true
}

loops() {
	local file
	for file in /sys/block/loop*/loop/backing_file; do
		echo "loop ${file%/loop/backing_file} $(cat "$file" 2>/dev/null || true)"
	done
}

networks() {
	local dev
	for dev in /sys/class/net/*; do
		[ ! -e "$dev/tun_flags" ] && [[ ${dev##*/} != cradle* ]] || echo "network device ${dev##*/}"
	done
}

sockets() {
	awk '$8 ~ /^[\/@]/ { print "socket " $8 }' /proc/net/unix | grep -E "$ours" || true
}

files() {
	local path
	for path in "${TMPDIR:-/tmp}"/{cradle,qemu,Test,Fuzz,Benchmark,go-build}* "${TMPDIR:-/tmp}"/*.sock /dev/shm/{cradle,qemu}*; do
		echo "file $path"
	done
}

snapshot() {
	{ processes; mounts; loops; networks; sockets; files; } | sort -u
}

case "${1:-}" in
snapshot) snapshot ;;
compare)
	[ -r "${2:-}" ] || { echo "leftovers: no snapshot ${2:-}" >&2; exit 2; }
	left=$(comm -13 "$2" <(snapshot))
	# What is on its way out when the run ends, such as a daemon that has just been told to, gets a moment.
	for _ in 1 2 3 4 5; do
		[ -n "$left" ] || exit 0
		sleep 1
		left=$(comm -13 "$2" <(snapshot))
	done
	[ -z "$left" ] || { printf 'left behind:\n%s\n' "$left" >&2; exit 1; }
	;;
*)
	echo "usage: .ci/leftovers.sh snapshot | compare FILE" >&2
	exit 2
	;;
esac
