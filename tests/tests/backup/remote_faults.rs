//! B4, B5, K5: what stands in the way of a backup that the server sends.

use std::fs;
use std::os::unix::fs::FileExt;

use walpoint_repo::backup::{EntryContent, ListedState, PageFault};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::Background;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::{user, wait};

use crate::bed::{Bed, report};

/// B5: pages that the server finds damaged are recorded by file and block, in both dialects, and do not stop the backup. The
/// server says so at the very end, with an error.
#[test]
fn pages_that_the_server_finds_damaged_are_recorded() {
    for major in [13, 18, 19] {
        let bed = Bed::local(Cluster::builder().major(major).checksums(true));
        bed.cluster.psql(
            "create table t as select i, repeat('x', 500) from generate_series(1, 5000) i; vacuum t; checkpoint",
        );
        let name = bed.cluster.psql("select pg_relation_filepath('t')");
        let file = bed.cluster.pgdata().join(&name);
        let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
        // More than the server names.
        let blocks = [3u64, 9, 20, 31, 47, 70, 71, 90];
        for block in blocks {
            let mut byte = [0];
            file.read_exact_at(&mut byte, block * 8192 + 5000).unwrap();
            file.write_all_at(&[byte[0] ^ 1], block * 8192 + 5000).unwrap();
        }
        let output = bed.agent.run(&["backup", "--remote", "--json"]).expect_success();
        let backup = report(&output);
        assert_eq!(backup["damaged_page_count"], 8, "PostgreSQL {major}: {backup}");
        for (finding, block) in backup["damaged_pages"].as_array().unwrap().iter().zip(blocks) {
            assert_eq!((finding["file"].as_str(), &finding["block"]), (Some(name.as_str()), &block.into()));
        }
        let id = backup["backup"].as_str().unwrap();
        let findings = bed.repository().open(id).manifest().findings.clone();
        assert!(findings.iter().all(|finding| matches!(finding.fault, PageFault::Checksum { .. })));
        let EntryContent::File(file) = &bed.repository().entries(id)[&name].content else { panic!() };
        assert_eq!(file.bad_pages, 8);
        // The other reader finds the same.
        assert_eq!(bed.backup(&[])["damaged_pages"], backup["damaged_pages"]);

        let before = bed.repository().finished();
        let strict = bed.agent.run(&["backup", "--remote", "--strict"]).expect_status(1);
        assert!(strict.stderr.contains(&format!("{name} block 3")), "{}", strict.stderr);
        assert_eq!(bed.repository().finished(), before, "with --strict there is no backup");
    }
}

/// B5: older servers verify every file beside their relations, also those that have no checksums; they are believed.
#[test]
fn what_only_the_server_calls_damaged_is_recorded_too() {
    let bed = Bed::local(Cluster::builder().major(14).checksums(true));
    let directory = bed.cluster.psql("select oid from pg_database where datname = 'postgres'");
    let name = format!("base/{directory}/copy_old");
    let mut page = vec![7; 8192];
    page[..8].fill(0);
    fs::write(bed.cluster.pgdata().join(&name), [vec![0; 8192], page].concat()).unwrap();
    user::give_tree(bed.cluster.pgdata());
    let backup = bed.backup(&["--remote"]);
    assert_eq!(
        (&backup["damaged_page_count"], &backup["damaged_pages"][0]["file"]),
        (&1.into(), &name.into()),
        "{backup}"
    );
    assert_eq!(backup["damaged_pages"][0]["block"], 1);
}

fn filled() -> Bed {
    let bed = Bed::local(Cluster::builder().tcp());
    bed.cluster.psql(
        "create table t as select i, md5(random()::text) from generate_series(1, 400000) i; checkpoint",
    );
    bed
}

/// B4: the connection breaks in the middle: no backup, and the server is out of backup mode.
#[test]
fn a_connection_that_breaks_leaves_no_backup() {
    let bed = filled();
    let proxy = Proxy::to(bed.cluster.port());
    let through = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", proxy.port());
    let agent = Agent::at(bed.cluster.dir(), bed.cluster.pgdata(), &through).repository("main", &bed.store);
    for fault in [
        Fault::ResetAnswerAfter(20 << 20),
        Fault::TruncateAnswerAfter(20 << 20),
        Fault::ResetAnswerAfter(9 << 20),
    ] {
        proxy.set(fault);
        let output = agent.run(&["backup", "--remote"]).expect_status(1);
        assert!(
            output.stderr.contains("connection to PostgreSQL") && output.stderr.contains("lost"),
            "{}",
            output.stderr
        );
        assert_eq!(bed.repository().finished(), []);
        bed.cluster.wait_for("select count(*) from pg_stat_activity where backend_type = 'walsender'", "0");
    }
    assert!(bed.repository().list().iter().all(|listed| listed.state == ListedState::Unfinished));
    proxy.heal();
    agent.run(&["backup", "--remote"]).expect_success();
    assert_eq!(bed.repository().finished().len(), 1);
}

/// B4: the server ends the session, and a signal ends the command.
#[test]
fn a_session_that_ends_leaves_no_backup() {
    let bed = filled();
    let proxy = Proxy::to(bed.cluster.port());
    let through = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", proxy.port());
    let agent = Agent::at(bed.cluster.dir(), bed.cluster.pgdata(), &through).repository("main", &bed.store);
    // So slow that it is in the middle for long.
    proxy.set(Fault::Bandwidth(1 << 20));
    for ended_by_server in [true, false] {
        let mut command = agent.command("archive-agent", ["backup", "--remote"]);
        let mut backup =
            Background::start(&mut command, &agent.place().join(format!("{ended_by_server}.log")));
        wait::until_true(wait::SOON, "the backup copies", || backup.log().contains("copying"));
        if ended_by_server {
            bed.cluster.psql(
                "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'",
            );
        } else {
            backup.signal(rustix::process::Signal::TERM);
        }
        assert_eq!(backup.wait(wait::SOON * 2), 1, "{}", backup.log());
        let told = if ended_by_server { "PostgreSQL" } else { "no backup was taken" };
        assert!(backup.log().contains(told), "{}", backup.log());
        assert_eq!(bed.repository().finished(), []);
        bed.cluster.wait_for("select count(*) from pg_stat_activity where backend_type = 'walsender'", "0");
    }
}

/// B3: what the server leaves out because it is a link is missed, and not found missing by a restore.
#[test]
fn a_directory_behind_a_link_is_missed() {
    let mut bed = Bed::local(Cluster::builder());
    bed.cluster.stop(Shutdown::Fast);
    let (inside, outside) = (bed.cluster.pgdata().join("pg_xact"), bed.cluster.dir().join("elsewhere"));
    fs::rename(&inside, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &inside).unwrap();
    bed.cluster.start();
    let output = bed.agent.run(&["backup", "--remote"]).expect_status(1);
    assert!(
        output.stderr.contains("pg_xact") && output.stderr.contains("without --remote"),
        "{}",
        output.stderr
    );
    assert_eq!(bed.repository().finished(), []);
    bed.backup(&[]);
}

/// K5: `check --remote` and the backup name what keeps the server from sending, with what to do.
#[test]
fn what_keeps_the_server_from_sending_is_named() {
    let mut bed = Bed::local(Cluster::builder().conf("max_wal_senders", 0));
    bed.cluster.psql("create role plain login; grant pg_read_all_settings to plain");
    let full = bed.agent.run(&["check", "--remote", "--no-switch"]).expect_status(3);
    assert!(full.stdout.contains("max_wal_senders (now 0)"), "{}", full.stdout);
    bed.cluster.stop(Shutdown::Fast);
    bed.cluster.set("max_wal_senders", 5);
    bed.cluster.start();

    let conninfo = bed.cluster.conninfo().replace("user=postgres", "user=plain");
    let plain = Agent::at(bed.cluster.dir(), bed.cluster.pgdata(), &conninfo).repository("main", &bed.store);
    let output = plain.run(&["backup", "--remote"]).expect_status(1);
    assert!(output.stderr.contains("ALTER ROLE \"plain\" REPLICATION;"), "{}", output.stderr);

    fs::write(bed.cluster.pgdata().join("pg_hba.conf"), "local all all trust\n").unwrap();
    bed.cluster.reload();
    wait::until_true(wait::SOON, "pg_hba.conf is read", || {
        let output = bed.agent.run(&["check", "--remote", "--no-switch"]);
        output.stdout.contains("pg_hba.conf") && output.stdout.contains("host replication postgres")
    });
    assert!(bed.repository().list().is_empty());
}
