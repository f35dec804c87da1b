//! Walpoint as a sidecar: the image of `docker/Dockerfile` in the containers of `docker/compose.yaml`.
//!
//! PostgreSQL's image and the object store's are stood in for by the test bed's programs: no registry is asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walpoint_tests::compose::Compose;
use walpoint_tests::containers::{self, Engine};
use walpoint_tests::{needs_root, process, testbed, wait};

const LIMIT: Duration = Duration::from_secs(60);

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent")
}

/// Does what the entry point of Docker's image of PostgreSQL does for these containers.
const ENTRYPOINT: &str = r#"#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    echo "${POSTGRES_PASSWORD:?}" >/tmp/password
    initdb --username=postgres --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 -D "$PGDATA"
    echo "unix_socket_directories = '/var/run/postgresql'" >>"$PGDATA/postgresql.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
    for file in /docker-entrypoint-initdb.d/*.sql; do
        psql -X -v ON_ERROR_STOP=1 --username=postgres --dbname=postgres --file="$file"
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@"
"#;

/// Builds all images that the compose file names.
fn build(engine: &Engine, compose: &Compose) {
    // Ours, from the Dockerfile and programs that were built before: only the compiler's stage is left out.
    let context = engine.dir().mkdir("context");
    let mut layout = Command::new(top().join("docker/root.sh"));
    let agent = testbed::under_test("archive-agent");
    layout.arg(agent.parent().expect("a directory")).arg(context.join("target/image"));
    process::run(&mut layout, LIMIT).expect_success();
    containers::copy_libraries(&agent, &context.join("target/image/root"));
    fs::copy(top().join(".dockerignore"), context.join(".dockerignore")).expect("copy .dockerignore");
    engine.build(
        &compose.services["agent"].image,
        &top().join("docker/Dockerfile"),
        &context,
        &["--target=prebuilt"],
    );

    let busybox = |root: &Path, commands: &[&str]| {
        fs::create_dir_all(root.join("bin")).expect("a directory");
        fs::copy(containers::testbed_busybox(), root.join("bin/busybox")).expect("copy busybox");
        for command in commands {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(command)).expect("a link");
        }
    };
    let store = engine.dir().mkdir("store-root");
    busybox(&store, &["sh", "wget"]);
    fs::create_dir_all(store.join("usr/bin")).expect("a directory");
    fs::create_dir_all(store.join("tmp")).expect("a directory");
    fs::copy(testbed::program("weed"), store.join("usr/bin/weed")).expect("copy weed");
    engine.image_of(&compose.services["store"].image, &store, "");

    let postgres = engine.dir().mkdir("postgres-root");
    busybox(&postgres, &["sh", "ls", "cat"]);
    let installed = testbed::root().join("pg17");
    for program in ["postgres", "initdb", "pg_ctl", "psql", "pg_dump", "pg_isready"] {
        containers::copy_libraries(&installed.join("bin").join(program), &postgres);
    }
    containers::copy_libraries(&testbed::under_test("archive-push"), &postgres);
    let mut copy = Command::new("cp");
    copy.arg("--archive").arg(&installed).arg(postgres.join("pg"));
    process::run(&mut copy, LIMIT).expect_success();
    fs::create_dir_all(postgres.join("etc")).expect("a directory");
    fs::write(postgres.join("etc/passwd"), "root:x:0:0::/:/bin/sh\npostgres:x:999:999::/:/bin/sh\n")
        .expect("a file");
    fs::write(postgres.join("entrypoint"), ENTRYPOINT).expect("a file");
    fs::set_permissions(postgres.join("entrypoint"), fs::Permissions::from_mode(0o755)).expect("chmod");
    for directory in ["empty", "usr/share/zoneinfo"] {
        fs::create_dir_all(postgres.join(directory)).expect("a directory");
    }
    engine.image_of(
        &compose.services["postgres"].image,
        &postgres,
        "COPY --chown=999:999 empty/ /var/lib/postgresql/data/\nCOPY --chown=999:999 empty/ /var/run/postgresql/\n\
         ENV PATH=/pg/bin:/bin PGHOST=/var/run/postgresql PGDATA=/var/lib/postgresql/data LD_LIBRARY_PATH=/pg/lib\n\
         ENTRYPOINT [\"/entrypoint\"]\nCMD [\"postgres\"]\n",
    );
}

/// The only row of a query in a container of PostgreSQL.
#[track_caller]
fn query(engine: &Engine, container: &str, sql: &str) -> String {
    let output =
        engine.exec(container, &["psql", "-XAtq", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    output.expect_success().stdout.trim().to_owned()
}

#[track_caller]
fn dump(engine: &Engine, container: &str) -> String {
    let dump = engine
        .exec(container, &["pg_dump", "-U", "postgres", "--table=accounts", "postgres"])
        .expect_success();
    // Each run of pg_dump makes up another word for these two.
    let lines = dump
        .stdout
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn wait_archived(engine: &Engine) {
    let segment = query(engine, "postgres", "select pg_walfile_name(pg_switch_wal())");
    let archived = format!("select coalesce(last_archived_wal >= '{segment}', false) from pg_stat_archiver");
    wait::until_true(LIMIT, "the segment is archived", || query(engine, "postgres", &archived) == "t");
}

const AGENT: &str = "/walpoint/bin/archive-agent";

/// PostgreSQL's container has the two thin clients and nothing else of ours, and cannot write there.
#[track_caller]
fn has_the_thin_clients_only(engine: &Engine, version: &str) {
    assert_eq!(engine.exec("postgres", &["ls", "/walpoint"]).expect_success().stdout, "bin\n");
    assert_eq!(
        engine.exec("postgres", &["ls", "/walpoint/bin"]).expect_success().stdout,
        "archive-push\nrestore-fetch\n"
    );
    for client in ["archive-push", "restore-fetch"] {
        let told = engine
            .exec("postgres", &[&format!("/walpoint/bin/{client}"), "--version"])
            .expect_success()
            .stdout;
        assert_eq!(told, format!("{client} {version}\n"));
    }
    engine.exec("postgres", &["sh", "-c", "echo >/walpoint/bin/archive-push"]).expect_status(1);
}

/// Recovers to a moment beside the server, which runs on, and ends the recovery there.
fn recover(engine: &Engine, compose: &Compose, moment: &str) {
    let target = format!("--target-time={moment}");
    engine
        .run(compose, "restore", &["restore", "--pgdata=/var/lib/postgresql/data", &target])
        .expect_success();
    engine.up(compose, "recovered");
    let paused = "select pg_get_wal_replay_pause_state()";
    wait::until_true(LIMIT, "recovery is paused at its target", || {
        let state = engine.exec("recovered", &["psql", "-XAtq", "-U", "postgres", "-c", paused]);
        state.success() && state.stdout.trim() == "paused"
    });
    assert_eq!(query(engine, "recovered", "show archive_mode"), "off");
    // Only now: while paused the table is still locked by the transaction that was about to drop it.
    query(engine, "recovered", "select pg_wal_replay_resume()");
    wait::until_true(LIMIT, "recovery ended", || {
        query(engine, "recovered", "select pg_is_in_recovery()") == "f"
    });
}

#[test]
fn a_dropped_table_comes_back_inside_containers() {
    needs_root!();
    let variables = [("POSTGRES_PASSWORD", "of-the-superuser"), ("WALPOINT_S3_SECRET", "of-the-store")];
    let compose = Compose::read(&top().join("docker/compose.yaml"), &variables);
    let engine = Engine::empty();
    build(&engine, &compose);

    // All four programs run on a read-only root, and are one release.
    let version = engine.run(&compose, "clients", &["--version"]).expect_success().stdout;
    let version = version.trim().strip_prefix("archive-agent ").expect("a version").to_owned();
    assert!(version.starts_with(env!("CARGO_PKG_VERSION")), "{version}");

    engine.up(&compose, "agent");
    engine.wait_healthy(&compose, "agent");

    has_the_thin_clients_only(&engine, &version);

    engine.exec("agent", &[AGENT, "check"]).expect_success();
    query(&engine, "postgres", "create table accounts (id int primary key, name text)");
    query(
        &engine,
        "postgres",
        "insert into accounts select n, md5(n::text) from generate_series(1, 20000) n",
    );
    engine.exec("agent", &[AGENT, "backup"]).expect_success();
    query(
        &engine,
        "postgres",
        "insert into accounts select n, md5(n::text) from generate_series(20001, 30000) n",
    );
    wait_archived(&engine);
    query(&engine, "postgres", "update accounts set name = 'the last one' where id = 30000");
    let before = dump(&engine, "postgres");
    let moment = query(&engine, "postgres", "select pg_sleep(0.1); select now(); select pg_sleep(0.1)");
    query(&engine, "postgres", "drop table accounts");
    wait_archived(&engine);
    assert_eq!(
        query(
            &engine,
            "postgres",
            "select failed_count > 0 and last_failed_time > last_archived_time from pg_stat_archiver"
        ),
        "f"
    );

    // The agent may only read the data directory, so PostgreSQL's command noted there what was stored.
    let noted = engine.exec("postgres", &["cat", "/var/lib/postgresql/data/pg_wal/walpoint-archived"]);
    let newest = query(&engine, "postgres", "select last_archived_wal from pg_stat_archiver");
    assert!(noted.expect_success().stdout.contains(&newest), "{newest}");

    recover(&engine, &compose, &moment);
    assert_eq!(dump(&engine, "recovered"), before);
    assert_eq!(query(&engine, "postgres", "select to_regclass('accounts')"), "");

    // A daemon that is gone does not look healthy, and PostgreSQL's archiver hears of no success meanwhile.
    engine.podman(["kill", "--signal=STOP", "agent"]).expect_success();
    let check = &compose.services["agent"].healthcheck[1..];
    let asked = engine.run(&compose, "agent", check).expect_status(1);
    assert!(asked.stderr.contains("no daemon answers"), "{asked:#?}");
    engine.podman(["kill", "--signal=CONT", "agent"]).expect_success();
    engine.wait_healthy(&compose, "agent");
}
