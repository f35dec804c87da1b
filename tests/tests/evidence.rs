//! E1 on a real cluster in an encrypted repository: what commands record, what a person records, what shows when records are changed, and
//! an audit pack that another implementation verifies.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, user, wait};

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

fn bed() -> Archived {
    Archived::start_encrypted(Cluster::builder().segment_size_mb(1), Store::local(), |mut agent| {
        agent.tables = "\n[cluster.main.retention]\ncount = 1\ngrace = \"0s\"\n".to_owned();
        let line = format!("key_file = \"{}\"", agent.place().join("main.key").display());
        agent.repository_line("main", &line)
    })
}

/// Kind, outcome and backups of each record.
fn records(bed: &Archived) -> Vec<(String, String, Vec<String>)> {
    let listed = json(&bed.agent.run(&["evidence", "list", "--json"]).expect_success());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ids = |record: &Value| record["backups"].as_array().into_iter().flatten().map(text).collect();
    let records = listed["repositories"][0]["records"].as_array().expect("records").iter();
    records.map(|record| (text(&record["kind"]), text(&record["outcome"]), ids(record))).collect()
}

fn head(bed: &Archived) -> String {
    bed.agent.run(&["evidence", "head"]).expect_success().stdout.trim().to_owned()
}

/// What another implementation says of a pack.
fn verify_pack(pack: &Path, heads: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("evidence/verify_pack.py");
    process::run(Command::new("python3").arg(script).arg(pack).args(heads), wait::SOON)
}

fn export(bed: &Archived, name: &str, more: &[&str]) -> (PathBuf, Output) {
    let pack = bed.agent.place().join(name);
    let all = [&["evidence", "export", "--output", pack.to_str().unwrap()], more].concat();
    let output = bed.agent.run(&all);
    (pack, output)
}

/// E1: what the commands did is on record, in one chain that verifies; what a person records joins it.
#[test]
fn what_was_done_is_on_record_and_a_pack_of_it_verifies_without_walpoint() {
    let bed = bed();
    let nothing = bed.agent.run(&["evidence", "head"]).expect_status(1);
    assert!(nothing.stderr.contains("has no evidence of cluster main"), "{nothing:#?}");
    let first = bed.backup();
    let hold = ["hold", "add", "--label", "x", "--reason", "<b>audit</b>", "--until", "never"];
    bed.agent.run(&hold).expect_success();
    bed.agent.run(&["hold", "remove", "1"]).expect_success();
    let second = bed.backup();
    bed.agent.run(&["verify"]).expect_success();
    let another = bed.agent.place().join("another.key");
    bed.agent.run(&["key", "add", "--key-file", another.to_str().unwrap()]).expect_success();
    bed.agent.run(&["expire", "--dry-run"]).expect_success();
    let noted = head(&bed);
    bed.agent.run(&["expire"]).expect_success();
    let report = bed.agent.place().join("report.txt");
    std::fs::write(&report, "abc").unwrap();
    let drill = ["evidence", "record", "--kind", "drill", "--outcome", "success", "--backup", &second];
    let more =
        ["--rto", "25m", "--rto-target", "1h", "--note", "<script>", "--attach", report.to_str().unwrap()];
    bed.agent.run(&[&drill[..], &more].concat()).expect_success();
    let wrong = ["evidence", "record", "--kind", "other", "--outcome", "success", "--cluster", "mian"];
    bed.agent.run(&wrong).expect_status(2);

    let found = records(&bed);
    let expected = [
        ("backup", vec![&first]),
        ("hold", vec![]),
        ("hold", vec![]),
        ("backup", vec![&second]),
        // What retention no longer wants is not read for its own sake.
        ("verification", vec![&second]),
        ("key-change", vec![]),
        ("expiry", vec![&first]),
        ("drill", vec![&second]),
    ];
    let expected = expected.map(|(kind, ids)| {
        (kind.to_owned(), "success".to_owned(), ids.into_iter().cloned().collect::<Vec<String>>())
    });
    assert_eq!(found, expected);
    let summary = json(&bed.agent.run(&["evidence", "summary", "--json"]).expect_success());
    let summary = &summary["repositories"][0];
    assert_eq!(summary["proven_backups"][0]["backup"], *second, "{summary:#}");
    assert_eq!(
        (&summary["unproven_backups"], &summary["rto"]["met_count"]),
        (&Value::Array(vec![]), &1.into())
    );

    let verified = bed.agent.run(&["evidence", "verify", "--head", &noted]).expect_success();
    assert!(verified.stdout.contains("8 records, no problems found"), "{verified:#?}");
    let (pack, exported) = export(&bed, "pack", &["--head", &noted]);
    exported.expect_success();
    let verified = verify_pack(&pack, &[&noted]).expect_success();
    assert_eq!(verified.stdout.trim(), head(&bed), "another implementation");
    let html = std::fs::read_to_string(pack.join("report.html")).unwrap();
    assert!(html.contains("&lt;script&gt;") && !html.contains("<script") && !html.contains("<b>"), "{html}");
    // The program that the pack's own instructions hold.
    let how = std::fs::read_to_string(pack.join("VERIFY.txt")).unwrap();
    let program = how.lines().skip_while(|line| !line.contains("import hashlib")).map_while(|line| {
        (line.is_empty() || line.starts_with("       "))
            .then(|| line.get(7..).unwrap_or_default().to_owned() + "\n")
    });
    let program: String = program.collect();
    let ran = process::run(Command::new("python3").args(["-c", &program]).current_dir(&pack), wait::SOON);
    assert_eq!(ran.expect_success().stdout.trim(), head(&bed), "{program}");
    let again = export(&bed, "pack", &[]).1.expect_status(1);
    assert!(again.stderr.contains("is not empty"), "{again:#?}");

    // expire and verify leave the chain alone and know what it is.
    let expired = json(&bed.agent.run(&["expire", "--json"]).expect_success());
    assert_eq!(expired["repositories"][0]["unknown_objects"], Value::Array(vec![]), "{expired:#}");
    bed.agent.run(&["evidence", "verify"]).expect_success();
    tampered(&bed, &pack);
}

/// Whatever is done to the records and to the pack shows.
fn tampered(bed: &Archived, pack: &Path) {
    let (door, noted) = (bed.back_door(), head(bed));
    let number: u64 = noted.split(':').nth(1).unwrap().parse().unwrap();
    let key = |n: u64| format!("clusters/main/evidence/{n:012}");
    let verify = |arguments: &[&str]| bed.agent.run(&[&["evidence", "verify"], arguments].concat());
    door.flip_bit(&key(3), 150);
    let output = verify(&[]).expect_status(3);
    assert!(output.stdout.contains("problem: record 3 is damaged"), "{output:#?}");
    door.flip_bit(&key(3), 150);
    verify(&[]).expect_success();
    let third = door.get(&key(3)).unwrap();
    door.delete(&key(3));
    let output = verify(&[]).expect_status(3);
    assert!(output.stdout.contains("problem: record 3: not there"), "{output:#?}");
    let (partial, output) = export(bed, "partial", &[]);
    output.expect_status(3);
    let output = verify_pack(&partial, &[]).expect_status(1);
    assert!(output.stdout.contains("record 3 is missing or out of place"), "{output:#?}");
    door.put(&key(3), third);
    // The tail, with the copy of its end.
    door.delete(&key(number));
    door.delete("clusters/main/evidence/head");
    verify(&[]).expect_success();
    let output = verify(&["--head", &noted]).expect_status(3);
    assert!(output.stdout.contains(&format!("problem: record {number}: not there")), "{output:#?}");

    let records = pack.join("records.jsonl");
    let text = std::fs::read_to_string(&records).unwrap();
    std::fs::write(&records, text.replace("\"drill\"", "\"other\"")).unwrap();
    let output = verify_pack(pack, &[]).expect_status(1);
    assert!(output.stdout.contains("records.jsonl is not the file that was exported"), "{output:#?}");
}

/// E1: a record that cannot be written is a warning, and the command has done what it did.
#[test]
fn without_a_record_a_backup_is_a_backup() {
    let bed = bed();
    bed.backup();
    // Nothing can be created below it.
    let directory = bed.store.root().unwrap().join("clusters/main/evidence");
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::write(&directory, "in the way").unwrap();
    let before = bed.backups().len();
    let output = bed.agent.run(&["backup"]).expect_success();
    assert!(
        output.stderr.contains("repository main: could not record this backup as evidence: "),
        "{output:#?}"
    );
    assert_eq!(bed.backups().len(), before + 1);
    std::fs::remove_file(&directory).unwrap();
    bed.backup();
    assert_eq!(records(&bed).len(), 1);
}

/// E1: restores, drills and extractions are on record with what they measured, and nothing where records are turned off.
#[test]
fn restores_drills_and_extractions_are_on_record_unless_that_is_turned_off() {
    let bed = bed();
    let backup = bed.backup();
    bed.settle();
    bed.restore("back", &[]);
    // What is refused before anything is written is no restore.
    bed.try_restore("back", &[]).expect_status(1);
    let bindir = testbed::pg_program(bed.cluster.major(), "postgres").parent().unwrap().display().to_string();
    let scratch = bed.place("scratch").display().to_string();
    let drill =
        ["drill", "--pg-bindir", &bindir, "--directory", &scratch, "--skip", "amcheck", "--skip", "tables"];
    bed.agent.restore(&[&drill[..], &["--rto", "1ms"]].concat()).expect_status(3);
    bed.agent.restore(&[&drill[..], &["--check", "select false"]].concat()).expect_status(3);

    let rows = bed.place("rows.csv").display().to_string();
    let extract = ["extract", "--pg-bindir", &bindir, "--directory", &scratch, "--database", "postgres"];
    bed.agent.restore(&[&extract[..], &["--query", "select 1", "--output", &rows]].concat()).expect_success();
    bed.agent.restore(&[&extract[..], &["--list"]].concat()).expect_success();

    let ids = vec![backup.clone()];
    let expected = [
        ("backup", "success"),
        ("restore", "success"),
        ("drill", "partial"),
        ("drill", "failed"),
        ("extract", "success"),
    ];
    let expected = expected.map(|(kind, outcome)| (kind.to_owned(), outcome.to_owned(), ids.clone()));
    assert_eq!(records(&bed), expected);
    let listed = json(&bed.agent.run(&["evidence", "list", "--json"]).expect_success());
    let records_of = &listed["repositories"][0]["records"];
    assert_eq!(records_of[1]["note"].as_str().unwrap().split(',').next(), bed.place("back").to_str());
    let missed = &records_of[2];
    assert_eq!(
        (&missed["rto"]["target_seconds"], &missed["rto"]["met"]),
        (&0.001.into(), &false.into()),
        "{missed:#}"
    );
    assert!(missed["rpo"]["measured_seconds"].is_number() && missed["target"].is_string(), "{missed:#}");
    let failed = &records_of[3];
    assert!(
        failed["issues"][0].as_str().unwrap().starts_with("select false: ") && failed["rto"].is_null(),
        "{failed:#}"
    );

    let extracted = &records_of[4];
    assert_eq!(extracted["note"].as_str(), Some(&*format!("database postgres, to {rows}")), "{extracted:#}");

    let without = bed.agent.place().join("without.toml");
    let text = std::fs::read_to_string(bed.agent.write()).unwrap();
    std::fs::write(&without, text.replace("[cluster.main]\n", "[cluster.main]\nevidence = false\n")).unwrap();
    user::give(&without);
    let without = ["--config", without.to_str().unwrap()];
    bed.agent.run(&[&["verify"], &without[..]].concat()).expect_success();
    bed.agent.restore(&[&drill[..], &without[..]].concat()).expect_success();
    assert_eq!(records(&bed).len(), 5);
}
