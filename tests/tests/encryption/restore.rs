//! B1, R1 and R8 under encryption: a cluster comes back to the moment asked for, and without the key nothing is written.

use std::os::unix::process::CommandExt;
use std::path::Path;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::process::Output;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, process, user, wait};

use crate::secret;

const MARKER: &str = "a label that nobody without the key can read";

/// A backup under load, then a mistake: the copy equals the source just before it.
fn comes_back(bed: &Archived) {
    let primary = &bed.cluster;
    primary.psql(
        "create table accounts (id int primary key, balance int, note text);
         insert into accounts select i, 0, md5(i::text) from generate_series(1, 20000) i",
    );
    let load = {
        let mut session = primary.session();
        std::thread::spawn(move || {
            for _ in 0..60 {
                drop(session.run("update accounts set balance = balance + 1 where id % 37 = 5"));
            }
        })
    };
    bed.backup_with(&["--label", MARKER]);
    load.join().unwrap();
    let mut ledger = Ledger::create(primary, "rows");
    let mark = ledger.append(primary);
    let before = Contents::of(primary);
    ledger.append(primary);
    primary.psql("drop table accounts");
    bed.settle();

    let restored = bed.restore_and_start("moment", &["--target-xid", &mark.xid.to_string()]);
    restored.wait_paused();
    Contents::of(&restored).assert_equal(&before);
    restored.psql("select pg_wal_replay_resume()");
    restored.wait_promoted();
    oracle::amcheck(&restored);
    drop(restored);
    let restored = bed.restore_and_start("latest", &[]);
    restored.wait_promoted();
    Contents::of(&restored).assert_equal(&Contents::of(primary));

    for key in bed.back_door().list("") {
        let bytes = bed.back_door().get(&key).unwrap();
        assert!(!bytes.windows(20).any(|part| part == &MARKER.as_bytes()[..20]), "{key} shows the label");
    }
}

/// B1, R1 in a directory, opened by a passphrase.
#[test]
fn a_cluster_comes_back_from_an_encrypted_directory() {
    let builder = Cluster::builder().segment_size_mb(1);
    comes_back(&Archived::start_encrypted(builder, Store::local(), secret::passphrase));
}

/// B1, R1 on S3, opened by what stands for a key management service.
#[test]
fn a_cluster_comes_back_from_encrypted_s3() {
    let builder = Cluster::builder().segment_size_mb(1);
    comes_back(&Archived::start_encrypted(builder, Store::s3(), secret::service));
}

/// R8, K6, F1: a wrong key, none, and one that cannot be read: plan, restore and backup fail before anything is written, a
/// fetch says 255, `status` shows what names tell.
#[test]
fn a_wrong_or_missing_key_fails_before_anything_is_written() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::passphrase);
    bed.backup();
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    let wrong = secret::file(&bed.agent, "wrong", "not the passphrase at all");
    let key = secret::file(&bed.agent, "key", &"0".repeat(64));
    let line = |name: &str, path: &Path| format!("{name} = \"{}\"", path.display());
    let before = bed.back_door().list("");
    for (lines, told) in [
        (vec![], "it is encrypted and no key is configured"),
        (vec![line("passphrase_file", &wrong)], "does not open its key slot"),
        (vec![line("passphrase_file", Path::new("/nowhere"))], "/nowhere"),
        (vec![line("key_file", &key)], "it has no key slot"),
        (vec!["unwrap_command = \"cat\"".to_owned()], "it has no key slot"),
        (vec!["passphrase_command = \"exit 9\"".to_owned()], "exit status: 9"),
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let agent = secret::other_agent(&bed, &lines);
        let target = bed.place("target");
        for arguments in [
            &["plan"][..],
            &["restore", "--pgdata", target.to_str().unwrap()],
            &["restore", "--dry-run", "--pgdata", target.to_str().unwrap()],
        ] {
            let output = agent.restore(arguments).expect_status(1);
            assert!(output.stderr.contains(told), "{arguments:?}: {output:#?}");
        }
        assert!(!target.exists(), "something was written");
        let output = agent.run(&["backup"]).expect_status(1);
        assert!(output.stderr.contains(told), "{output:#?}");
        let landed = bed.place("landed");
        let output = agent.restore(&["fetch", &segment, landed.to_str().unwrap()]).expect_status(255);
        assert!(output.stderr.contains(told), "{output:#?}");
        assert!(!landed.exists(), "something was written");
        let shown = agent.run(&["status"]).expect_success().stdout;
        assert!(shown.contains(told) && shown.contains(&segment), "{shown}");
        assert!(shown.contains("without the key only names can be read"), "{shown}");
    }
    assert_eq!(bed.back_door().list(""), before);
}

/// A restore without a configuration takes the key file from the environment, and so does its recovery, though PostgreSQL's
/// environment does not name it.
#[test]
fn a_key_file_from_the_environment_is_enough() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::key_file);
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append(primary);
    bed.settle();
    let key = bed.agent.place().join("it's the key");
    std::fs::rename(bed.agent.place().join("main.key"), &key).unwrap();
    let (pgdata, url) = (bed.place("copy"), bed.store.url());
    let run = |name: &str, value: &str| {
        let arguments =
            ["restore", "--repo", &url, "--cluster", "main", "--pgdata", pgdata.to_str().unwrap()];
        let mut command = bed.agent.command("restore-agent", arguments);
        process::run(command.env_remove("WALPOINT_CONFIG").env(name, value), wait::SOON)
    };
    let relative = run("WALPOINT_KEY_FILE", "main.key").expect_status(2);
    assert!(relative.stderr.contains("absolute"), "{relative:#?}");
    run("WALPOINT_KEY_FILE", key.to_str().unwrap()).expect_success();
    let restored = Cluster::start_restored(primary.dir(), primary.major(), &pgdata);
    restored.wait_promoted();
    assert_eq!(ledger.highest(&restored), 1);
    drop(restored);
    std::fs::remove_dir_all(&pgdata).unwrap();
    // The key itself in the environment opens too, and somebody is told that PostgreSQL needs it there.
    let value = std::fs::read_to_string(&key).unwrap();
    let output = run("WALPOINT_KEY", value.trim()).expect_success();
    assert!(output.stdout.contains("HINT: Start PostgreSQL with it too"), "{output:#?}");
    assert!(!output.stdout.contains(value.trim()) && !output.stderr.contains(value.trim()));
}

/// R6, R8: root finds out first whether PostgreSQL's user can read the key.
#[test]
fn root_proves_first_that_postgresqls_user_can_read_the_key() {
    needs_root!();
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::key_file);
    bed.backup();
    bed.settle();
    let pgdata = bed.place("target").display().to_string();
    let as_root = || -> Output {
        let mut command = bed.agent.command("restore-agent", ["restore", "--pgdata", &pgdata]);
        process::run(command.uid(0).gid(0), wait::SOON)
    };
    let key = bed.agent.place().join("main.key");
    std::os::unix::fs::chown(&key, Some(0), Some(0)).unwrap();
    let output = as_root().expect_status(1);
    assert!(output.stderr.contains(&format!("uid {}", user::ids().uid)), "{output:#?}");
    assert!(output.stderr.contains("main.key"), "{output:#?}");
    assert!(!bed.place("target").exists(), "something was written");
    user::give(&key);
    as_root().expect_success();
}
