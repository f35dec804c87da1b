//! Files that vanish, shrink and grow while they are copied: all normal, none an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walpoint_repo::backup::EntryContent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::Contents;
use walpoint_tests::process::{self, Background};
use walpoint_tests::{faults, needs_root, schema, user, wait};

use crate::bed::Bed;

const FILES: usize = 60;

/// A backup whose single reader stops in the middle of the first of these files for some seconds: which one it is.
pub(crate) fn held(bed: &Bed, files: &[PathBuf]) -> (Background, PathBuf) {
    let command = bed.agent.command("archive-agent", ["backup", "--json"]);
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let mut command = faults::inject(&command, &["pread64:delay_enter=5s:when=1"], &paths);
    let backup = Background::start(&mut command, &bed.agent.place().join("held.log"));
    let mut open = None;
    wait::until_true(wait::SOON, "the backup reads one of the files", || {
        let pids = process::descendants(backup.pid());
        let fds =
            pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()).flatten().flatten();
        open = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).find(|path| files.contains(path));
        open.is_some()
    });
    (backup, open.unwrap())
}

/// The document in a log.
fn printed(log: &str) -> serde_json::Value {
    serde_json::from_str(&schema::printed(log).0).unwrap()
}

/// B2: one file is cut to nothing while it is read, all others vanish between the walk and the reader.
#[test]
fn files_that_vanish_or_shrink_while_they_are_copied() {
    needs_root!();
    let bed = Bed::new(Cluster::builder(), walpoint_tests::store::Store::local(), |agent| {
        agent.cluster_line("workers = 1")
    });
    let many = bed.cluster.pgdata().join("many");
    fs::create_dir(&many).unwrap();
    let files: Vec<PathBuf> = (0..FILES).map(|n| many.join(n.to_string())).collect();
    files.iter().for_each(|file| fs::write(file, "0123456789").unwrap());
    user::give_tree(&many);
    let (mut backup, held) = held(&bed, &files);
    fs::OpenOptions::new().write(true).open(&held).unwrap().set_len(4).unwrap();
    files.iter().filter(|file| **file != held).for_each(|file| fs::remove_file(file).unwrap());
    assert_eq!(backup.wait(Duration::from_secs(60)), 0, "{}", backup.log());
    let report = printed(&backup.log());
    assert_eq!(
        (&report["truncated_count"], &report["vanished_count"]),
        (&1.into(), &(FILES - 1).into()),
        "{report}"
    );
    let entries = bed.repository().entries(report["backup"].as_str().unwrap());
    let left: Vec<_> = entries.iter().filter(|(path, _)| path.starts_with("many/")).collect();
    let [(path, entry)] = left[..] else { panic!("{left:?}") };
    assert!(held.ends_with(path));
    assert!(matches!(&entry.content, EntryContent::File(file) if file.length == 4), "{entry:?}");
}

/// B2, B3: a tablespace that is created while files are copied is made by replay, which cannot make it where it is filled already.
#[test]
fn a_tablespace_that_is_created_during_a_backup_is_restored_by_replay() {
    needs_root!();
    let mut bed = Bed::new(Cluster::builder(), walpoint_tests::store::Store::local(), |agent| {
        agent.cluster_line("workers = 1")
    });
    let file = bed.cluster.pgdata().join("base/held");
    fs::write(&file, "0123456789").unwrap();
    user::give_tree(&file);
    let (mut backup, _) = held(&bed, &[file]);
    let place = bed.cluster.create_tablespace("late");
    bed.cluster.psql("create table t tablespace late as select generate_series(1, 1000) i");
    assert_eq!(backup.wait(Duration::from_secs(60)), 0, "{}", backup.log());
    let id = printed(&backup.log())["backup"].as_str().unwrap().to_owned();
    let entries = bed.repository().entries(&id);
    let spaces: Vec<_> = entries.iter().filter(|(path, _)| path.starts_with("pg_tblspc/")).collect();
    assert!(spaces.is_empty(), "{spaces:?}");
    bed.cluster.wait_archived(&bed.cluster.switch_wal());
    let contents = Contents::of(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    // The location in the record has to be there and empty.
    fs::rename(&place, place.with_extension("original")).unwrap();
    fs::create_dir(&place).unwrap();
    user::give(&place);
    contents.assert_equal(&Contents::of(&bed.restore(&id)));
}

/// B2: what is appended after a file was opened is not chased: a log that is written all the time ends somewhere.
#[test]
fn a_file_that_grows_is_taken_as_long_as_it_was() {
    needs_root!();
    let bed = Bed::local(Cluster::builder());
    let log = bed.cluster.pgdata().join("grows");
    fs::write(&log, "0123456789").unwrap();
    user::give(&log);
    let (mut backup, held) = held(&bed, std::slice::from_ref(&log));
    fs::write(&held, "x".repeat(1 << 20)).unwrap();
    assert_eq!(backup.wait(Duration::from_secs(60)), 0, "{}", backup.log());
    let report = printed(&backup.log());
    let entries = bed.repository().entries(report["backup"].as_str().unwrap());
    assert!(matches!(&entries["grows"].content, EntryContent::File(file) if file.length == 10));
}
