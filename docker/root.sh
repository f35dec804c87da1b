#!/usr/bin/env bash
# Lays out what docker/Dockerfile puts into the image.
#
#   root.sh PROGRAMS OUT      PROGRAMS has the four programs, as make dist leaves them
#
# OUT/root becomes the image's root: the programs, names for its user, where names of hosts come from, this machine's
# certificate authorities.
# OUT/owned is an empty directory, for those that belong to that user.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: root.sh PROGRAMS OUT" >&2; exit 2; }
programs=$1 out=$2
authorities=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[ -f "$authorities" ] || { echo "error: $authorities is missing: install ca-certificates, or set SSL_CERT_FILE" >&2; exit 1; }

rm -rf "$out"
mkdir -p "$out/owned" "$out/root/walpoint/bin" "$out/root/etc/ssl/certs"
chmod 700 "$out/owned"
for program in archive-agent archive-push restore-agent restore-fetch; do
    install -m 755 "$programs/$program" "$out/root/walpoint/bin/$program"
done
install -m 644 "$authorities" "$out/root/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0::/:/\npostgres:x:999:999::/:/\n' >"$out/root/etc/passwd"
printf 'root:x:0:\npostgres:x:999:\n' >"$out/root/etc/group"
# Without it the C library asks DNS first, and names in /etc/hosts are not found when that does not answer.
echo 'hosts: files dns' >"$out/root/etc/nsswitch.conf"
