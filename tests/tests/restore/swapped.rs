//! R9: root restores while another user, who owns the place, swaps directories for links.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, user, wait};

use crate::tree::snapshot;

/// Puts links to `$OUT` in the place of directories: the given ones, again and again.
const SWAP: &str = "while :; do for d in $DIRS; do
    if [ -d $d ] && [ ! -L $d ]; then mv -T $d $d.x 2>/dev/null && ln -s $OUT $d 2>/dev/null; fi
    if [ -L $d ]; then rm -f $d; [ -d $d.x ] && mv -T $d.x $d 2>/dev/null; fi
done; done 2>/dev/null";

fn as_root(bed: &Archived, arguments: &[&str]) -> Output {
    process::run(bed.agent.command("restore-agent", arguments).uid(0).gid(0), wait::SOON)
}

/// R9: whatever is swapped, in a new directory, in one that is repaired, in tablespaces, and the places themselves: nothing of
/// root's changes its owner, its mode or its content, and nothing is made or removed there.
#[test]
fn root_gives_nothing_away_whatever_is_swapped_for_a_link() {
    needs_root!();
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.create_tablespace("fast");
    bed.cluster.psql("create table t tablespace fast as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.settle();
    let (oid, _) = bed.cluster.tablespaces()[0].clone();
    bed.cluster.stop(Shutdown::Fast);
    let outside = bed.cluster.dir().mkdir("outside");
    for name in ["global", "pg_notify", "PG_17_202406281", "5", "walpoint-spool"] {
        fs::create_dir(outside.join(name)).unwrap();
        fs::write(outside.join(name).join("victim"), "untouched").unwrap();
        chown(outside.join(name), Some(0), Some(0)).unwrap();
    }
    chown(&outside, Some(0), Some(0)).unwrap();
    let before = snapshot(&outside);

    let target = bed.place("target");
    let spaces = bed.place("spaces");
    let space = spaces.join(oid.to_string());
    let below = |root: &Path, names: &[&str]| -> Vec<String> {
        names.iter().map(|name| root.join(name).display().to_string()).collect()
    };
    let names = ["pg_notify", "pg_serial", "pg_twophase", "pg_wal", "global", "base", "base/5", "pg_xact"];
    let attacks = [
        // Directories that nothing is written to: a restore gets to the end in spite of it.
        below(&target, &["pg_notify", "pg_serial", "pg_twophase", "pg_dynshmem"]),
        below(&target, &names),
        below(&space, &["PG_17_202406281", "PG_17_202406281/5"]),
        vec![target.display().to_string()],
        vec![space.display().to_string()],
    ];
    let target = target.display().to_string();
    let spaces = spaces.display().to_string();
    let restore = ["restore", "--pgdata", &target, "--tablespace-dir", &spaces];
    for directories in &attacks {
        for way in [&[][..], &["--delta", "--server-is-down"]] {
            let mut swap = Command::new("sh");
            swap.args(["-c", SWAP]).env("DIRS", directories.join(" ")).env("OUT", &outside);
            let swap = Background::start(user::become_user(&mut swap), &bed.agent.place().join("swap.log"));
            for _ in 0..8 {
                let output = as_root(&bed, &[&restore[..], way].concat());
                assert!(!output.stderr.contains("panicked"), "{output:#?}");
                let after = snapshot(&outside);
                assert!(after == before, "{directories:?} {way:?}: {output:#?}\n{after:#?}\n{before:#?}");
                if way.is_empty() {
                    remove(&[&target, &spaces]);
                }
            }
            drop(swap);
            // A command of the shell that was killed may still be under way.
            std::thread::sleep(Duration::from_millis(300));
            remove(&[&target, &spaces]);
            if way.is_empty() {
                // For the repair that comes next.
                fs::create_dir(&spaces).unwrap();
                user::give(Path::new(&spaces));
                as_root(&bed, &restore).expect_success();
            }
        }
    }
    as_root(&bed, &restore).expect_success();
    let restored = Cluster::start_restored(bed.cluster.dir(), 17, &target);
    restored.wait_promoted();
    assert_eq!(restored.psql("select count(*) from t"), "1000");
}

/// Removes what a restore and the swaps left: links, and directories under both names.
fn remove(places: &[&str]) {
    for place in places {
        for place in [(*place).to_owned(), format!("{place}.x")] {
            if fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_symlink()) {
                drop(fs::remove_file(&place));
            }
            // The swaps may go on.
            for _ in 0..100 {
                if fs::remove_dir_all(&place).is_ok() || !Path::new(&place).exists() {
                    break;
                }
            }
        }
    }
}

/// R9: the parent of the place of `pg_wal` becomes a link after root has looked at it.
#[test]
fn root_follows_no_link_that_a_parent_became() {
    needs_root!();
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.settle();
    let outside = bed.cluster.dir().mkdir("outside");
    fs::create_dir(outside.join("inner")).unwrap();
    for path in [&outside, &outside.join("inner")] {
        chown(path, Some(0), Some(0)).unwrap();
    }
    let before = snapshot(&outside);
    let target = bed.place("target").display().to_string();
    let parent = bed.place("parent").display().to_string();
    let swap = format!("mv -T {parent} {parent}.x && ln -s {} {parent}", outside.display());
    for wal in ["new", "deep/new", "inner"].map(|name| format!("{parent}/{name}")) {
        fs::create_dir(&parent).unwrap();
        user::give(Path::new(&parent));
        let restore = ["restore", "--pgdata", &target, "--wal-dir", &wal, "--pre-command", &swap];
        let output = as_root(&bed, &restore).expect_status(1);
        let after = snapshot(&outside);
        assert!(after == before, "{wal}: {output:#?}\n{after:#?}\n{before:#?}");
        assert!(output.stderr.contains(&wal) && !output.stderr.contains("/proc/self/fd"), "{output:#?}");
        remove(&[&target, &parent]);
    }
    fs::create_dir(&parent).unwrap();
    user::give(Path::new(&parent));
    let wal = format!("{parent}/deep/new");
    as_root(&bed, &["restore", "--pgdata", &target, "--wal-dir", &wal]).expect_success();
    let restored = Cluster::start_restored(bed.cluster.dir(), 17, &target);
    restored.wait_promoted();
    assert_eq!(restored.psql("select count(*) from t"), "1000");
}
