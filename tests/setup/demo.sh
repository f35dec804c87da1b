#!/usr/bin/env bash
# The demonstration behind `make demo`: a PostgreSQL server under load is archived and backed up, loses a table, and is brought
# back to the second before, in a new directory. The dump taken before the accident has to equal the one after it.
#
#   demo.sh BINARIES      the directory with archive-agent, archive-push, restore-agent and restore-fetch
#
# MAJOR in the environment is the version of PostgreSQL, 13 to 19; the default is 17.
#
# Everything lies in one temporary directory, which is removed at the end, as are all processes.
set -euo pipefail
[ $# -eq 1 ] && set -- "$(realpath "$1")"
cd "$(dirname "$0")"
[ $# -eq 1 ] || { echo "usage: demo.sh BINARIES" >&2; exit 2; }

RUN_AS=walpoint-test
MAJOR=${MAJOR:-17}
if [ -z "${DEMO_HOME:-}" ]; then
    bed=$(./setup.sh --where)
    home=$(mktemp -d /tmp/walpoint-demo.XXXXXX)
    trap 'rm -rf "$home"' EXIT
    mkdir "$home/bin"
    for program in archive-agent archive-push restore-agent restore-fetch; do
        cp "$1/$program" "$home/bin/"
    done
    # The packages of 13 have servers only: a newer psql does, with its own libraries.
    if [ ! -x "$bed/pg$MAJOR/bin/psql" ]; then
        ./setup.sh --only pg17
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$bed/pg17/lib" "$bed/pg17/bin/psql" >"$home/bin/psql"
        chmod +x "$home/bin/psql"
    fi
    cp demo.sh "$home/demo.sh"
    chmod -R a+rX "$home"
    export DEMO_HOME=$home DEMO_POSTGRES=$bed/pg$MAJOR
    if [ "$(id -u)" -eq 0 ]; then
        # PostgreSQL refuses to run as root.
        chown -R "$RUN_AS" "$home"
        runuser -u "$RUN_AS" -- env HOME="$home" bash "$home/demo.sh" "$home/bin"
    else
        bash "$home/demo.sh" "$home/bin"
    fi
    exit
fi

cd "$DEMO_HOME"
PG=$DEMO_POSTGRES/bin
export PATH=$DEMO_HOME/bin:$PG:$PATH
# Libraries beside the servers' programs come first, whatever else the machine has.
export LD_LIBRARY_PATH=$DEMO_POSTGRES/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PGHOST=$DEMO_HOME PGUSER=postgres PGDATABASE=postgres TZ=UTC LC_ALL=C
export WALPOINT_CONFIG=$DEMO_HOME/walpoint.toml
AGENT=
LOAD=

finish() {
    status=$?
    [ -z "$LOAD" ] || kill "$LOAD" 2>/dev/null || true
    [ -z "$AGENT" ] || kill "$AGENT" 2>/dev/null || true
    for data in production restored; do
        [ ! -f "$data/postmaster.pid" ] || pg_ctl -D "$data" -m immediate stop >/dev/null 2>&1 || true
    done
    wait 2>/dev/null || true
    if [ $status -ne 0 ]; then
        echo "demo failed; the last lines of its logs:" >&2
        tail -n 15 "$DEMO_HOME"/*.log >&2 || true
    fi
    exit $status
}
trap finish EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
# Shows a command as it would be typed, runs it, and shows its answer.
run() {
    local word line=
    for word in "$@"; do
        case $word in *' '*) line+=" \"$word\"" ;; *) line+=" $word" ;; esac
    done
    printf '  $%s\n' "$line"
    "$@" 2>&1 | sed 's/^/    /'
}
took() { printf '    (%s)\n' "$(seconds "$1")"; }
seconds() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f s", b - a }'; }
clock() { date +%s.%N; }
query() { psql -XAtq -p "$1" -c "$2"; }

# The tables' rows in the order of their keys: what the demonstration compares.
dump_hash() {
    for table in accounts orders; do
        query "$1" "copy (select * from $table order by id) to stdout"
    done | sha256sum | cut -d' ' -f1
}

# TCP is off, and the Unix sockets lie in our own directory: no other server can have these ports.
PRODUCTION=5432
RESTORED=5433
begin=$(clock)

say "1. A PostgreSQL $MAJOR server with a million accounts"
initdb -D production -U postgres --auth=trust --data-checksums --no-sync >initdb.log
cat >>production/postgresql.conf <<CONF
listen_addresses = ''
unix_socket_directories = '$DEMO_HOME'
port = $PRODUCTION
wal_level = replica
archive_mode = on
archive_timeout = 30
max_wal_size = 2GB
shared_buffers = 256MB
CONF
pg_ctl -D production -l production.log -w start >/dev/null

say "2. A repository, and the lines for postgresql.conf"
run archive-agent init --repo "file://$DEMO_HOME/repository" --cluster demo --pgdata "$DEMO_HOME/production" \
    --conninfo "host=$DEMO_HOME port=$PRODUCTION user=postgres dbname=postgres" \
    --push-socket "$DEMO_HOME/demo.push"
query $PRODUCTION "alter system set archive_command = '$DEMO_HOME/bin/archive-push --socket $DEMO_HOME/demo.push --config $WALPOINT_CONFIG %p'"
query $PRODUCTION "select pg_reload_conf()" >/dev/null
archive-agent run >agent.log 2>&1 &
AGENT=$!

start=$(clock)
query $PRODUCTION "
    create table accounts (id bigint primary key, owner text not null, balance numeric not null);
    create table orders (id bigint generated always as identity primary key, account bigint, amount numeric, at timestamptz default now());
    insert into accounts select i, md5(i::text), (i * 37) % 10000 from generate_series(1, 1000000) i;"
took "$start"
run archive-agent check

say "3. A base backup while the database works"
load() {
    while query $PRODUCTION "insert into orders (account, amount) select (random() * 999999)::int + 1, i from generate_series(1, 200) i;
            update accounts set balance = balance + 1 where id % 5000 = (random() * 4999)::int" >/dev/null 2>&1; do
        sleep 0.02
    done
}
load &
LOAD=$!
start=$(clock)
run archive-agent backup --label demo
took "$start"
sleep 2
kill $LOAD
wait $LOAD 2>/dev/null || true
LOAD=
# Its last statement may still run, and would commit between the two halves of the dump.
working="select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
until [ "$(query $PRODUCTION "$working")" = 0 ]; do sleep 0.1; done

say "4. The accident"
before=$(dump_hash $PRODUCTION)
rows=$(query $PRODUCTION "select (select count(*) from accounts) + (select count(*) from orders)")
moment=$(query $PRODUCTION "select clock_timestamp()")
echo "    $rows rows, sha256 of the dump $before"
sleep 1
query $PRODUCTION "drop table accounts; insert into orders (account, amount) values (0, 0)"
echo "    drop table accounts   -- and it is noticed only later"
query $PRODUCTION "select pg_switch_wal()" >/dev/null
run archive-agent status

say "5. Back to $moment"
# The record that proves the moment has to reach the repository first; an archive is behind by seconds, not by more.
for _ in $(seq 100); do
    restore-agent plan --target-time "$moment" >plan.log 2>&1 && break
    sleep 0.2
done
run restore-agent plan --target-time "$moment"
start=$(clock)
run restore-agent restore --target-time "$moment" --target-action promote --pgdata "$DEMO_HOME/restored"
echo "port = $RESTORED" >>restored/postgresql.auto.conf
pg_ctl -D restored -l restored.log -w -t 120 start >/dev/null
until [ "$(query $RESTORED "select pg_is_in_recovery()" 2>/dev/null)" = f ]; do sleep 0.1; done
recovered=$(seconds "$start")

say "6. Compare"
after=$(dump_hash $RESTORED)
echo "    before the accident  $before"
echo "    after the recovery   $after"
[ "$before" = "$after" ] || { echo "    THEY DIFFER" >&2; exit 1; }
echo "    equal: $rows rows are back, $recovered from the command to a database that answers"
echo "    the demonstration took $(seconds "$begin"); everything it made is removed"
