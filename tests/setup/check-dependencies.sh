#!/usr/bin/env bash
# Rules that the compiler does not know:
#   banned    crates that must not be part of what we ship (see deny.toml for why)
#   layers    base <- pg, base <- plan <- repo, base <- storage <- repo, base <- runtime; pg, repo and runtime do not know each
#             other;
#             the thin clients know base only; words, what both agents say, is above pg, repo and runtime
#   pure      walpoint-plan is built from nothing that does IO or tells the time; built by itself, without what other
#             crates ask of its dependencies, it says so
#   spelling  no library spells an option or a command line of the programs: they put what it returns into words
#             (check-spelling.py)
#   lengths   no file over 500 lines, no test file over 600, no function over 80 (check-lengths.py)
#   circles   no two folders of one crate import each other in a circle (check-circles.py)
set -euo pipefail
cd "$(dirname "$0")/../.."

BANNED=(ring openssl openssl-sys native-tls tokio-postgres sqlx pg_walstream bincode rkyv fastcdc lz4 lz4-sys)
CARGO=${CARGO:-cargo}
failed=0

# Names of all crates that a package, or the whole workspace, is built from.
tree() { "$CARGO" tree --locked --offline "$@" -e normal,build --prefix none --format '{p}' 2>/dev/null ||
    "$CARGO" tree "$@" -e normal,build --prefix none --format '{p}'; }

all=$(tree --workspace | awk 'NF { print $1 }' | sort -u)
for crate in "${BANNED[@]}"; do
    if grep -qx "$crate" <<<"$all"; then
        echo "error: the crate '$crate' is banned and got into the tree; find out how with: cargo tree -i $crate" >&2
        failed=1
    fi
done

layer() { # layer PACKAGE ALLOWED…
    local package=$1 name found
    shift
    found=$(tree -p "$package" | awk 'NF { print $1 }' | grep -E '^(walpoint-|archive-|restore-)' | sort -u)
    for name in $found; do
        if [ "$name" != "$package" ] && [[ " $* " != *" $name "* ]]; then
            echo "error: layers: $package must not depend on $name" >&2
            failed=1
        fi
    done
}
layer walpoint-base
layer walpoint-pg walpoint-base
layer walpoint-plan walpoint-base
layer walpoint-storage walpoint-base
layer walpoint-repo walpoint-base walpoint-plan walpoint-storage
layer walpoint-runtime walpoint-base
layer walpoint-words walpoint-base walpoint-pg walpoint-plan walpoint-storage walpoint-repo walpoint-runtime
layer archive-push walpoint-base
layer restore-fetch walpoint-base
layer archive-agent walpoint-base walpoint-pg walpoint-plan walpoint-storage walpoint-repo walpoint-runtime walpoint-words
layer restore-agent walpoint-base walpoint-pg walpoint-plan walpoint-storage walpoint-repo walpoint-runtime walpoint-words

# All that walpoint-plan may be built from. Of the vocabulary's own IO it is given nothing that waits; of jiff neither the
# clock nor the time zones of the machine.
PURE=(walpoint-plan walpoint-base jiff jiff-core serde serde_core serde_derive
    bitflags linux-raw-sys proc-macro2 quote rustix syn thiserror thiserror-impl unicode-ident)
for crate in $(tree -p walpoint-plan | awk 'NF { print $1 }' | sort -u); do
    if [[ " ${PURE[*]} " != *" $crate "* ]]; then
        echo "error: pure: walpoint-plan must not be built from '$crate'; find out how with: cargo tree -p walpoint-plan -i $crate" >&2
        failed=1
    fi
done
features=$("$CARGO" tree -p walpoint-plan -e normal,build --prefix none --format '{p} {f}' | awk '$1 == "jiff" { print $3; exit }')
if [[ ",$features," == *,std,* || ",$features," == *,default,* ]]; then
    echo "error: pure: walpoint-plan gets jiff with a clock (features $features)" >&2
    failed=1
fi
"$CARGO" check --quiet -p walpoint-plan || {
    echo "error: pure: walpoint-plan does not build by itself" >&2
    failed=1
}
if command -v python3 >/dev/null; then
    tests/setup/check-circles.py || failed=1
    tests/setup/check-spelling.py || failed=1
    tests/setup/check-lengths.py || failed=1
else
    echo "python3 is not installed: neither circles of folders, spelled options nor lengths were looked for" >&2
fi

[ $failed -eq 0 ] && echo "dependencies: no banned crate, layers as designed, plans pure, no option spelled in a library"
exit $failed
