//! The command lines of the pages in `docs/` as they stand there, page by page, on one real server with two repositories. Those that
//! need a cloud, a container or an accident of their own are named with what tests them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::ports::PortLease;
use walpoint_tests::store::Store;
use walpoint_tests::typed::{Shell, lines, page};
use walpoint_tests::{process, testbed, user};

/// Lines that are not typed, by how they begin, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("archive-agent init --repo s3://", "check_init.rs, on every store"),
    ("archive-agent init --new-lineage", "lineages"),
    ("archive-agent init --lost-repo", "restore/remade.rs"),
    ("archive-agent lineage settle", "lineages"),
    ("archive-agent push --accept-damaged", "archive_stuck/damaged.rs"),
    ("archive-agent push --skip", "archive_stuck"),
    ("archive-agent run #", "every test with a daemon"),
    ("archive-agent forget main", "deleting.rs: it asks on a terminal"),
    (
        "restore-agent restore --pgdata PGDATA --wal-dir",
        "restore/incomplete.rs: a server whose last segment is incomplete",
    ),
    ("archive-agent push OLD_PG_WAL", "restore/incomplete.rs"),
    ("rm -r PGDATA", "restore/incomplete.rs"),
    ("restore-agent rollback", "restore/rollback.rs: a restore that replaced a directory"),
    ("journalctl", "systemd"),
    ("systemctl", "systemd"),
    ("install ", "systemd"),
    ("[Service]", "a file of systemd"),
    ("ReadWritePaths", "a file of systemd"),
    ("ExecStart", "a file of systemd"),
    ("wal_level", "postgresql.conf"),
    ("archive_", "postgresql.conf"),
    ("ALTER ROLE", "SQL"),
    ("host ", "pg_hba.conf"),
    ("the configuration ", "an answer"),
    ("line 3, ", "an answer"),
    ("HINT: ", "an answer"),
    ("archive-agent status --json | jq", "jq"),
    ("restore-agent list --json | jq", "jq"),
    ("restore-agent plan --json", "jq"),
];

/// An accident in the middle of production: a backup, a table, a moment, and the table dropped. The moment.
fn accident(cluster: &Cluster) -> String {
    cluster.psql("create database shop");
    cluster.psql_in("shop", "create table accounts as select generate_series(1, 1000) as id");
    let moment = cluster.psql("select clock_timestamp()");
    std::thread::sleep(Duration::from_millis(50));
    cluster.psql_in("shop", "drop table accounts");
    moment
}

/// Types every line of a page, but for those that are tested elsewhere.
fn type_page(bed: &Archived, shell: &Shell<'_>, name: &str) {
    let mut typed = 0;
    for line in lines(&page(name)) {
        if ELSEWHERE.iter().any(|(begins, _)| line.starts_with(begins)) || line == "archive-agent run" {
            continue;
        }
        println!("{name}: {line}");
        let mut command = shell.command(&line);
        command.env("PGDATA", bed.cluster.pgdata()).env("PGHOST", bed.cluster.socket_dir());
        command.env("PGPORT", bed.cluster.port().to_string()).env("PGUSER", "postgres");
        let output = process::run(&mut command, Duration::from_secs(120));
        output.expect_success();
        if line.contains("pg_switch_wal") {
            bed.settle();
        }
        if line.contains("pg_wal_replay_resume") {
            shell.types("pg_ctl -D /var/lib/postgresql/17/back -m immediate stop && rm -rf /var/lib/postgresql/17/back");
        }
        typed += 1;
    }
    assert!(typed > 0, "{name}");
}

/// Ends what a failed line leaves running.
struct Copies<'a>(&'a Cluster);

impl Drop for Copies<'_> {
    fn drop(&mut self) {
        for copy in ["back", "drill"] {
            let mut stop = Command::new(testbed::pg_program(self.0.major(), "pg_ctl"));
            stop.args(["-m", "immediate", "stop", "-D"]).arg(self.0.dir().join(copy));
            stop.stdout(Stdio::null()).stderr(Stdio::null());
            user::become_user(&mut stop).status().ok();
        }
    }
}

fn id_of(bed: &Archived) -> String {
    let made = bed.agent.run(&["backup", "--json"]).expect_success();
    let made: Value = serde_json::from_str(&made.stdout).expect("JSON");
    made["backup"].as_str().expect("an id").to_owned()
}

#[test]
fn the_command_lines_of_the_pages_work() {
    let far = Store::local();
    let bed = Archived::start_with(Cluster::builder().segment_size_mb(1), Store::local(), |agent| {
        let agent = agent.repository("far", &far).cluster_line("retention = { count = 5, minimum = 2 }");
        agent.cluster_line("drill.nightly = { kind = \"pitr\", rto = \"1h\", skip = [\"amcheck\"] }")
    });
    let dir = bed.cluster.dir().clone();
    // The copies are reached where production is.
    let sockets = bed.cluster.socket_dir().display();
    bed.cluster.set("unix_socket_directories", sockets);
    let _copies = Copies(&bed.cluster);
    let place = |name: &str| dir.join(name).display().to_string();
    let config = bed.agent.config();
    fs::copy(&config, place("new.toml")).expect("a second configuration");
    let copy = PortLease::new();
    let mut places = vec![
        ("/tmp/new.toml", place("new.toml")),
        ("/var/lib/postgresql/17/back", place("back")),
        ("/var/lib/postgresql/17/standby", place("standby")),
        ("/scratch/drill", place("drill")),
        ("5433", copy.port().to_string()),
        (" -w -t 3600 start", format!(" -w -l {} -t 3600 start", place("copy.log"))),
        ("select …", "select 1".to_owned()),
        ("2027-06-30", "2199-06-30".to_owned()),
    ];
    let shell = |places: &[(&'static str, String)]| Shell {
        cluster: &bed.cluster,
        config: config.clone(),
        places: places.to_vec(),
    };
    type_page(&bed, &shell(&places), "docs/configuration.md");
    type_page(&bed, &shell(&places), "docs/backup.md");
    type_page(&bed, &shell(&places), "docs/archiving.md");
    let moment = accident(&bed.cluster);
    places.extend([("2026-11-21 10:14:59+01", moment.clone()), ("1 hour ago", moment)]);
    let check = "[[check]]\nname = \"accounts\"\ndatabase = \"shop\"\nquery = \"select count(*) from pg_class\"\nexpect_min = 1\n";
    fs::write(place("moment.toml"), check).expect("a file of checks");
    places.push(("/etc/walpoint/moment.toml", place("moment.toml")));
    type_page(&bed, &shell(&places), "docs/restore.md");
    assert_eq!(bed.cluster.psql_in("shop", "select count(*) from accounts"), "1000");
    places.push(("20261121T101500Z-00000001-0000000002000028-9f3a0c11", id_of(&bed)));
    id_of(&bed);
    id_of(&bed);
    type_page(&bed, &shell(&places), "docs/drill.md");
    bed.cluster.psql_in("shop", "drop table accounts");
    type_page(&bed, &shell(&places), "docs/extract.md");
    assert_eq!(bed.cluster.psql_in("shop", "select count(*) from accounts"), "1000");
    type_page(&bed, &shell(&places), "docs/verify.md");
    type_page(&bed, &shell(&places), "docs/retention.md");
    fs::write(place("report.pdf"), "a report").expect("a report");
    places.extend([("/mnt/audit", place("audit")), ("report.pdf", place("report.pdf"))]);
    type_page(&bed, &shell(&places), "docs/evidence.md");
}

/// Keys, on a repository that is encrypted.
#[test]
fn the_command_lines_about_keys_work() {
    let bed = Archived::start_encrypted(Cluster::builder().segment_size_mb(1), Store::local(), |agent| {
        let line = format!("key_file = \"{}\"", agent.place().join("main.key").display());
        agent.repository_line("main", &line)
    });
    let dir = bed.cluster.dir().clone();
    let place = |name: &str| dir.join(name).display().to_string();
    let config = bed.agent.config();
    let shell = Shell {
        cluster: &bed.cluster,
        config: config.clone(),
        places: vec![
            ("/media/safe/main.key", place("safe.key")),
            ("/etc/walpoint/main-2.key", place("main-2.key")),
            ("remove 0", "remove 1".to_owned()),
        ],
    };
    let all = lines(&page("docs/security.md"));
    let keys: Vec<&String> = all.iter().filter(|line| line.starts_with("archive-agent key ")).collect();
    let [list, add, rotate, remove] = &keys[..] else { panic!("{keys:?}") };
    shell.types(list);
    shell.types(add);
    shell.types(rotate);
    // As it says: the configuration has to name the new one.
    let text = fs::read_to_string(&config).expect("the configuration");
    let line = text.lines().find(|line| line.starts_with("key_file")).expect("the key");
    let new = format!("key_file = \"{}\"", place("main-2.key"));
    fs::write(&config, text.replace(line, &new)).expect("the configuration");
    shell.types(remove);
    assert!(shell.types(list).stdout.contains("main-2.key"), "the new one opens it");
}
