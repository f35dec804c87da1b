#!/usr/bin/env bash
# Lets a virtual machine measure steadily: runs a command, `make bench` for example, with $WALPOINT_BENCH_DIR on a
# filesystem of its own. For root, because it mounts.
#
#   bench/steady.sh make bench
#
# Two things make the same work take three times as long on a virtual machine, whatever tool does it, and both hit whoever
# comes first:
# - A disk that is thinly provided is slow where nothing was written before, or where what was deleted was handed back. The
#   filesystem lies in a file that is written once and stays whole.
# - Memory that is free is handed back to the host, and faulting it in again costs more than the copy into it. Where the
#   kernel lets us (page_reporting), free memory is kept for a minute while the command runs.
#
# WALPOINT_BENCH_IMAGE (/var/tmp/walpoint-bench.img) and WALPOINT_BENCH_GIB (28) say where that file is and how large.
set -euo pipefail

image=${WALPOINT_BENCH_IMAGE:-/var/tmp/walpoint-bench.img}
gib=${WALPOINT_BENCH_GIB:-28}
reporting=/sys/module/page_reporting/parameters

fail() { printf 'steady: error: %s\n' "$*" >&2; exit 1; }
[ $# -gt 0 ] || fail "which command? for example: $0 make bench"
[ "$(id -u)" -eq 0 ] || fail "it mounts a filesystem, which only root may do"

mounted=$(mktemp -d /var/tmp/walpoint-bench.XXXXXX)
loop=
declare -A before=()
tidy() {
    for name in "${!before[@]}"; do echo "${before[$name]}" >"$reporting/$name" || true; done
    mountpoint -q "$mounted" && umount "$mounted"
    [ -z "$loop" ] || losetup --detach "$loop"
    rmdir "$mounted"
}
trap tidy EXIT

size=$((gib << 30))
if [ "$(stat -c %s "$image" 2>/dev/null || echo 0)" -ne "$size" ]; then
    printf 'steady: writing %s (%s GiB)\n' "$image" "$gib" >&2
    rm -f "$image"
    dd if=/dev/zero of="$image" bs=1M count=$((gib << 10)) conv=fsync status=none || fail "$image cannot be written"
fi
mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$image"
loop=$(losetup --find --show --direct-io=on "$image")
mount -o nodiscard "$loop" "$mounted"
chmod 755 "$mounted"

prepared="ext4 on a file that was written before"
hold() {
    [ -w "$reporting/$1" ] || return 0
    local was
    was=$(cat "$reporting/$1")
    if echo "$2" 2>/dev/null >"$reporting/$1"; then
        before[$1]=$was
        prepared="$prepared; $1 = $2"
    fi
}
# In milliseconds and MiB.
hold min_free_ms 60000
hold max_waiting_mib 1048576

export WALPOINT_BENCH_DIR=$mounted WALPOINT_BENCH_PREPARED=$prepared
"$@"
