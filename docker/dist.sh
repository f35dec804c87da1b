#!/usr/bin/env bash
# Builds what is released: the four programs, linked statically, so that each is one file that runs on any Linux of this
# processor. The same commit gives the same bytes in any directory, with the same compiler and C library, which BUILD names.
#
#   dist.sh OUT  leaves archive-agent, archive-push, restore-agent, restore-fetch, BUILD, LICENSE and SHA256SUMS in OUT
#
# OUT is replaced at the end, at once: an interrupted build leaves what was there.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: dist.sh OUT" >&2; exit 2; }
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."

CARGO=${CARGO:-cargo}
host=$(rustc -vV | sed -n 's/^host: //p')
case $host in
*-linux-gnu | *-linux-musl) ;;
*) echo "error: releases are built on Linux, this is $host" >&2; exit 1 ;;
esac

# No path of this machine may be part of the programs: neither the compiler's (panics name their source) nor the C
# libraries' (asserts do). The standard library's own source, where it is installed, keeps the name it was released under.
released=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')
cargo_home=$(realpath -m "${CARGO_HOME:-$HOME/.cargo}")
renamed=("$PWD=/walpoint" "$cargo_home=/cargo" "$(rustc --print sysroot)/lib/rustlib/src/rust=$released")
rust=(-C target-feature=+crt-static)
c=
for names in "${renamed[@]}"; do
    rust+=("--remap-path-prefix=$names")
    c+=" -ffile-prefix-map=$names"
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${rust[*]}")
export CARGO_ENCODED_RUSTFLAGS CFLAGS="$c" CARGO_INCREMENTAL=0 LC_ALL=C TZ=UTC
unset RUSTFLAGS
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
export SOURCE_DATE_EPOCH

# Apart, or the clients would be built with what only the agents need.
# A target directory of its own: builds of one target directory wait for each other.
target_dir=${CARGO_TARGET_DIR:-target}/dist-build
build() { "$CARGO" build --locked --profile dist --target "$host" --target-dir "$target_dir" "$@"; }
build -p archive-push -p restore-fetch
build -p archive-agent -p restore-agent
programs=(archive-push restore-fetch archive-agent restore-agent)

made=$out.made
rm -rf "$made"
mkdir -p "$made"
for program in "${programs[@]}"; do
    install -m 755 "$target_dir/$host/dist/$program" "$made/$program"
done
install -m 644 LICENSE "$made/LICENSE"
{
    "$made/archive-push" --version
    rustc --version
    cc --version | sed -n 1p
    ld --version | sed -n 1p
    ldd --version 2>&1 | sed -n 1p
} >"$made/BUILD"
(cd "$made" && sha256sum -- * >SHA256SUMS)
rm -rf "$out"
mv "$made" "$out"
cat "$out/SHA256SUMS"
