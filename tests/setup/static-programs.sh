#!/usr/bin/env bash
# The four programs linked statically, for the tests that run in containers: in target/static/debug.
#
# They differ from what `cargo build --workspace` makes only in how they are linked. Dependencies are taken from there, for
# which the same packages have to be built (others would have other features); this workspace's own crates are compiled
# once more. Releases are made by docker/dist.sh instead.
#
# Cargo has no flags for programs alone, so this script is also the wrapper that it calls the compiler by.
set -euo pipefail
if [ "${1:-}" != "" ]; then
    case " $* " in
    *" --crate-name build_script"* | *" --crate-name ___ "*) ;; # what cargo asks about the compiler is not about programs
    *" --crate-type bin "*) set -- "$@" -C target-feature=+crt-static -C strip=debuginfo ;;
    esac
    exec "$@"
fi
cd "$(dirname "$0")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
RUSTC_WORKSPACE_WRAPPER=$PWD/tests/setup/static-programs.sh "${CARGO:-cargo}" build --quiet --workspace --bins \
    --config "build.build-dir=\"$target\"" --target-dir "$target/static"
