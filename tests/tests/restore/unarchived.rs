//! R4: WAL of a crashed server that no archive has is not lost when its directory is repaired.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{faults, wait};

/// A server that crashed with rows in its last segment, which was never archived. The segment's name.
fn crashed(major: u32) -> (Archived, String) {
    let mut bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.cluster.psql("select pg_create_restore_point('before')");
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    let open = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    bed.cluster.crash();
    (bed, open)
}

#[track_caller]
fn repair(bed: &Archived, options: &[&str]) -> Output {
    bed.try_restore("data", &[&["--delta", "--server-is-down"], options].concat()).expect_success()
}

/// Directories of what a repair kept.
fn kept(bed: &Archived) -> Vec<PathBuf> {
    let entries = fs::read_dir(bed.cluster.dir().path()).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().unwrap().contains(".walpoint-kept-"))
        .map(|entry| entry.path())
        .collect()
}

#[track_caller]
fn rows_after_recovery(bed: &mut Archived) -> String {
    bed.cluster.start();
    bed.cluster.wait_promoted();
    bed.cluster.psql("select count(*) from t")
}

/// R4: the segment that was being written when the server crashed is kept beside the directory, whole, named by the restore
/// and by `rollback`, and replayed: no row that was committed is missing.
#[test]
fn the_last_segment_of_a_crashed_server_is_kept_and_replayed() {
    the_last_segment_is_replayed(17);
}

/// The same on the oldest and the newest version.
#[test]
fn the_last_segment_is_replayed_by_the_oldest_and_the_newest_version() {
    the_last_segment_is_replayed(13);
    the_last_segment_is_replayed(19);
}

fn the_last_segment_is_replayed(major: u32) {
    let (mut bed, open) = crashed(major);
    let pgdata = bed.cluster.pgdata().to_owned();
    let content = fs::read(pgdata.join("pg_wal").join(&open)).unwrap();
    let restored = repair(&bed, &[]);
    let [kept] = &kept(&bed)[..] else { panic!("{:?}", kept(&bed)) };
    assert_eq!(fs::read(kept.join(&open)).unwrap(), content);
    assert_eq!(fs::read_dir(kept).unwrap().count(), 2, "what the archive has is not kept");
    assert!(
        restored.stdout.contains("after the end of the archive, recovery replays unarchived WAL"),
        "{restored:#?}"
    );
    let told = bed.agent.restore(&["rollback", "--pgdata", pgdata.to_str().unwrap()]).expect_status(1).stderr;
    assert!(told.contains(&open) && told.contains(kept.to_str().unwrap()), "{told}");
    assert_eq!(rows_after_recovery(&mut bed), "2000", "PostgreSQL {major}");
    assert_eq!(fs::read(kept.join(&open)).unwrap(), content, "PostgreSQL wrote to what was kept");
}

/// R4: a directory that is moved aside lies there whole, and the restored server has what was committed on it.
#[test]
fn the_last_segment_of_a_directory_that_is_replaced_is_replayed() {
    let (mut bed, open) = crashed(17);
    let content = fs::read(bed.cluster.pgdata().join("pg_wal").join(&open)).unwrap();
    let restored = bed.try_restore("data", &["--replace", "--server-is-down"]).expect_success();
    assert!(
        restored.stdout.contains("after the end of the archive, recovery replays unarchived WAL"),
        "{restored:#?}"
    );
    let old = fs::read_dir(bed.cluster.dir().path()).unwrap().flatten().map(|entry| entry.path());
    let old = { old }.find(|path| path.to_str().unwrap().contains(".walpoint-old-")).unwrap();
    assert_eq!(rows_after_recovery(&mut bed), "2000");
    assert_eq!(fs::read(old.join("pg_wal").join(&open)).unwrap(), content);
}

/// Rows behind a record that is longer than a segment: the segments that it fills are replayed. A part of a record, whose end is
/// nowhere, is not.
#[test]
fn rows_behind_a_record_of_several_segments_are_replayed() {
    for ends in [true, false] {
        let (mut bed, _) = crashed(17);
        bed.cluster.start();
        bed.cluster.set("archive_command", "false");
        bed.cluster.reload();
        bed.cluster.psql("select pg_logical_emit_message(true, 'x', repeat('x', 3700000)) is null");
        bed.cluster.psql("insert into t select generate_series(2001, 3000)");
        let open = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
        bed.cluster.crash();
        if !ends {
            fs::remove_file(bed.cluster.wal_dir().join(&open)).unwrap();
        }
        let restored = bed.try_restore("data", &["--replace", "--server-is-down"]).expect_success().stdout;
        assert_eq!(restored.contains("no record ends in"), !ends, "{restored}");
        assert_eq!(rows_after_recovery(&mut bed), if ends { "3000" } else { "2000" });
    }
}

/// What of it is not replayed is named, with where it lies and how it is archived.
#[test]
fn what_is_not_replayed_of_a_directory_that_is_replaced_is_named() {
    let (bed, open) = crashed(17);
    let options = ["--replace", "--server-is-down", "--target-name", "before", "--target-action", "promote"];
    let told = bed.try_restore("data", &options).expect_success().stdout;
    assert!(told.contains("WAL that is not archived and that recovery does not replay"), "{told}");
    let push = told.split("archive-agent push ").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    assert!(push.ends_with(&open) && fs::exists(push).unwrap(), "{told}");
    bed.agent.run(&["push", push]).expect_success();
}

/// The data directory is lost, and its `pg_wal` on another disk is not: what the manual says brings the rows back.
#[test]
fn a_pg_wal_that_outlived_its_data_directory_is_archived_through_a_restored_one() {
    let (mut bed, open) = crashed(17);
    let place = |name: &str| bed.cluster.dir().path().join(name);
    let (pgdata, old, wal) = (bed.cluster.pgdata().to_owned(), place("old-wal"), place("new-wal"));
    fs::rename(pgdata.join("pg_wal"), &old).unwrap();
    fs::remove_dir_all(&pgdata).unwrap();
    let options = ["--resume-archiving", "--wal-dir", wal.to_str().unwrap()];
    bed.restore("data", &options);
    bed.agent.run(&["push", old.join(&open).to_str().unwrap()]).expect_success();
    fs::remove_dir_all(&pgdata).unwrap();
    fs::remove_dir_all(&wal).unwrap();
    bed.restore("data", &[&options[..], &["--use-partial"]].concat());
    assert_eq!(rows_after_recovery(&mut bed), "2000");
}

/// A server that crashed in the first segment after its promotion: what was committed since is not left out without a word.
#[test]
fn a_crash_in_the_first_segment_after_a_promotion_loses_nothing() {
    let (mut bed, open) = crashed(17);
    repair(&bed, &["--resume-archiving"]);
    assert_eq!(rows_after_recovery(&mut bed), "2000");
    let stored = |name: &str| bed.back_door().list("clusters").iter().any(|key| key.contains(name));
    wait::until_true(wait::SOON, "the promotion is archived", || {
        stored("00000002.history") && stored(&format!("/{open}.partial/"))
    });
    bed.cluster.psql("insert into t select generate_series(2001, 3000)");
    let first = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    bed.cluster.crash();
    let try_repair = |options: &[&str]| {
        bed.try_restore("data", &[&["--delta", "--server-is-down", "--resume-archiving"], options].concat())
    };
    let refused = try_repair(&[]);
    assert!(
        !refused.success()
            && refused.stdout.contains(&format!(
                "archive it first, with \"archive-agent \
            push …/pg_wal/{first}\""
            )),
        "{refused:#?}"
    );
    let refused = try_repair(&["--use-partial"]);
    assert!(!refused.success() && refused.stderr.contains("nothing was changed"), "{refused:#?}");
    let path = bed.cluster.pgdata().join("pg_wal").join(&first);
    let push = format!("archive-agent push {}", path.display());
    assert!(refused.stderr.contains(&push), "{refused:#?}");
    bed.agent.run(&["push", path.to_str().unwrap()]).expect_success();
    try_repair(&["--use-partial"]).expect_success();
    assert_eq!(rows_after_recovery(&mut bed), "3000");
}

/// What was replayed so is in the archive afterwards, if the restored server archives.
#[test]
fn what_was_replayed_is_archived_by_the_server_that_goes_on() {
    let (mut bed, open) = crashed(17);
    repair(&bed, &["--resume-archiving"]);
    assert_eq!(rows_after_recovery(&mut bed), "2000");
    bed.cluster.psql("insert into t select generate_series(2001, 3000)");
    bed.settle();
    let partial = format!("/{open}.partial/");
    let stored = || bed.back_door().list("clusters").iter().any(|key| key.contains(&partial));
    wait::until_true(wait::SOON, "the old timeline's last segment is archived", stored);
    let copy = bed.restore_and_start("copy", &[]);
    copy.wait_promoted();
    assert_eq!(copy.psql("select count(*) from t"), "3000");
    bed.agent.run(&["verify"]).expect_success();
}

/// The archive was out of reach before the crash: whole segments that no archive has are archived by the server that goes on,
/// although its checkpoint at the end of recovery takes them for archived.
#[track_caller]
fn whole_segments_are_archived(major: u32) {
    let mut bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.settle();
    bed.cluster.psql("alter system set archive_command = 'false'");
    bed.stop_daemon();
    bed.cluster.reload();
    let mut names = Vec::new();
    for n in 1..=3 {
        bed.cluster.psql(&format!("insert into t select generate_series({n}001, {}000)", n + 1));
        names.push(bed.cluster.switch_wal());
    }
    bed.cluster.crash();
    let told = repair(&bed, &["--discard-unarchived-wal", "--resume-archiving"]).stdout;
    assert!(told.contains("alter system reset wal_keep_size") && told.contains(&names[2]), "{told}");
    let mut settings =
        fs::OpenOptions::new().append(true).open(bed.cluster.pgdata().join("postgresql.auto.conf")).unwrap();
    writeln!(settings, "archive_command = '{}'", bed.agent.archive_command()).unwrap();
    drop(settings);
    assert_eq!(rows_after_recovery(&mut bed), "4000");
    let last = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&last);
    let stored = bed.back_door().list("clusters/main");
    for name in &names {
        assert!(
            stored.iter().any(|key| key.ends_with(&format!("/{name}"))),
            "PostgreSQL {major}: {name} {stored:#?}"
        );
    }
    let copy = bed.restore_and_start("copy", &[]);
    copy.wait_promoted();
    assert_eq!(copy.psql("select count(*) from t"), "4000", "PostgreSQL {major}");
}

#[test]
fn whole_segments_that_were_replayed_are_archived_by_the_server_that_goes_on() {
    for major in [14, 17] {
        whole_segments_are_archived(major);
    }
}

/// Only a recovery to the end goes on to it; the restore says so.
#[test]
fn a_recovery_to_a_target_does_not_replay_it() {
    let (mut bed, open) = crashed(17);
    let pgdata = bed.cluster.pgdata().to_owned();
    let options = ["--target-name", "before", "--target-action", "promote"];
    let restored = repair(&bed, &options);
    assert!(restored.stdout.contains("only a recovery to the end of the archive"), "{restored:#?}");
    assert!(kept(&bed)[0].join(&open).exists() && !pgdata.join("pg_wal").join(&open).exists());
    assert_eq!(rows_after_recovery(&mut bed), "1000");
}

/// What a repair to a target kept is replayed by a later one to the end, and once more by a later one still: it is nowhere else.
#[test]
fn what_an_earlier_repair_kept_is_replayed_by_a_later_one_to_the_end() {
    let (mut bed, open) = crashed(17);
    repair(&bed, &["--target-name", "before"]);
    bed.cluster.start();
    bed.cluster.wait_for("select pg_is_wal_replay_paused()", "t");
    assert_eq!(bed.cluster.psql("select count(*) from t"), "1000");
    bed.cluster.stop(Shutdown::Fast);
    for _ in 0..2 {
        let told = repair(&bed, &[]).stdout;
        assert!(
            told.contains("after the end of the archive, recovery replays unarchived WAL")
                && told.contains(&open),
            "{told}"
        );
        assert_eq!(rows_after_recovery(&mut bed), "2000");
        bed.cluster.psql("checkpoint");
        bed.cluster.stop(Shutdown::Fast);
    }
}

/// A segment whose records do not continue the archive's, or that is damaged, is kept and not replayed.
#[test]
fn what_does_not_continue_the_archive_is_not_replayed() {
    let (mut bed, open) = crashed(17);
    let segment = bed.cluster.pgdata().join("pg_wal").join(&open);
    let mut content = fs::read(&segment).unwrap();
    // The first record follows the long header of 40 bytes; its pointer to the one before lies 8 bytes behind its start. The
    // record is right but for that.
    content[48..56].copy_from_slice(&0x10_0028u64.to_le_bytes());
    let total = u32::from_le_bytes(content[40..44].try_into().unwrap()) as usize;
    let body = crc32c(&content[64..40 + total], 0);
    let crc = crc32c(&content[40..60], body);
    content[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segment, &content).unwrap();
    let restored = repair(&bed, &[]);
    assert!(restored.stdout.contains("does not continue the archive"), "{restored:#?}");
    assert_eq!(fs::read(kept(&bed)[0].join(&open)).unwrap(), content);
    assert_eq!(rows_after_recovery(&mut bed), "1000");
}

/// R4: a segment that the archive has is damaged in the directory that is repaired, and in another one a byte that nothing checks is not
/// what it was. They are no other server's for that: what follows them is replayed.
#[test]
fn what_follows_a_damaged_segment_that_the_archive_has_is_replayed() {
    let (mut bed, open) = crashed(17);
    let wal = bed.cluster.pgdata().join("pg_wal");
    let entries = fs::read_dir(&wal).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let mut archived: Vec<String> = entries.filter(|name| name.len() == 24 && *name < open).collect();
    archived.sort();
    let [.., padded, archived] = &archived[..] else { panic!("{archived:?}") };
    // The padding of its first page's header.
    let mut content = fs::read(wal.join(padded)).unwrap();
    content[20] ^= 1;
    fs::write(wal.join(padded), &content).unwrap();
    let mut content = fs::read(wal.join(archived)).unwrap();
    // In the body of its first record.
    let total = u32::from_le_bytes(content[40..44].try_into().unwrap()) as usize;
    content[40 + total - 1] ^= 1;
    fs::write(wal.join(archived), &content).unwrap();
    let restored = repair(&bed, &[]);
    assert!(
        restored.stdout.contains("after the end of the archive, recovery replays unarchived WAL"),
        "{restored:#?}"
    );
    assert_eq!(rows_after_recovery(&mut bed), "2000");
}

/// R4: damage in a segment that no archive has, behind which the same server went on: what was committed there is not left out for a note
/// in the report.
#[test]
fn damage_before_wal_of_the_same_server_is_refused() {
    let (mut bed, _) = crashed(17);
    bed.cluster.start();
    bed.cluster.psql("alter system set archive_command = 'false'");
    bed.stop_daemon();
    bed.cluster.reload();
    let [damaged, next] = [2, 3].map(|n| {
        bed.cluster.psql(&format!("insert into t select generate_series({n}001, {}000)", n + 1));
        bed.cluster.switch_wal()
    });
    bed.cluster.crash();
    let path = bed.cluster.pgdata().join("pg_wal").join(&damaged);
    let mut content = fs::read(&path).unwrap();
    // In the middle of a page, more bytes than lie between two records.
    content[30_000..30_016].iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(&path, &content).unwrap();
    let options = ["--replace", "--server-is-down"];
    let refused = bed.try_restore("data", &options).expect_status(1);
    let says = |text: &str| assert!(refused.stderr.contains(text), "{text}: {refused:#?}");
    ["recovery would end in", &damaged, &next, "nothing was changed"].into_iter().for_each(says);
    bed.try_restore("data", &[&options[..], &["--discard-unarchived-wal"]].concat()).expect_success();
}

/// CRC-32C, a bit at a time; `before`: of what precedes.
fn crc32c(bytes: &[u8], before: u32) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!before, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A record that was not written whole is not replayed: behind the last valid one there are zeros.
#[test]
fn a_torn_end_is_cut_off() {
    let (mut bed, open) = crashed(17);
    let segment = bed.cluster.pgdata().join("pg_wal").join(&open);
    let content = fs::read(&segment).unwrap();
    // In the midst of the rows, whose commit follows.
    let torn = 20_000;
    let mut cut = content.clone();
    cut[torn..].fill(0);
    fs::write(&segment, &cut).unwrap();
    let restored = repair(&bed, &[]);
    assert!(restored.stdout.contains("recovery replays unarchived WAL"), "{restored:#?}");
    let placed = fs::read(bed.cluster.pgdata().join("pg_wal").join(&open)).unwrap();
    let end = placed.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(0 < end && end < torn && placed[..=end] == content[..=end], "{end} {torn}");
    assert_eq!(rows_after_recovery(&mut bed), "1000");
}

/// R5: killed in the middle, the same command still finds what it kept.
#[test]
fn an_interrupted_repair_replays_it_too() {
    let (mut bed, open) = crashed(17);
    let pgdata = bed.cluster.pgdata().to_owned();
    let options = ["restore", "--delta", "--server-is-down", "--pgdata", pgdata.to_str().unwrap()];
    let command = bed.agent.command("restore-agent", options);
    let gone = || !pgdata.join("pg_wal").join(&open).exists();
    let mut lost = false;
    for when in 1..=6 {
        let injection = format!("rename:signal=SIGKILL:when={when}");
        process::run(&mut faults::inject(&command, &[&injection], &[]), wait::SOON * 2);
        assert!(!pgdata.join("global/pg_control").exists() || !lost, "it finished at {when}");
        lost |= gone();
    }
    assert!(lost, "it was never interrupted after pg_wal was emptied");
    // A run that a full disk ended, for example, may have left the beginning of it.
    let whole = kept(&bed).iter().find_map(|kept| fs::read(kept.join(&open)).ok()).unwrap();
    fs::create_dir_all(pgdata.join("pg_wal")).unwrap();
    fs::write(pgdata.join("pg_wal").join(&open), &whole[..138]).unwrap();
    repair(&bed, &[]);
    assert_eq!(rows_after_recovery(&mut bed), "2000");
}

/// R4: where what is only there cannot be kept, the repair ends before it changes anything.
#[test]
fn a_repair_that_cannot_keep_wal_changes_nothing() {
    let (mut bed, _) = crashed(17);
    let parent = bed.cluster.dir().path().to_owned();
    let before = crate::tree::contents(bed.cluster.pgdata());
    let mode =
        |mode| fs::set_permissions(&parent, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o555);
    let output = bed.try_restore("data", &["--delta", "--server-is-down"]);
    mode(0o755);
    let output = output.expect_status(1);
    for says in ["cannot be kept beside it", "nothing can be made in", "nothing was changed"] {
        assert!(output.stderr.contains(says), "{output:#?}");
    }
    assert_eq!(crate::tree::contents(bed.cluster.pgdata()), before);
    bed.cluster.start();
    assert_eq!(bed.cluster.psql("select count(*) from t"), "2000");
}
