#!/usr/bin/env bash
# Calls the compiler for cargo (RUSTC_WORKSPACE_WRAPPER) and links programs statically, as released ones are: cargo has no flags for
# programs alone. make test and make soak build with it, so what they test runs in containers without a C library, too.
set -euo pipefail
case " $* " in
*" --crate-name build_script"* | *" --crate-name ___ "*) ;; # what cargo asks about the compiler is not about programs
*" --crate-type bin "*) set -- "$@" -C target-feature=+crt-static ;;
esac
exec "$@"
