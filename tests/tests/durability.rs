//! Promises 1, 6 and 8 at the level of system calls: before anything is acknowledged, every file that it rests on is synced,
//! and so is every directory that was given a name. What a power cut takes is what nobody synced.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;
use walpoint_tests::{process, user};

/// The calls that make names, fill files, and make both durable.
const CALLS: &str = "openat,openat2,creat,mkdir,mkdirat,link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync,syncfs,exit_group";

/// One system call that succeeded, in the order in which they ended.
#[derive(Debug)]
struct Call {
    name: String,
    /// The arguments as strace prints them: descriptors with their paths.
    text: String,
    /// The numbers of the lines on which it began and ended.
    began: usize,
    ended: usize,
}

impl Call {
    /// The quoted paths of the arguments, those that are relative to a descriptor joined to where it leads.
    fn paths(&self) -> Vec<PathBuf> {
        let pieces: Vec<&str> = self.text.split('"').collect();
        let path = |pair: &[&str]| {
            let directory = pair[0].strip_suffix(">, ").and_then(|before| before.rsplit_once('<'));
            directory.map_or(PathBuf::new(), |(_, directory)| PathBuf::from(directory)).join(pair[1])
        };
        pieces.chunks_exact(2).map(path).collect()
    }

    /// The path of the descriptor.
    fn descriptor(&self) -> Option<PathBuf> {
        let (_, rest) = self.text.split_once('<')?;
        Some(PathBuf::from(rest.split('>').next()?))
    }
}

/// Runs a command to its successful end and gives its calls.
#[track_caller]
fn trace(command: &Command, log: &Path) -> Vec<Call> {
    drop(std::fs::remove_file(log));
    let mut traced = Command::new("strace");
    traced.args(["-f", "-y", "-qq", "--seccomp-bpf", "-s", "4096", "-e", "signal=none", "-e"]);
    traced.arg(format!("trace={CALLS}")).arg("-o").arg(log).arg("--");
    traced.arg(command.get_program()).args(command.get_args());
    traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    traced.current_dir(command.get_current_dir().expect("a directory"));
    process::run(user::become_user(&mut traced), Duration::from_secs(120)).expect_success();
    parse(&std::fs::read_to_string(log).expect("strace's log"))
}

/// Puts together what strace printed in two pieces because another thread was faster.
fn parse(log: &str) -> Vec<Call> {
    let mut begun: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (n, line) in log.lines().enumerate() {
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        if let Some(beginning) = text.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, (n, beginning.to_owned()));
            continue;
        }
        let (began, text) = match text.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            Some((_, ending)) => {
                let (began, beginning) = begun.remove(pid).expect("the beginning of a call");
                (began, beginning + ending)
            }
            None => (n, text.to_owned()),
        };
        let Some((name, rest)) = text.split_once('(') else { continue };
        let failed = rest.rsplit_once(" = ").is_some_and(|(_, result)| result.starts_with('-'));
        if !failed {
            calls.push(Call { name: name.to_owned(), text: rest.to_owned(), began, ended: n });
        }
    }
    calls
}

/// What was made below a directory before a moment, and what of it was not durable by then.
#[derive(Debug, Default)]
struct Ledger {
    /// Names made and still there.
    names: BTreeSet<PathBuf>,
    /// Files without a sync of their content.
    unsynced_files: BTreeSet<PathBuf>,
    /// Directories without a sync after the last name was made in them.
    unsynced_directories: BTreeSet<PathBuf>,
}

impl Ledger {
    /// Plays the calls that ended before line `until`.
    fn at(calls: &[Call], below: &Path, until: usize) -> Ledger {
        let mut ledger = Ledger::default();
        // A sync covers what was done before it began.
        let mut syncs: Vec<(PathBuf, usize)> = Vec::new();
        // Of the whole filesystem that all of this lies in.
        let mut whole: Vec<usize> = Vec::new();
        let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
        let here = device(below);
        let mut made: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut written: BTreeMap<PathBuf, usize> = BTreeMap::new();
        // Descriptors are shown where they lead, names as they were given.
        let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
        let lead = |links: &[(PathBuf, PathBuf)], path: PathBuf| {
            let beyond = links.iter().find_map(|(link, to)| Some(to.join(path.strip_prefix(link).ok()?)));
            beyond.unwrap_or(path)
        };
        for call in calls.iter().filter(|call| call.ended < until) {
            let paths: Vec<PathBuf> = call.paths().into_iter().map(|path| lead(&links, path)).collect();
            match call.name.as_str() {
                "fsync" | "fdatasync" => syncs.extend(call.descriptor().map(|path| (path, call.began))),
                "syncfs" => {
                    let of_this =
                        call.descriptor().is_some_and(|path| here.is_some() && device(&path) == here);
                    whole.extend(of_this.then_some(call.began));
                }
                "openat" | "openat2" if call.text.contains("O_CREAT") => {
                    made.insert(paths[0].clone(), call.ended);
                    written.insert(paths[0].clone(), call.ended);
                }
                "mkdir" | "mkdirat" => drop(made.insert(paths[0].clone(), call.ended)),
                "symlink" | "symlinkat" => {
                    made.insert(paths[1].clone(), call.ended);
                    links.push((paths[1].clone(), paths[0].clone()));
                }
                "link" | "linkat" | "rename" | "renameat" | "renameat2" => {
                    let (from, to) = (&paths[0], &paths[1]);
                    made.insert(to.clone(), call.ended);
                    // The content has to be synced under one name or the other.
                    if let Some(when) = written.get(from).copied() {
                        let of_all = whole.iter().any(|began| *began > when);
                        if of_all || syncs.iter().any(|(path, began)| path == from && *began > when) {
                            syncs.push((to.clone(), usize::MAX));
                        }
                        written.insert(to.clone(), when);
                    }
                    if call.name.starts_with("rename") {
                        made.remove(from);
                        written.remove(from);
                    }
                }
                "unlink" | "unlinkat" => {
                    made.remove(&paths[0]);
                    written.remove(&paths[0]);
                }
                _ => {}
            }
        }
        let synced = |path: &Path, after: usize| {
            whole.iter().any(|began| *began > after)
                || syncs.iter().any(|(p, began)| p == path && *began > after)
        };
        for (path, when) in made.iter().filter(|(path, _)| path.starts_with(below)) {
            ledger.names.insert(path.clone());
            let parent = path.parent().expect("a directory");
            if !synced(parent, *when) {
                ledger.unsynced_directories.insert(parent.to_owned());
            }
        }
        for (path, when) in written.iter().filter(|(path, _)| path.starts_with(below)) {
            if !synced(path, *when) {
                ledger.unsynced_files.insert(path.clone());
            }
        }
        ledger
    }

    #[track_caller]
    fn expect_durable(&self, at_least: usize, what: &str) {
        assert!(self.names.len() >= at_least, "{what}: only {:?} were made", self.names);
        let (files, directories) = (&self.unsynced_files, &self.unsynced_directories);
        assert!(files.is_empty(), "{what}: files that were not synced: {files:#?}");
        assert!(
            directories.is_empty(),
            "{what}: directories that were not synced after a name was made: {directories:#?}"
        );
    }
}

/// The line on which a call began.
#[track_caller]
fn moment(calls: &[Call], what: &str, is_it: impl Fn(&Call) -> bool) -> usize {
    calls.iter().find(|call| is_it(call)).unwrap_or_else(|| panic!("no {what}")).began
}

/// Promises 1, 6 and 8, B6: one push, one backup, one restore, each with what it announces.
#[test]
fn nothing_is_announced_that_a_power_cut_would_take() {
    let bed =
        Archived::start(Cluster::builder().segment_size_mb(1).conf("wal_keep_size", "64MB"), Store::local());
    let primary = &bed.cluster;
    primary.create_tablespace("fast");
    primary.psql("create table t tablespace fast as select i from generate_series(1, 1000) i");
    bed.settle();
    let repository = bed.store.root().expect("a local store");
    let log = bed.place("calls");

    // A push by itself, into directories that are not there yet: its exit is the acknowledgement.
    let segment = primary.switch_wal();
    primary.wait_archived(&segment);
    let wal = bed.back_door().list("clusters/main").into_iter().filter(|key| key.contains("/wal/"));
    wal.for_each(|key| bed.back_door().delete(&key));
    for directory in std::fs::read_dir(repository.join("clusters/main")).expect("the cluster").flatten() {
        drop(std::fs::remove_dir_all(directory.path().join("wal")));
    }
    let path = primary.wal_dir().join(&segment).display().to_string();
    let calls = trace(&bed.agent.command("archive-agent", ["push", &path]), &log);
    let end = moment(&calls, "exit", |call| call.name == "exit_group");
    let ledger = Ledger::at(&calls, repository, end);
    ledger.expect_durable(4, "push");
    assert!(ledger.names.iter().any(|name| name.ends_with(&segment)), "{ledger:#?}");
    // After a crash of the machine nothing else may show that this directory stored it.
    let noted = |call: &Call| {
        call.name == "fdatasync" && call.descriptor().is_some_and(|path| path.ends_with("walpoint-archived"))
    };
    assert!(moment(&calls, "sync of what pg_wal remembers", noted) < end);

    // A backup: before its manifest has a name, everything else is durable; before it exits, the manifest too.
    let calls = trace(&bed.agent.command("archive-agent", ["backup"]), &log);
    let manifest = |call: &Call| {
        call.name.starts_with("link") && call.paths().last().is_some_and(|to| to.ends_with("manifest"))
    };
    let announced = moment(&calls, "manifest", manifest);
    let mut ledger = Ledger::at(&calls, repository, announced);
    // The manifest's own temporary name goes at once; what counts is its content.
    let temporary = |path: &PathBuf| path.to_string_lossy().contains("/.walpoint-tmp-");
    let beside: BTreeSet<PathBuf> =
        ledger.names.iter().filter(|n| temporary(n)).filter_map(|n| n.parent().map(Path::to_owned)).collect();
    assert_eq!(beside.len(), 1, "{ledger:#?}");
    ledger.unsynced_directories.retain(|directory| !beside.contains(directory));
    ledger.expect_durable(6, "backup, before its manifest");
    assert!(ledger.names.iter().any(|name| name.extension().is_some_and(|e| e == "pack")), "{ledger:#?}");
    let end =
        calls.iter().filter(|call| call.name == "exit_group").map(|call| call.began).max().expect("an exit");
    Ledger::at(&calls, repository, end).expect_durable(6, "backup");

    // A restore: before pg_control has its name, everything else is durable.
    bed.settle();
    let (target, spaces) = (bed.place("target"), bed.place("spaces"));
    let [target_text, spaces_text] = [&target, &spaces].map(|path| path.display().to_string());
    let arguments = ["restore", "--pgdata", &target_text, "--tablespace-dir", &spaces_text];
    let calls = trace(&bed.agent.command("restore-agent", arguments), &log);
    let control = |call: &Call| {
        call.name.starts_with("rename")
            && call.paths().last().is_some_and(|to| to.ends_with("global/pg_control"))
    };
    let whole = moment(&calls, "pg_control", control);
    Ledger::at(&calls, &target, whole).expect_durable(500, "restore, before pg_control");
    Ledger::at(&calls, &spaces, whole).expect_durable(3, "restore, tablespaces");
    let control_name = calls.iter().find(|call| control(call)).expect("it was found before");
    let synced_after = calls.iter().any(|call| {
        call.name == "fsync"
            && call.began > control_name.ended
            && call.descriptor() == Some(target.join("global"))
    });
    assert!(synced_after, "the name of pg_control was not synced");
}

/// The reader of strace's log finds what is missing.
#[test]
fn a_forgotten_sync_shows() {
    let log = "7 openat(AT_FDCWD</>, \"/r/a/.tmp\", O_WRONLY|O_CREAT|O_EXCL, 0600) = 3</r/a/.tmp>\n\
               7 fsync(3</r/a/.tmp> <unfinished ...>\n\
               8 mkdir(\"/r/b\", 0750) = 0\n\
               7 <... fsync resumed>) = 0\n\
               7 linkat(AT_FDCWD</>, \"/r/a/.tmp\", AT_FDCWD</>, \"/r/a/x\", 0) = 0\n\
               7 unlink(\"/r/a/.tmp\") = 0\n\
               7 fsync(4</r/a>) = 0\n\
               7 unlink(\"/r/none\") = -1 ENOENT (No such file or directory)\n\
               7 exit_group(0) = ?\n";
    let calls = parse(log);
    let ledger = Ledger::at(&calls, Path::new("/r"), usize::MAX);
    assert_eq!(ledger.names, BTreeSet::from(["/r/a/x".into(), "/r/b".into()]));
    assert_eq!(ledger.unsynced_directories, BTreeSet::from(["/r".into()]), "{ledger:#?}");
    assert!(ledger.unsynced_files.is_empty(), "{ledger:#?}");
    let without =
        log.replace("7 fsync(4</r/a>) = 0\n", "").replace("7 fsync(3</r/a/.tmp> <unfinished ...>\n", "");
    let without = without.replace("7 <... fsync resumed>) = 0\n", "");
    let ledger = Ledger::at(&parse(&without), Path::new("/r"), usize::MAX);
    assert_eq!(ledger.unsynced_directories, BTreeSet::from(["/r".into(), "/r/a".into()]));
    assert_eq!(ledger.unsynced_files, BTreeSet::from(["/r/a/x".into()]));
}
