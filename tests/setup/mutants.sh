#!/usr/bin/env bash
# Plants faults and shows that the tests find them: what no test finds is not tested.
#
#   mutants.sh             every fault in tests/mutants
#   mutants.sh NAME…       only these
#
# Each patch is applied to a copy of the last commit, built, and its tests are run: they have to fail, within a minute. The
# copy and what is built from it lie in a directory of their own below the target directory, so nothing else is disturbed.
# A patch begins with two lines: `Fault:` says what is wrong, `Tests:` names a test binary and, after it, which of its tests.
# `lib` in place of a binary stands for the unit tests of the libraries, and no program is built for them.
set -euo pipefail
cd "$(dirname "$0")/../.."

LIMIT=${PLANTED_LIMIT:-60}
main=$PWD
place=$(realpath -m "${CARGO_TARGET_DIR:-target}")/mutants
tree=$place/tree
log=$place/log
export CARGO_TARGET_DIR=$place CARGO_PROFILE_DEV_DEBUG=0
# A copy below the checkout must not be taken for a part of it.
export GIT_CEILING_DIRECTORIES=$place

fail() { printf 'mutants: error: %s\n' "$*" >&2; exit 1; }
field() { sed -n "s/^$2: //p" "$1" | sed -n 1p; }
clock() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(clock)" 'BEGIN { printf "%.1f", b - a }'; }

cargo nextest --version >/dev/null 2>&1 || fail "cargo-nextest is needed: cargo install cargo-nextest"
patches=()
if [ $# -eq 0 ]; then
    patches=(tests/mutants/*.patch)
else
    for name in "$@"; do patches+=("tests/mutants/$name.patch"); done
fi
binaries=()
for patch in "${patches[@]}"; do
    [ -f "$patch" ] || fail "$patch is missing"
    read -r binary _ <<<"$(field "$patch" Tests)"
    [[ $binary == lib || " ${binaries[*]} " == *" --test $binary "* ]] || binaries+=(--test "$binary")
done

mkdir -p "$place"
exec 9>"$place/lock"
flock -n 9 || fail "another run uses $place"
trap 'rm -rf "$tree"' EXIT
git diff --quiet HEAD -- || echo "mutants: note: what is not committed is left out" >&2
rm -rf "$tree"
mkdir "$tree"
# Fresh times, or cargo would take changed files for those it built last time.
git archive HEAD | tar -x -m -C "$tree"
cd "$tree"

# Unit tests are built fast rather than fast themselves.
lib=(--lib --config profile.dev.package.walpoint-plan.opt-level=0 --config profile.dev.package.walpoint-storage.opt-level=0 --config profile.dev.package.walpoint-repo.opt-level=0 --config profile.dev.package.walpoint-pg.opt-level=0)
build() { # BINARY [FILTER…]
    local what=(test --no-run "${lib[@]}")
    [ "$1" = lib ] || what=(build --bins "${binaries[@]}")
    cargo "${what[@]}" --workspace >"$log" 2>&1 || { tail -n 30 "$log" >&2; return 1; }
}
run() { # BINARY [FILTER…]
    local what=("${lib[@]}")
    [ "$1" = lib ] || what=(--test "$1")
    shift
    cargo nextest run --workspace --fail-fast --no-tests fail "${what[@]}" "$@" >"$log" 2>&1
}
tests_of() { # PATCH → words
    local binary filter
    read -r binary filter <<<"$(field "$main/$1" Tests)"
    echo "$binary $filter"
}

echo "mutants: without a fault all of them have to pass"
passed=
for patch in "${patches[@]}"; do
    read -r -a tests <<<"$(tests_of "$patch")"
    [[ $passed != *"|${tests[*]}|"* ]] || continue
    passed+="|${tests[*]}|"
    build "${tests[@]}" || fail "the last commit does not build"
    run "${tests[@]}" || { tail -n 60 "$log" >&2; fail "fails without a fault: ${tests[*]}"; }
done

missed=0
for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    read -r -a tests <<<"$(tests_of "$patch")"
    git apply "$main/$patch" || fail "$patch does not fit any more: plant the fault anew"
    # Applied or taken back, a file is newer than what was built from it.
    sed -n 's|^+++ b/||p' "$main/$patch" | xargs touch
    build "${tests[@]}" || fail "$patch does not build: plant the fault anew"
    start=$(clock)
    if run "${tests[@]}"; then
        found=
    else
        found=$(grep -oE 'FAIL \[.*|TIMEOUT \[.*' "$log" | sed -n 1p | sed -E 's/^[A-Z]+ \[[^]]*\] *(\([^)]*\) *)?//')
    fi
    took=$(since "$start")
    if [ -z "$found" ]; then
        printf 'NOT FOUND  %-32s %6s s  %s\n' "$name" "$took" "$(field "$main/$patch" Fault)"
        missed=1
    elif awk -v t="$took" -v l="$LIMIT" 'BEGIN { exit !(t > l) }'; then
        printf 'TOO LATE   %-32s %6s s  by %s\n' "$name" "$took" "$found"
        missed=1
    else
        printf 'found      %-32s %6s s  by %s\n' "$name" "$took" "$found"
    fi
    git apply -R "$main/$patch"
    sed -n 's|^+++ b/||p' "$main/$patch" | xargs touch
done
exit $missed
