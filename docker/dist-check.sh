#!/usr/bin/env bash
# Is a release reproducible? Builds the last commit twice, each time from nothing and in a directory of another name, and
# compares the programs byte by byte. Takes as long as two releases, and some gigabytes of $TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d "${TMPDIR:-/var/tmp}/walpoint-dist.XXXXXX")
trap 'rm -rf "$place"' EXIT
unset CARGO_TARGET_DIR

for name in first a-directory-with-a-longer-name/second; do
    echo "=== building in $place/$name" >&2
    git clone --quiet --no-hardlinks . "$place/$name"
    "$place/$name/docker/dist.sh" "$place/$name/out" >/dev/null
    # One at a time on the disk.
    rm -rf "$place/$name/target"
done
diff "$place/first/out/SHA256SUMS" "$place/a-directory-with-a-longer-name/second/out/SHA256SUMS" ||
    { echo "error: two builds of one commit differ" >&2; exit 1; }
cat "$place/first/out/SHA256SUMS"
echo "the same bytes twice"
