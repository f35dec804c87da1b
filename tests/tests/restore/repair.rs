//! R4, `--delta`: what is right stays, what is not is repaired, what does not belong goes; and R5 and promise 8 for it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::process::{self, Background};
use walpoint_tests::store::Store;
use walpoint_tests::{faults, user, wait};

use crate::tree::{contents, snapshot};

/// A cluster with a tablespace and some tens of megabytes, a backup of it, and a file that is mostly a hole.
fn bed(major: u32) -> (Archived, Contents) {
    let builder = Cluster::builder().major(major).segment_size_mb(1).conf("max_wal_size", "200MB");
    let bed = Archived::start(builder, Store::local());
    let primary = &bed.cluster;
    primary.create_tablespace("fast");
    primary.psql(
        "create table big as select i, md5(i::text) || md5((-i)::text) as text from generate_series(1, 100000) i;
         create index on big (text) tablespace fast; create table small tablespace fast as select 1 as one;
         create table gone as select 1; checkpoint",
    );
    let sparse = primary.pgdata().join("base/sparse");
    let file = fs::File::create(&sparse).unwrap();
    file.write_all_at(&[9; 8192], 40 << 20).unwrap();
    user::give(&sparse);
    bed.backup();
    primary
        .psql("insert into big select i, 'after the backup' from generate_series(1, 100) i; drop table gone");
    let contents = Contents::of(primary);
    bed.settle();
    (bed, contents)
}

/// The data files of a directory, tablespaces included, that are worth damaging.
fn data_files(pgdata: &Path) -> Vec<PathBuf> {
    let mut command = std::process::Command::new("find");
    command.args(["-L"]).arg(pgdata.join("base")).arg(pgdata.join("pg_tblspc"));
    command.args(["-type", "f", "-size", "+15k", "-name", "[0-9]*"]);
    let mut found: Vec<PathBuf> =
        process::run(&mut command, wait::SOON).expect_success().stdout.lines().map(PathBuf::from).collect();
    found.sort();
    found
}

/// Spoils some pages here and there: other bytes, zeros, a file cut short, one that is too long, one that is gone.
pub(crate) fn spoil(pgdata: &Path, random: &mut StdRng) {
    let files = data_files(pgdata);
    for _ in 0..30 {
        let path = &files[random.random_range(0..files.len())];
        let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(path) else { continue };
        let length = file.metadata().unwrap().len();
        let at = random.random_range(0..length.max(1));
        match random.random_range(0..10) {
            0 => file.set_len(at).unwrap(),
            1 => file.write_all_at(&[5; 3000], length).unwrap(),
            2 => fs::remove_file(path).unwrap(),
            3 | 4 => file.write_all_at(&[0; 8192], at / 8192 * 8192).unwrap(),
            _ => file.write_all_at(&[random.random(); 1], at).unwrap(),
        }
    }
}

fn report(output: &process::Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// R4: over the data directory of a server that was stopped, with all kinds of damage: the result is what a restore into an
/// empty directory gives, nothing outside is touched, and most was not written again.
#[test]
fn a_damaged_data_directory_is_repaired() {
    repaired(17);
}

/// The same on the oldest and the newest version.
#[test]
fn a_damaged_data_directory_is_repaired_on_the_oldest_and_the_newest_version() {
    repaired(13);
    repaired(19);
}

/// Puts in what does not belong: a file, a directory, links. What the links lead to may not be touched.
fn add_strangers(dir: &TestDir, pgdata: &Path, space: &Path) {
    dir.mkdir("outside");
    let outside = dir.write("outside/important", "data");
    dir.write("important", "data");
    symlink(dir.join("outside"), pgdata.join("base/stray_link")).unwrap();
    fs::create_dir(pgdata.join("stray_directory")).unwrap();
    symlink(&outside, pgdata.join("stray_directory/link")).unwrap();
    fs::write(pgdata.join("base/1/stray"), "x").unwrap();
    fs::write(pgdata.join("standby.signal"), "").unwrap();
    fs::write(pgdata.join("pg_wal/000000010000000000000077"), vec![1; 1 << 20]).unwrap();
    fs::write(pgdata.join("postmaster.pid"), "4194305\n").unwrap();
    // Another cluster's part of the tablespace.
    fs::create_dir(space.join("PG_12_201909212")).unwrap();
    fs::write(space.join("PG_12_201909212/other"), "data").unwrap();
    fs::write(
        fs::read_dir(space)
            .unwrap()
            .flatten()
            .find(|e| e.file_name() != "PG_12_201909212")
            .unwrap()
            .path()
            .join("stray"),
        "x",
    )
    .unwrap();
}

/// Puts a file where a directory belongs, and the other way round, and bytes where nothing should be.
fn swap_kinds(pgdata: &Path) {
    fs::remove_dir_all(pgdata.join("pg_subtrans")).unwrap();
    fs::write(pgdata.join("pg_subtrans"), "").unwrap();
    fs::remove_file(pgdata.join("PG_VERSION")).unwrap();
    fs::write(pgdata.join("PG_VERSION"), "x").unwrap();
    fs::remove_file(pgdata.join("postgresql.auto.conf")).unwrap();
    fs::create_dir(pgdata.join("postgresql.auto.conf")).unwrap();
    // Bytes where nothing should be.
    let sparse = fs::OpenOptions::new().write(true).open(pgdata.join("base/sparse")).unwrap();
    sparse.write_all_at(&[4; 1 << 20], 5 << 20).unwrap();
    drop(sparse);
}

fn repaired(major: u32) {
    let (mut bed, before) = bed(major);
    let (_, space) = bed.cluster.tablespaces()[0].clone();
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    let dir = bed.cluster.dir().clone();
    let mut random = faults::random();
    spoil(&pgdata, &mut random);

    add_strangers(&dir, &pgdata, &space);
    // A file with a second name: somebody's copy.
    let linked = data_files(&pgdata)[0].clone();
    let copy = dir.join("copy");
    fs::hard_link(&linked, &copy).unwrap();
    fs::OpenOptions::new().write(true).open(&copy).unwrap().write_all_at(&[3; 100], 0).unwrap();
    let copied = fs::read(&copy).unwrap();
    swap_kinds(&pgdata);
    user::give_tree(&pgdata);
    user::give_tree(&space);
    let kept = (snapshot(&dir.join("outside")), snapshot(&space.join("PG_12_201909212")));

    // The tests may run where a server could hide.
    let pgdata_text = pgdata.to_str().unwrap();
    let output =
        bed.agent.restore(&["--json", "restore", "--delta", "--server-is-down", "--pgdata", pgdata_text]);
    let report = report(&output.expect_success());
    assert_eq!((snapshot(&dir.join("outside")), snapshot(&space.join("PG_12_201909212"))), kept);
    assert_eq!(fs::read(&copy).unwrap(), copied, "a second name of a file is not written through");
    let (bytes, reused) =
        (report["written_bytes"].as_u64().unwrap(), report["reused_bytes"].as_u64().unwrap());
    // Damage at random may take the largest files.
    assert!(2 * reused > bytes, "what was right is not written again: {report:#}");
    assert!(report["removed_count"].as_u64().unwrap() >= 6, "{report:#}");
    assert!(fs::metadata(pgdata.join("base/sparse")).unwrap().blocks() * 512 < 1 << 19, "holes are holes");

    // The same as a restore into an empty directory, but for the last segment of the server that was stopped.
    let open = report["unarchived_segments"][0].as_str().unwrap();
    let mut repaired = contents(&pgdata);
    assert!(repaired.remove(&Path::new("pg_wal").join(open)).is_some(), "{report:#}");
    let spaces = bed.place("spaces").display().to_string();
    let fresh = bed.restore("fresh", &["--tablespace-dir", &spaces]);
    assert_eq!(repaired, contents(&fresh));

    let restored = Cluster::start_restored(&dir, major, &pgdata);
    restored.wait_promoted();
    Contents::of(&restored).assert_equal(&before);
    oracle::amcheck(&restored);
}

/// R5 and promise 8: killed anywhere, a repair leaves what cannot start, and the same command finishes it.
#[test]
fn an_interrupted_repair_cannot_start_and_the_same_command_finishes_it() {
    let (bed, _) = bed(17);
    let spaces = bed.place("spaces").display().to_string();
    let fresh_spaces = bed.place("fresh_spaces").display().to_string();
    let fresh = bed.restore("fresh", &["--tablespace-dir", &fresh_spaces]);
    let pgdata = bed.restore("target", &["--tablespace-dir", &spaces]);
    let command = || {
        bed.agent
            .command("restore-agent", ["restore", "--quiet", "--delta", "--pgdata", pgdata.to_str().unwrap()])
    };
    let mut random = faults::random();
    spoil(&pgdata, &mut random);
    user::give_tree(&pgdata);
    let whole = process::run(&mut command(), wait::SOON).expect_success().took;
    let (marker, control) = (pgdata.join("walpoint-restore.json"), pgdata.join("global/pg_control"));
    let log = bed.agent.place().join("restore.log");
    let mut kills: Vec<(&str, u32)> =
        [("pwrite64", 3), ("ftruncate", 1), ("unlink", 1), ("fsync", 8), ("fchmod", 9)].to_vec();
    kills.extend((1..=4).map(|when| ("rename", when)));
    kills.extend((0..5).map(|_| ("time", 0)));
    let mut interrupted = 0;
    for (call, when) in kills {
        if marker.exists() && control.exists() {
            // Complete but for its marker: without it a repair is a new one.
            process::run(&mut command(), wait::SOON).expect_success();
        }
        spoil(&pgdata, &mut random);
        user::give_tree(&pgdata);
        if call == "time" {
            let mut repair = Background::start(&mut command(), &log);
            std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.2)));
            repair.kill();
        } else {
            let injection = format!("{call}:signal=SIGKILL:when={when}");
            process::run(&mut faults::inject(&command(), &[&injection], &[]), Duration::from_secs(60));
        }
        // Either nothing was touched yet, or it cannot start, or it is complete.
        let claimed = fs::read_to_string(&marker).is_ok_and(|text| text.contains("\"claiming\": false"));
        if claimed && !control.exists() {
            interrupted += 1;
            let other = bed.try_restore("target", &["--tablespace-dir", &spaces]);
            assert!(
                other.status == 1 && other.stderr.contains("--delta"),
                "it is nobody's to empty: {other:#?}"
            );
        }
        if random.random_bool(0.5) {
            process::run(&mut command(), wait::SOON).expect_success();
            assert!(!marker.exists() && control.exists());
            assert_eq!(contents(&pgdata), contents(&fresh), "{call} {when}");
        }
    }
    assert!(interrupted >= 5, "only {interrupted} repairs were interrupted");
    process::run(&mut command(), wait::SOON).expect_success();
    assert_eq!(contents(&pgdata), contents(&fresh));
}

/// A repair that every danger's option allows.
const EVERYTHING: &[&str] = &["--delta", "--discard-unarchived-wal", "--overwrite-other-cluster"];

/// R4: what is refused, and nothing changes.
#[test]
fn what_may_not_be_repaired_is_refused() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select 1");
    bed.cluster.create_tablespace("fast");
    bed.cluster.psql("create table u tablespace fast as select 1");
    bed.backup();
    bed.settle();
    let dir = bed.cluster.dir().clone();
    let refused = |bed: &Archived, name: &str, options: &[&str], says: &str| {
        // A running server writes by itself.
        let runs = bed.place(name).join("postmaster.pid").exists();
        let before = snapshot(&bed.place(name));
        let output = bed.try_restore(name, options).expect_status(1);
        assert!(output.stderr.contains(says), "{output:#?}");
        assert!(output.stderr.contains("nothing was changed"), "{output:#?}");
        assert!(runs || snapshot(&bed.place(name)) == before, "{options:?}: something was touched");
    };
    refused(&bed, "data", &["--delta"], "running");
    refused(&bed, "data", EVERYTHING, "running");

    // No data directory.
    dir.mkdir("full");
    dir.write("full/important", "data");
    refused(&bed, "full", &["--delta"], "no PG_VERSION");
    refused(&bed, "full", EVERYTHING, "no PG_VERSION");
    refused(&bed, "full", &["--replace"], "no PG_VERSION");

    // A copy has the original's links, and the original runs.
    let copy = dir.join("copied");
    // Files may come and go while it is made.
    process::run(std::process::Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&copy), wait::SOON);
    fs::remove_file(copy.join("postmaster.pid")).unwrap();
    for way in ["--delta", "--replace"] {
        refused(&bed, "copied", &[way], "in use by the server that runs on");
    }
    assert_eq!(bed.cluster.psql("select * from u"), "1");

    // Another cluster's.
    let mut other = Cluster::builder().in_dir(&dir).start();
    other.stop(Shutdown::Fast);
    let name = other.pgdata().file_name().unwrap().to_str().unwrap().to_owned();
    let spaces = ["--tablespace-dir", dir.join("spaces").to_str().unwrap()].map(str::to_owned);
    let spaces = [spaces[0].as_str(), spaces[1].as_str()];
    let ready = other.pgdata().join("pg_wal/archive_status/000000010000000000000099.ready");
    fs::write(&ready, "").unwrap();
    user::give(&ready);
    let [overwrite, discard] = ["--overwrite-other-cluster", "--discard-unarchived-wal"];
    for state in ["another cluster", "missing or damaged"] {
        // Each danger has an option of its own, which its refusal names, and no other one.
        for (given, says, names) in [
            (&[][..], state, overwrite),
            (&[discard][..], state, overwrite),
            (&[overwrite][..], "000000010000000000000099", discard),
        ] {
            let options = [&["--delta"][..], &spaces, given].concat();
            refused(&bed, &name, &options, says);
            let told = bed.try_restore(&name, &options).expect_status(1).stderr;
            let absent = if names == overwrite { discard } else { overwrite };
            assert!(told.contains(names) && !told.contains(absent), "{given:?}: {told}");
        }
        fs::write(other.pgdata().join("global/pg_control"), "damaged").unwrap();
    }
    let overwritten = bed.restore_and_start(&name, &[EVERYTHING, &spaces].concat());
    overwritten.wait_promoted();
    assert_eq!(overwritten.psql("select * from t"), "1");
    drop(overwritten);

    // WAL that is nowhere else.
    bed.cluster.stop(Shutdown::Fast);
    let ready = bed.cluster.pgdata().join("pg_wal/archive_status/000000010000000000000099.ready");
    fs::write(&ready, "").unwrap();
    refused(&bed, "data", &["--delta"], "000000010000000000000099");
    fs::remove_file(&ready).unwrap();
    let restored = bed.restore_and_start("data", &["--delta"]);
    restored.wait_promoted();
    assert_eq!(restored.psql("select * from u"), "1");
}
