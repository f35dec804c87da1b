//! The end of a promotion: PostgreSQL asks for its own new history, with its signal files gone. Answered from `pg_wal` it
//! would never be archived; answered with an outage it would stop the server in mid-promotion.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use crate::target::{Target, kill_prefetchers};

const NEW_HISTORY: &str = "00000002.history";

/// From 16 on, the end of recovery with prepared transactions reads WAL by way of the new timeline's history.
const PREPARE: &str =
    "create table prepared (n int); begin; insert into prepared values (1); prepare transaction 'open'";

fn bed(major: u32) -> (Archived, Ledger) {
    let bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
    let ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    (bed, ledger)
}

/// The new timeline's history reaches the archive, and the next restore takes the new timeline with all of its rows.
#[track_caller]
fn goes_on_from(bed: &Archived, promoted: &Cluster, ledger: &mut Ledger, gone_to: &str) {
    let log = promoted.log();
    assert!(!log.contains(&format!("restored log file \"{NEW_HISTORY}\"")), "{log}");
    let last = ledger.append(promoted).n;
    promoted.psql("commit prepared 'open'");
    let segment = promoted.switch_wal();
    assert!(segment.starts_with("00000002"), "{segment}");
    promoted.wait_archived(&segment);
    let keys = bed.back_door().list("clusters/main");
    assert!(keys.iter().any(|key| key.ends_with(NEW_HISTORY)), "{keys:#?}");
    let again = bed.restore_and_start(gone_to, &["--target-action", "promote"]);
    again.wait_promoted();
    assert_eq!(ledger.highest(&again), last, "{}", again.log());
    assert_eq!(again.psql("select n from prepared"), "1");
    assert_eq!(again.timeline(), 3);
}

/// Promise 4: a disaster with a transaction that is prepared: the restored server archives its new timeline's history.
#[track_caller]
fn a_restored_server_archives_its_history(major: u32) {
    let (mut bed, mut ledger) = bed(major);
    ledger.append(&bed.cluster);
    bed.cluster.psql(PREPARE);
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place("lost")).unwrap();
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &["--resume-archiving"]);
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(bed.cluster.psql("select gid from pg_prepared_xacts"), "open");
    goes_on_from(&bed, &bed.cluster, &mut ledger, "again");
}

#[test]
fn a_server_restored_with_a_prepared_transaction_archives_its_history() {
    a_restored_server_archives_its_history(17);
}

#[test]
fn servers_of_other_versions_restored_with_a_prepared_transaction_archive_their_histories() {
    for major in [13, 16, 18, 19] {
        a_restored_server_archives_its_history(major);
    }
}

/// What is away when the standby is promoted.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Away {
    Nothing,
    Store,
    StoreAndAgent,
}

/// Promise 4: a standby is promoted with a transaction that is prepared, with and without its archive.
#[track_caller]
fn a_promoted_standby_archives_its_history(major: u32, away: Away) {
    let (mut bed, mut ledger) = bed(major);
    let mut standby = bed.cluster.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.write();
    standby.set("archive_command", agent.archive_command());
    standby.set("restore_command", agent.restore_command());
    standby.start();
    standby.wait_for("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
    ledger.append(&bed.cluster);
    bed.cluster.psql(PREPARE);
    bed.settle();
    standby.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    let root = bed.store.root().unwrap().to_owned();
    let aside = root.with_extension("aside");
    if away != Away::Nothing {
        fs::rename(&root, &aside).unwrap();
    }
    if away == Away::StoreAndAgent {
        // The client alone, which finds no program to start.
        let lone = agent.place().join("restore-fetch");
        // By a process of its own: a program that this one had open for writing would be busy.
        let mut copy = std::process::Command::new("cp");
        copy.arg(walpoint_tests::testbed::under_test("restore-fetch")).arg(&lone);
        walpoint_tests::process::run(&mut copy, wait::SOON).expect_success();
        walpoint_tests::user::give(&lone);
        let command = agent.restore_command();
        let (_, arguments) = command.split_once(' ').unwrap();
        standby.set("restore_command", format!("PATH=/usr/bin:/bin {} {arguments}", lone.display()));
        standby.reload();
        wait::until_true(wait::SOON, "the command is changed", || {
            standby.psql("show restore_command").contains("PATH=")
        });
        kill_prefetchers(&agent);
    }
    let begun = Instant::now();
    standby.promote();
    assert!(begun.elapsed() < Duration::from_secs(20), "{away:?}: {:?}", begun.elapsed());
    if away != Away::Nothing {
        fs::rename(&aside, &root).unwrap();
    }
    assert_eq!(standby.psql("select gid from pg_prepared_xacts"), "open");
    let _daemon = agent.daemon();
    goes_on_from(&bed, &standby, &mut ledger, "again");
    kill_prefetchers(&agent);
}

#[test]
fn a_standby_promoted_with_a_prepared_transaction_archives_its_history() {
    a_promoted_standby_archives_its_history(17, Away::Nothing);
    a_promoted_standby_archives_its_history(17, Away::Store);
    a_promoted_standby_archives_its_history(17, Away::StoreAndAgent);
}

#[test]
fn standbys_of_other_versions_promoted_with_a_prepared_transaction_archive_their_histories() {
    for major in [13, 16, 18, 19] {
        a_promoted_standby_archives_its_history(major, Away::Store);
    }
}

/// Promise 4: a standby that follows the archive alone, on a timeline that has a history, is promoted while its archive is
/// away: the history that its own begins with is the one in `pg_wal`.
#[test]
fn a_standby_of_a_later_timeline_is_promoted_without_its_archive() {
    let (mut bed, mut ledger) = bed(17);
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place("lost")).unwrap();
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &["--resume-archiving"]);
    bed.cluster.start();
    bed.cluster.wait_promoted();
    let last = ledger.append(&bed.cluster).n;
    bed.cluster.psql(PREPARE);
    bed.settle();
    let standby = bed.restore_and_start("standby", &["--standby"]);
    wait::until_true(wait::SOON, "the standby has the last row", || {
        standby.try_psql("select max(n) from rows").is_ok_and(|n| n == last.to_string())
    });
    bed.cluster.crash();
    let root = bed.store.root().unwrap().to_owned();
    let aside = root.with_extension("aside");
    fs::rename(&root, &aside).unwrap();
    standby.promote();
    fs::rename(&aside, &root).unwrap();
    assert!(standby.current_segment().starts_with("00000003"), "{}", standby.log());
    assert_eq!(ledger.highest(&standby), last);
    assert_eq!(standby.psql("select gid from pg_prepared_xacts"), "open");
    let history = fs::read_to_string(standby.wal_dir().join("00000003.history")).unwrap();
    let parents: Vec<&str> =
        history.lines().filter_map(|line| line.split_once('\t')).map(|(p, _)| p).collect();
    assert_eq!(parents, ["1", "2"], "{history}");
}

/// Promise 4: the answer is "not in the archive", at once, from both programs, for a server without a signal file and for nobody
/// else; what a repository holds is given to all others.
#[test]
fn only_a_server_that_leaves_recovery_is_referred_to_its_own_history() {
    let (wal, store) = (walpoint_tests::waldata::promotion(17), Store::local());
    let archive = crate::archive::Archive::create(wal.pg_wal.parent().unwrap(), &[("main", &store)]);
    archive.put_all(&wal.archive, |name| name == NEW_HISTORY);
    let target = Target::like(wal.pg_wal.parent().unwrap()).configure(|a| a.repository("main", &store));
    let own = target.pgdata.join("pg_wal").join(NEW_HISTORY);
    fs::write(&own, "1\t0/1\tof its own\n").unwrap();
    let origin = target.pgdata.join("pg_wal/walpoint-origin");
    let given = fs::read(wal.archive.join(NEW_HISTORY)).unwrap();
    let answers = |status: i32, what: &str| {
        for output in [target.fetch_directly(NEW_HISTORY), target.fetch(NEW_HISTORY)] {
            assert_eq!(output.status, status, "{what}: {output:#?}");
            let expected = (status == 0).then(|| given.clone());
            assert_eq!(target.file(), expected, "{what}");
        }
        kill_prefetchers(&target.agent);
    };
    answers(0, "in recovery");
    let signal = target.pgdata.join("recovery.signal");
    fs::remove_file(&signal).unwrap();
    assert!(origin.exists(), "the recovery is noted");
    answers(1, "it leaves recovery");
    assert!(!origin.exists(), "the recovery is over");
    for first in [true, false] {
        fs::write(&origin, "").unwrap();
        let end = "00000001.history";
        let output = if first { target.fetch(end) } else { target.fetch_directly(end) };
        assert_eq!((output.status, origin.exists()), (1, false), "{output:#?}");
    }
    let root = store.root().unwrap();
    let aside = root.with_extension("aside");
    fs::rename(root, &aside).unwrap();
    answers(1, "it leaves recovery, and the store is away");
    fs::remove_file(&own).unwrap();
    answers(255, "it has no such history, and the store is away");
    fs::rename(&aside, root).unwrap();
    answers(0, "it has no such history");
    fs::write(&own, "1\t0/1\tof its own\n").unwrap();
    let pid = target.pgdata.join("postmaster.pid");
    let running = fs::read(&pid).unwrap();
    remove_and_restore(&pid, &running, || {
        let output = target.fetch_directly(NEW_HISTORY);
        assert_eq!((output.status, target.file()), (0, Some(given.clone())), "no server: {output:#?}");
    });
}

fn remove_and_restore(path: &Path, content: &[u8], between: impl FnOnce()) {
    fs::remove_file(path).unwrap();
    between();
    fs::write(path, content).unwrap();
}
