//! R4: WAL of a server that went another way than the archive is not taken for the archive's because its files have the same names.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Output;
use walpoint_tests::store::Store;
use walpoint_tests::user;

fn bed() -> Archived {
    of(Archived::start(Cluster::builder().segment_size_mb(1), Store::local()))
}

/// With a table of 1000 rows and a backup.
fn of(bed: Archived) -> Archived {
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.settle();
    bed
}

/// Writes rows, of a length that depends on `kind`, and switches, so many times; the segments.
fn segments(cluster: &Cluster, count: u32, kind: u32) -> Vec<String> {
    let one = |n| {
        cluster.psql(&format!("insert into t select -{kind} from generate_series(0, {})", 10 * kind + n));
        cluster.switch_wal()
    };
    (0..count).map(one).collect()
}

/// Writes into the segment that follows the last finished one; its name.
fn open_segment(cluster: &Cluster) -> String {
    cluster.psql("insert into t values (0)");
    cluster.psql("select pg_walfile_name(pg_current_wal_lsn())")
}

/// A copy of a server on its timeline that is not started yet and archives nothing; `mode`: its `archive_mode`.
fn copy_of(cluster: &Cluster, mode: &str) -> Cluster {
    let place = cluster.base_backup(&["-X", "stream"]);
    let copy = Cluster::adopt(Arc::clone(cluster.dir()), cluster.major(), place, None);
    copy.set("archive_mode", mode);
    copy.set("archive_command", "false");
    copy
}

fn name(cluster: &Cluster) -> &str {
    cluster.pgdata().file_name().unwrap().to_str().unwrap()
}

fn delta(bed: &Archived, copy: &Cluster, options: &[&str]) -> Output {
    bed.try_restore(name(copy), &[&["--delta", "--server-is-down"], options].concat())
}

/// Directories of what a repair of that data directory kept.
fn kept(copy: &Cluster) -> Vec<PathBuf> {
    let prefix = format!("{}.walpoint-kept-", name(copy));
    let entries = fs::read_dir(copy.dir().path()).unwrap().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().unwrap().starts_with(&prefix));
    named.map(|entry| entry.path()).collect()
}

/// The files of WAL that repairs of that data directory kept.
fn files_kept(copy: &Cluster) -> Vec<String> {
    let entries = kept(copy).into_iter().flat_map(|kept| fs::read_dir(kept).unwrap().flatten());
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "walpoint-kept.json").collect();
    names.sort();
    names
}

/// What a file of `pg_wal` holds.
fn content(cluster: &Cluster, file: &str) -> Vec<u8> {
    fs::read(cluster.wal_dir().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Asserts that the one directory that a repair kept has these files with this content.
#[track_caller]
fn assert_kept(copy: &Cluster, files: &[(&str, Vec<u8>)]) {
    let [kept] = &kept(copy)[..] else { panic!("{:?}", kept(copy)) };
    for (name, content) in files {
        assert!(fs::read(kept.join(name)).ok().as_ref() == Some(content), "{name} is not kept as it was");
    }
}

#[track_caller]
fn rows(bed: &Archived, copy: &Cluster) -> String {
    let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), copy.pgdata());
    restored.wait_promoted();
    restored.psql("select count(*) filter (where i > 0), count(*) filter (where i < 0) from t")
}

/// A copy that was started beside its original has WAL of its own that waits for the archive: a repair is refused, and with
/// `--discard-unarchived-wal` keeps it.
#[test]
fn wal_that_waits_under_names_that_the_archive_has_is_refused_and_kept() {
    let bed = bed();
    waits(&bed, bed.cluster.major());
}

/// The same in a repository whose hashes have a key, beside another one with another key.
#[test]
fn wal_that_waits_is_compared_with_each_repositorys_own_key() {
    let second = Store::local();
    let configure = |agent: Agent| {
        let agent = agent.repository("second", &second);
        ["main", "second"].into_iter().fold(agent, |agent, name| {
            let key = agent.place().join(format!("{name}.key"));
            agent.repository_line(name, &format!("key_file = {:?}", key.display().to_string()))
        })
    };
    let bed = of(Archived::start_encrypted(Cluster::builder().segment_size_mb(1), Store::local(), configure));
    waits(&bed, bed.cluster.major());
}

fn waits(bed: &Archived, major: u32) {
    let mut copy = copy_of(&bed.cluster, "on");
    copy.start();
    let ours = segments(&bed.cluster, 3, 1);
    ours.iter().for_each(|segment| bed.cluster.wait_archived(segment));
    let theirs = segments(&copy, 2, 50);
    assert!(theirs.iter().all(|segment| ours.contains(segment)), "{ours:?} {theirs:?}");
    copy.crash();
    let own: Vec<(&str, Vec<u8>)> = theirs.iter().map(|s| (s.as_str(), content(&copy, s))).collect();
    let before = crate::tree::contents(copy.pgdata());
    let refused = delta(bed, &copy, &[]).expect_status(1);
    for says in
        [theirs[0].as_str(), "diverged from the archive", "--discard-unarchived-wal", "nothing was changed"]
    {
        assert!(refused.stderr.contains(says), "PostgreSQL {major}: {says}: {refused:#?}");
    }
    assert_eq!(crate::tree::contents(copy.pgdata()), before);
    assert!(kept(&copy).is_empty());
    let forced = delta(bed, &copy, &["--discard-unarchived-wal"]).expect_success();
    assert!(forced.stdout.contains("has other content in the archive"), "{forced:#?}");
    assert_kept(&copy, &own);
    // 11, 12 and 13 rows of the original's, none of the copy's.
    assert_eq!(rows(bed, &copy), "1000|36");
}

/// A copy that does not archive marks nothing as waiting: what it wrote is kept all the same.
#[test]
fn wal_of_a_copy_that_does_not_archive_is_kept() {
    let bed = bed();
    for mode in ["off", "on"] {
        let mut copy = copy_of(&bed.cluster, mode);
        if mode == "on" {
            // As a copy is often kept from archiving: all of it is marked as archived.
            copy.set("archive_command", "/bin/true");
        }
        copy.start();
        let ours = segments(&bed.cluster, 3, 1);
        ours.iter().for_each(|segment| bed.cluster.wait_archived(segment));
        let theirs = segments(&copy, 2, 50);
        if mode == "on" {
            copy.wait_archived(theirs.last().unwrap());
        }
        copy.crash();
        let own: Vec<(&str, Vec<u8>)> = theirs.iter().map(|s| (s.as_str(), content(&copy, s))).collect();
        delta(&bed, &copy, &[]).expect_success();
        assert_kept(&copy, &own);
    }
}

/// The same where its records have the lengths of the original's, and it wrote one segment more: nothing at the end of the archive shows
/// that this one is another server's but the content of those before it.
#[test]
fn wal_of_a_copy_is_not_replayed_behind_the_archive_because_its_lengths_fit() {
    let bed = bed();
    let mut copy = copy_of(&bed.cluster, "off");
    copy.start();
    let write = |cluster: &Cluster, row: &str| {
        cluster.psql(&format!("insert into t select {row} from generate_series(1, 12)"));
        cluster.switch_wal()
    };
    let ours: Vec<String> = (0..3).map(|_| write(&bed.cluster, "-1")).collect();
    ours.iter().for_each(|segment| bed.cluster.wait_archived(segment));
    let theirs: Vec<String> = (0..5).map(|_| write(&copy, "-2")).collect();
    assert!(ours.iter().all(|segment| theirs.contains(segment)), "{ours:?} {theirs:?}");
    copy.crash();
    let own: Vec<(&str, Vec<u8>)> = theirs.iter().map(|s| (s.as_str(), content(&copy, s))).collect();
    let repaired = delta(&bed, &copy, &[]).expect_success();
    assert!(repaired.stdout.contains("another server's"), "{repaired:#?}");
    assert_kept(&copy, &own);
    let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), copy.pgdata());
    restored.wait_promoted();
    assert_eq!(restored.psql("select i, count(*) from t where i < 0 group by i"), "-1|36");
}

/// Writes rows of one value and switches, three times; the segments.
fn equal_segments(cluster: &Cluster, row: i32) -> Vec<String> {
    let one = |_| {
        cluster.psql(&format!("insert into t select {row} from generate_series(1, 12)"));
        cluster.switch_wal()
    };
    (0..3).map(one).collect()
}

/// The same where the segments of the copy that differ were recycled: what they held is still there, under later names.
#[test]
fn wal_of_a_copy_is_not_replayed_though_what_differs_was_recycled() {
    let bed = bed();
    let mut copy = copy_of(&bed.cluster, "off");
    copy.set("min_wal_size", "32MB");
    copy.set("wal_keep_size", "0");
    copy.start();
    let ours = equal_segments(&bed.cluster, -1);
    ours.iter().for_each(|segment| bed.cluster.wait_archived(segment));
    let theirs = equal_segments(&copy, -2);
    assert_eq!(ours.last(), theirs.last());
    copy.psql("checkpoint");
    copy.psql("insert into t select -2 from generate_series(1, 12)");
    assert!(theirs.iter().all(|segment| !copy.wal_dir().join(segment).exists()), "they were recycled");
    copy.crash();
    let forced = delta(&bed, &copy, &["--discard-unarchived-wal"]).expect_success();
    assert!(forced.stdout.contains("another server's"), "{forced:#?}");
    let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), copy.pgdata());
    restored.wait_promoted();
    assert_eq!(restored.psql("select i, count(*) from t where i < 0 group by i"), "-1|36");
}

/// The same where a lineage of the copy's own has the segments that differ, so that they are not kept: what was kept of it is not
/// replayed by the next repair either.
#[test]
fn wal_of_a_copy_is_not_replayed_though_its_own_lineage_has_what_differs() {
    let bed = bed();
    let mut copy = copy_of(&bed.cluster, "on");
    let agent = Agent::with(&copy, &bed.store);
    agent.init(&["--new-lineage"]).expect_success();
    agent.archive_from(&copy);
    let daemon = agent.daemon();
    copy.start();
    let ours = equal_segments(&bed.cluster, -1);
    ours.iter().for_each(|segment| bed.cluster.wait_archived(segment));
    let theirs = equal_segments(&copy, -2);
    theirs.iter().for_each(|segment| copy.wait_archived(segment));
    copy.psql("insert into t select -2 from generate_series(1, 12)");
    let open = copy.psql("select pg_walfile_name(pg_current_wal_lsn())");
    copy.crash();
    assert_eq!(daemon.stop(), 0);
    let lineage = bed.back_door().list("clusters/main/lineages");
    let lineage = lineage.iter().find_map(|key| key.strip_suffix("-1")?.rsplit('/').next());
    let lineage = format!("{}-1", lineage.unwrap());
    for repair in ["the first", "the next"] {
        let output = delta(&bed, &copy, &["--lineage", &lineage]).expect_success();
        assert!(output.stdout.contains("another server's"), "{repair}: {output:#?}");
    }
    assert_eq!(files_kept(&copy), [open]);
    let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), copy.pgdata());
    restored.wait_promoted();
    assert_eq!(restored.psql("select i, count(*) from t where i < 0 group by i"), "-1|36");
}

/// Of two standbys that were promoted at one place the archive has one: the other one's WAL and its history, if that differs, are
/// kept.
#[test]
fn wal_of_a_second_promotion_is_kept() {
    let mut bed = bed();
    let [mut first, mut second] = [(); 2].map(|()| {
        let standby = bed.cluster.streaming_standby();
        standby.set("archive_command", "false");
        standby.reload();
        standby.wait_replayed(&bed.cluster);
        standby
    });
    bed.cluster.stop(walpoint_tests::cluster::Shutdown::Fast);
    bed.stop_daemon();
    first.promote();
    second.promote();
    let agent = Agent::with(&first, &bed.store);
    agent.archive_from(&first);
    let daemon = agent.daemon();
    first.set("archive_command", agent.archive_command());
    first.reload();
    let ours = segments(&first, 2, 1);
    ours.iter().for_each(|segment| first.wait_archived(segment));
    assert_eq!(daemon.stop(), 0);
    let theirs = segments(&second, 2, 50);
    assert!(theirs[0].starts_with("00000002") && ours.contains(&theirs[0]), "{ours:?} {theirs:?}");
    second.crash();
    first.crash();
    let history = second.wal_dir().join("00000002.history");
    let mut text = fs::read_to_string(&history).unwrap();
    text = text.replace("no recovery target specified", "promoted elsewhere");
    fs::write(&history, &text).unwrap();
    user::give(&history);

    delta(&bed, &second, &[]).expect_status(1);
    let mut own: Vec<(&str, Vec<u8>)> = theirs.iter().map(|s| (s.as_str(), content(&second, s))).collect();
    own.push(("00000002.history", text.into_bytes()));
    delta(&bed, &second, &["--discard-unarchived-wal"]).expect_success();
    assert_kept(&second, &own);
}

/// What the archive has is not kept: neither segments that wait though they are stored, nor the begin of a segment that a standby
/// was receiving, nor what a lineage of the copy's own has.
#[test]
fn what_the_archive_has_is_not_kept() {
    let mut bed = bed();
    let mut standby = bed.cluster.streaming_standby();
    bed.cluster.psql("insert into t select i from generate_series(1001, 1500) i");
    standby.wait_replayed(&bed.cluster);
    standby.crash();
    bed.settle();
    delta(&bed, &standby, &[]).expect_success();
    assert_eq!(files_kept(&standby), Vec::<String>::new(), "the begin of what is stored");
    assert_eq!(rows(&bed, &standby), "1500|0");

    // Archived into a lineage of its own.
    let mut copy = copy_of(&bed.cluster, "on");
    let agent = Agent::with(&copy, &bed.store);
    agent.init(&["--new-lineage"]).expect_success();
    agent.archive_from(&copy);
    let daemon = agent.daemon();
    copy.start();
    let ours = segments(&bed.cluster, 3, 1);
    ours.iter().for_each(|segment| bed.cluster.wait_archived(segment));
    let theirs = segments(&copy, 2, 50);
    theirs.iter().for_each(|segment| copy.wait_archived(segment));
    let open = open_segment(&copy);
    copy.crash();
    assert_eq!(daemon.stop(), 0);
    let lineage = bed.back_door().list("clusters/main/lineages");
    let lineage = lineage.iter().find_map(|key| key.strip_suffix("-1")?.rsplit('/').next());
    let lineage = format!("{}-1", lineage.unwrap());
    delta(&bed, &copy, &["--lineage", &lineage]).expect_success();
    assert_eq!(files_kept(&copy), [open], "the rest is in a lineage of its own, or common");

    // Stored, and PostgreSQL did not learn of it.
    let open = open_segment(&bed.cluster);
    bed.cluster.crash();
    let status = bed.cluster.wal_dir().join("archive_status");
    for name in &ours {
        fs::rename(status.join(format!("{name}.done")), status.join(format!("{name}.ready"))).unwrap();
    }
    delta(&bed, &bed.cluster, &["--lineage", &lineage]).expect_success();
    assert_eq!(files_kept(&bed.cluster), [open]);
}

/// The same where nothing is left of the segments that differ: that the records of what follows fit shows nothing. A server whose record
/// of what was stored names the last segment has its rows.
#[test]
fn wal_is_not_replayed_where_nothing_shows_whose_the_archives_last_segment_is() {
    let mut bed = bed();
    let mut copy = copy_of(&bed.cluster, "off");
    copy.set("wal_keep_size", "0");
    copy.set("wal_recycle", "off");
    copy.start();
    bed.cluster.set("wal_keep_size", "0");
    bed.cluster.set("wal_recycle", "off");
    bed.cluster.reload();
    let ours = equal_segments(&bed.cluster, -1);
    ours.iter().for_each(|segment| bed.cluster.wait_archived(segment));
    let theirs = equal_segments(&copy, -2);
    assert_eq!(ours.last(), theirs.last());
    for (cluster, row) in [(&copy, -2), (&bed.cluster, -3)] {
        cluster.psql("checkpoint");
        cluster.psql(&format!("insert into t select {row} from generate_series(1, 12)"));
        assert!(theirs.iter().all(|segment| !cluster.wal_dir().join(segment).exists()), "they are gone");
    }
    copy.crash();
    bed.cluster.crash();
    let rows = |cluster: &Cluster| {
        let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), cluster.pgdata());
        restored.wait_promoted();
        restored.psql("select i, count(*) from t where i < 0 group by i order by i")
    };
    let repaired = delta(&bed, &copy, &[]).expect_success();
    assert!(repaired.stdout.contains("nothing shows that the archive's last segment"), "{repaired:#?}");
    assert_eq!((rows(&copy).as_str(), files_kept(&copy).len()), ("-1|36", 1));

    // What a repair to a moment keeps is replayed by the next one.
    let noted = bed.cluster.wal_dir().join("walpoint-archived");
    assert!(noted.exists());
    for options in [&["--target-immediate"][..], &[]] {
        delta(&bed, &bed.cluster, options).expect_success();
    }
    assert_eq!(rows(&bed.cluster), "-3|12\n-1|36");
}
