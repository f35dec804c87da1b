//! R9: what PostgreSQL's user may plant in its own directories (links, markers, records, other directories in the place of
//! new ones), and what root makes of it: nothing that this user could not have done. These tests are root's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{faults, needs_root, user, wait};

use crate::tree::snapshot;

/// A stopped cluster with a tablespace, and a backup of it.
fn bed() -> (Archived, PathBuf) {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let space = bed.cluster.create_tablespace("fast");
    bed.cluster.psql("create table t tablespace fast as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    (bed, space)
}

fn as_root(bed: &Archived, arguments: &[&str]) -> Output {
    let mut command = bed.agent.command("restore-agent", arguments);
    process::run(command.uid(0).gid(0), Duration::from_secs(60))
}

/// A directory of root's outside the cluster's, which PostgreSQL's user cannot write to, with something in it.
struct Roots {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Roots {
    /// On the cluster's filesystem, where a rename reaches it.
    fn beside(bed: &Archived) -> Self {
        let dir = tempfile::tempdir_in(bed.cluster.dir().path().parent().unwrap()).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["full", "empty"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("full/important"), "untouched").unwrap();
        let before = snapshot(dir.path());
        Self { dir, before }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    #[track_caller]
    fn assert_untouched(&self, what: &str, output: &Output) {
        let after = snapshot(self.dir.path());
        assert!(after == self.before, "{what}: {output:#?}\n{after:#?}\n{:#?}", self.before);
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// R9: a marker that PostgreSQL's user wrote empties neither a directory that others may write to, nor one of root's, nor
/// PGDATA itself where that is such a directory.
#[test]
fn a_planted_marker_deletes_nothing_of_others() {
    needs_root!();
    let (bed, _) = bed();
    let shared = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(shared.path().join("important"), "untouched").unwrap();
    let target = bed.cluster.dir().mkdir("target");
    let plant = |pgdata: &Path, directories: &str| {
        // What an interrupted restore of this backup would have left.
        let marker = format!(
            "{{\"repository\":\"{}\",\"cluster\":\"main\",\"backup\":\"x\",\"target\":\"latest\",\"directories\":[{directories}]}}",
            repository_id(&bed)
        );
        fs::write(pgdata.join("walpoint-restore.json"), marker).unwrap();
        user::give(&pgdata.join("walpoint-restore.json"));
    };
    let spaces = text(&bed.place("spaces"));
    let restore =
        |pgdata: &Path| as_root(&bed, &["restore", "--pgdata", &text(pgdata), "--tablespace-dir", &spaces]);
    plant(&target, &format!("\"{}\"", shared.path().display()));
    let other = shared.path().join("walpoint-restore.json");
    fs::write(&other, text(&target)).unwrap();
    user::give(&other);
    let output = restore(&target);
    assert!(shared.path().join("important").exists(), "{output:#?}");
    // The marker of PGDATA itself.
    fs::remove_file(&other).unwrap();
    plant(shared.path(), "");
    let output = restore(shared.path());
    assert!(shared.path().join("important").exists(), "{output:#?}");
    assert!(output.status == 1 && output.stderr.contains("not empty"), "{output:#?}");
    // No file at all: nothing waits for it.
    fs::remove_file(&other).unwrap();
    let mut fifo = Command::new("mkfifo");
    process::run(user::become_user(fifo.arg(&other)), wait::SOON).expect_success();
    restore(shared.path()).expect_status(1);
    assert!(shared.path().join("important").exists());
}

/// The id of the repository, as a restore would put it into its marker.
fn repository_id(bed: &Archived) -> String {
    let target = bed.place("killed");
    let spaces = bed.place("killed_spaces");
    let arguments =
        ["restore", "--pgdata", &text(&target), "--tablespace-dir", &text(&spaces), "--post-command", "true"];
    let command = bed.agent.command("restore-agent", arguments);
    process::run(&mut faults::inject(&command, &["pwrite64:signal=SIGKILL:when=1"], &[]), wait::SOON);
    let marker: serde_json::Value =
        serde_json::from_slice(&fs::read(target.join("walpoint-restore.json")).unwrap()).unwrap();
    fs::remove_dir_all(target).unwrap();
    fs::remove_dir_all(spaces).unwrap();
    marker["repository"].as_str().unwrap().to_owned()
}

/// R9: the links of a data directory are its owner's. Root neither moves, fills nor gives away what is not that user's, nor
/// makes a directory where that user could not make one.
#[test]
fn a_planted_link_gives_nothing_away() {
    needs_root!();
    let (bed, space) = bed();
    let roots = Roots::beside(&bed);
    let pgdata = bed.cluster.pgdata().to_owned();
    let (oid, _) = bed_tablespace(&pgdata);
    let link = pgdata.join("pg_tblspc").join(oid);
    let wal = pgdata.join("pg_wal");
    let shown = text(&pgdata);
    let replant = |link: &Path, target: &Path| {
        fs::remove_file(link).unwrap();
        symlink(target, link).unwrap();
        user::give(link);
    };
    for name in ["full", "empty", "missing.d"] {
        replant(&link, &roots.path(name));
        for way in ["--replace", "--delta"] {
            let output = as_root(&bed, &["restore", way, "--server-is-down", "--pgdata", &shown]);
            roots.assert_untouched(&format!("{name} {way}"), &output);
            assert!(output.stderr.contains("nothing was changed"), "{output:#?}");
            output.expect_status(1);
            assert!(pgdata.join("global/pg_control").exists());
        }
    }
    replant(&link, &space);
    fs::rename(&wal, bed.place("wal")).unwrap();
    symlink(bed.place("wal"), &wal).unwrap();
    for name in ["full", "empty", "missing.d"] {
        replant(&wal, &roots.path(name));
        for way in ["--replace", "--delta"] {
            let output = as_root(
                &bed,
                &["restore", way, "--server-is-down", "--discard-unarchived-wal", "--pgdata", &shown]
                    .into_iter()
                    .filter(|option| way == "--delta" || *option != "--discard-unarchived-wal")
                    .collect::<Vec<_>>(),
            );
            roots.assert_untouched(&format!("pg_wal {name} {way}"), &output);
            output.expect_status(1);
        }
    }
    // Its own is repaired and replaced, and what the command line names is made.
    replant(&wal, &bed.place("wal"));
    as_root(&bed, &["restore", "--delta", "--server-is-down", "--pgdata", &shown]).expect_success();
    as_root(&bed, &["restore", "--replace", "--server-is-down", "--pgdata", &shown]).expect_success();
    let named = text(&roots.path("named"));
    let other = text(&bed.place("other"));
    as_root(&bed, &["restore", "--pgdata", &other, "--tablespace-dir", &named]).expect_success();
    assert_eq!(fs::metadata(roots.path("named")).unwrap().uid(), user::ids().uid);
}

/// The oid of the tablespace, from its link.
fn bed_tablespace(pgdata: &Path) -> (String, PathBuf) {
    let entry = fs::read_dir(pgdata.join("pg_tblspc")).unwrap().next().unwrap().unwrap();
    (entry.file_name().into_string().unwrap(), fs::read_link(entry.path()).unwrap())
}

/// R9: the record of a directory that was moved aside is its owner's to write. `rollback`, and `restore --replace` where
/// nothing lies, move nothing that its owner could not.
#[test]
fn a_planted_record_moves_nothing_of_others() {
    needs_root!();
    let (bed, _) = bed();
    let roots = Roots::beside(&bed);
    let pgdata = bed.cluster.pgdata().to_owned();
    let shown = text(&pgdata);
    bed.agent.restore(&["restore", "--replace", "--pgdata", &shown]).expect_success();
    let name = format!("{}.walpoint-old-", pgdata.file_name().unwrap().to_str().unwrap());
    let entries = fs::read_dir(bed.cluster.dir().path()).unwrap().flatten();
    let aside =
        entries.map(|e| e.path()).find(|p| p.file_name().unwrap().to_str().unwrap().starts_with(&name));
    let aside = aside.unwrap();
    let record = aside.join("walpoint-aside.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let stolen = bed.place("stolen");
    let moves = [
        serde_json::json!({"from": stolen, "to": roots.path("full")}),
        serde_json::json!({"from": roots.path("full"), "to": stolen}),
        serde_json::json!({"from": roots.path("missing"), "to": stolen, "link": "pg_tblspc/1"}),
    ];
    for planted in moves {
        let mut edited = good.clone();
        edited["moves"] = serde_json::json!([planted]);
        // As where the restore was interrupted.
        edited["succeeded"] = serde_json::json!(false);
        fs::remove_file(&record).unwrap();
        fs::write(&record, edited.to_string()).unwrap();
        user::give(&record);
        let output = as_root(&bed, &["rollback", "--pgdata", &shown]);
        roots.assert_untouched(&format!("rollback {planted}"), &output);
        assert!(output.status == 1 && output.stderr.contains("nothing was changed"), "{output:#?}");
        // Where nothing lies, a replacement goes on with what the record says is not moved yet.
        fs::rename(&pgdata, bed.place("away")).unwrap();
        let output = as_root(&bed, &["restore", "--replace", "--pgdata", &shown]);
        roots.assert_untouched(&format!("restore --replace {planted}"), &output);
        assert!(!stolen.exists());
        drop(fs::remove_dir_all(&pgdata));
        fs::rename(bed.place("away"), &pgdata).unwrap();
    }
    fs::write(&record, good.to_string()).unwrap();
    as_root(&bed, &["rollback", "--pgdata", &shown]).expect_success();
}

/// R9: the directory of what a repair keeps is replaced as it appears, by one with links under the names of its files.
#[test]
fn what_root_keeps_is_written_nowhere_else() {
    needs_root!();
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.backup();
    bed.settle();
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    let victim = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(victim.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(victim.path().join("file"), "untouched").unwrap();
    let names: Vec<String> = fs::read_dir(pgdata.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24)
        .collect();
    let script = "while :; do for k in \"$PGDATA\".walpoint-kept-*Z; do
        if [ -d \"$k\" ] && [ ! -e \"$PGDATA.swapped\" ]; then mv -T \"$k\" \"$PGDATA.swapped\" && mkdir \"$k\" &&
            for n in $NAMES; do ln -s \"$VICTIM\" \"$k/$n\"; done; fi; done; done 2>/dev/null";
    let mut swap = Command::new("sh");
    swap.args(["-c", script]).env("PGDATA", &pgdata).env("NAMES", names.join(" "));
    swap.env("VICTIM", victim.path().join("file"));
    let swap = Background::start(user::become_user(&mut swap), &bed.agent.place().join("swap.log"));
    // Time for the swap, between the new directory and the first file in it.
    let mut traced = Command::new("strace");
    traced.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=linkat",
        "-e",
        "inject=linkat:delay_enter=500ms",
        "--",
    ]);
    let restore = bed.agent.command(
        "restore-agent",
        ["restore", "--delta", "--server-is-down", "--pgdata", pgdata.to_str().unwrap()],
    );
    traced.arg(restore.get_program()).args(restore.get_args());
    for (name, value) in restore.get_envs() {
        if let Some(value) = value {
            traced.env(name, value);
        }
    }
    let output = process::run(traced.current_dir("/"), Duration::from_secs(120));
    drop(swap);
    let swapped = PathBuf::from(format!("{}.swapped", pgdata.display()));
    assert!(swapped.exists(), "nothing was swapped: {output:#?}");
    assert_eq!(fs::read_to_string(victim.path().join("file")).unwrap(), "untouched", "{output:#?}");
    assert_eq!(fs::metadata(victim.path().join("file")).unwrap().uid(), 0, "{output:#?}");
}

/// R9: what a planted FIFO would make root wait for is not read.
#[test]
fn root_waits_for_no_fifo() {
    needs_root!();
    let (bed, _) = bed();
    let pgdata = bed.cluster.pgdata().to_owned();
    for name in ["postmaster.pid", "global/pg_control"] {
        let path = pgdata.join(name);
        let away = bed.place("away");
        drop(fs::rename(&path, &away));
        process::run(user::become_user(Command::new("mkfifo").arg(&path)), wait::SOON).expect_success();
        let output = as_root(&bed, &["restore", "--delta", "--pgdata", &text(&pgdata)]);
        assert!([0, 1].contains(&output.status), "{name}: {output:#?}");
        assert!(!output.stderr.contains("panicked"), "{output:#?}");
        // A repair removes what the backup does not have.
        drop(fs::remove_file(&path));
        drop(fs::rename(&away, &path));
    }
}
