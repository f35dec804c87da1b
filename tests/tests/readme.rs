//! The README's first restore as it stands there: its command lines, one after the other, with the places of a test.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Background};
use walpoint_tests::typed::{Shell, page};
use walpoint_tests::wait;

/// No line takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// The lines that PostgreSQL's user types, from creating the repository to starting the copy.
fn lines() -> Vec<String> {
    let readme = page("README.md");
    let section = readme.split("\n## Five minutes").nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```").skip(1).step_by(2).flat_map(str::lines).map(str::trim);
    let typed =
        blocks.filter(|line| !line.is_empty() && !line.starts_with("make") && !line.starts_with("sudo"));
    typed.map(str::to_owned).collect()
}

#[test]
fn the_first_restore_of_the_readme_works() {
    let mut cluster = Cluster::builder().conf("listen_addresses", "").init();
    // The copy is reached in the same directory.
    cluster.set("unix_socket_directories", cluster.socket_dir().display());
    cluster.start();
    let dir = cluster.dir().clone();
    let place = |name: &str| dir.join(name).display().to_string();
    let conninfo = format!("--conninfo '{}' --push-socket {}", cluster.conninfo(), place("push"));
    let mut places = vec![
        ("/var/backups/walpoint", place("repository")),
        ("/var/lib/postgresql/17/main", cluster.pgdata().display().to_string()),
        ("/var/lib/postgresql/17/back", place("back")),
        ("--cluster main", format!("--cluster main {conninfo}")),
        (" -w start", format!(" -w -l {} start", place("back.log"))),
    ];
    let all = lines();
    let [init, run, check, backup, status, switch, list, plan, restore, start] = &all[..] else {
        panic!("{all:#?}")
    };

    let config = dir.join("walpoint.toml");
    let shell = Shell { cluster: &cluster, config: config.clone(), places: places.clone() };
    let printed = shell.types(init).stdout;
    let wanted = ["wal_level", "archive_mode", "archive_command", "archive_timeout"];
    let is_wanted = |line: &&str| wanted.iter().any(|name| line.starts_with(&format!("{name} = ")));
    let settings: Vec<&str> = printed.lines().map(str::trim).filter(is_wanted).collect();
    assert_eq!(settings.len(), wanted.len(), "{printed}");
    let mut conf =
        OpenOptions::new().append(true).open(cluster.pgdata().join("postgresql.conf")).expect("the file");
    settings.iter().for_each(|line| writeln!(conf, "{line}").expect("write"));
    let daemon = run.split(" 2>").next().expect("a command");
    assert!(run.ends_with('&'), "{run}");
    let _daemon = Background::start(&mut shell.command(&format!("exec {daemon}")), &dir.join("daemon.log"));
    cluster.stop(Shutdown::Fast);
    cluster.start();
    let shell = Shell { cluster: &cluster, config: config.clone(), places: places.clone() };
    shell.types(check);

    cluster.psql("create table accounts as select generate_series(1, 1000) as id");
    shell.types(backup);
    assert!(shell.types(status).stdout.contains("window"), "a window in which every moment can be recovered");
    cluster.psql("insert into accounts select generate_series(1001, 1500)");
    let moment = cluster.psql("select clock_timestamp()");
    std::thread::sleep(Duration::from_millis(50));
    cluster.psql("drop table accounts");
    let segment = cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    let mut psql = shell.command(switch);
    psql.env("PGHOST", cluster.socket_dir()).env("PGPORT", cluster.port().to_string());
    process::run(psql.env("PGUSER", "postgres"), LIMIT).expect_success();
    cluster.wait_archived(&segment);

    let copy = walpoint_tests::ports::PortLease::new();
    places.extend([("2026-11-21 10:14:59+01", moment), ("5433", copy.port().to_string())]);
    let shell = Shell { cluster: &cluster, config, places };
    assert!(shell.types(list).stdout.contains("backup"), "what it can be restored to");
    let planned = shell.types(plan).stdout;
    assert!(planned.contains("Restore to"), "{planned}");
    let restored = shell.types(restore).stdout;
    assert!(restored.contains("pg_ctl -D") && restored.contains("archive_mode"), "{restored}");
    shell.types(start);
    let copied = |sql: &str| {
        let mut psql = cluster.tool("psql");
        psql.env("PGPORT", copy.port().to_string()).args(["-XAtqc", sql]);
        process::run(&mut psql, LIMIT).stdout.trim().to_owned()
    };
    wait::until_true(wait::SOON, "the copy pauses at the target", || {
        copied("select pg_is_wal_replay_paused()") == "t"
    });
    copied("select pg_wal_replay_resume()");
    wait::until_true(wait::SOON, "the copy takes writes", || copied("select pg_is_in_recovery()") == "f");
    assert_eq!(copied("insert into accounts values (0) returning (select count(*) from accounts)"), "1500");
    let stop = format!("pg_ctl -D {} -m immediate stop", place("back"));
    shell.types(&stop);
}
