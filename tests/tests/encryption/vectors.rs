//! A second reader, written from the specification with other libraries, reads what our programs write.

use std::path::{Path, PathBuf};

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, wait};

use crate::secret;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn reader(arguments: &[&str], input: &str) -> Output {
    let mut python = testbed::python_crypto();
    python.arg(top().join("tests/crypto/reader.py")).args(arguments);
    process::run_with_input(&mut python, input.as_bytes(), wait::SOON)
}

/// The test vectors of the specification; `shared/storage/src/keys/vectors.rs` checks our code against the same ones.
#[test]
fn the_specifications_vectors_hold_for_another_implementation() {
    let format = top().join("shared/repo/FORMAT.md");
    let format = format.to_str().unwrap();
    let told = reader(&["vectors", format], "").expect_success().stdout;
    assert!(told.contains("values agree"), "{told}");
    // It can fail: a digit of any value changed is told.
    let text = std::fs::read_to_string(format).unwrap();
    let dir = walpoint_tests::dir::TestDir::new();
    for name in ["content", "key_check", "frame_key", "passphrase_slot", "key_slot", "command_slot", "object"]
    {
        let at = text.find(&format!("\n{name} = ")).unwrap();
        let end = at + 1 + text[at + 1..].find('\n').unwrap();
        // Past the check of a slot, within what it wraps.
        let digit = end - if name.ends_with("_slot") { 120 } else { 2 };
        let other = if &text[digit..=digit] == "0" { "1" } else { "0" };
        let path = dir.write("changed.md", format!("{}{other}{}", &text[..digit], &text[digit + 1..]));
        let output = reader(&["vectors", path.to_str().unwrap()], "");
        assert_ne!(output.status, 0, "{name} is not checked: {output:#?}");
    }
}

/// Real repositories: slots of each kind, a segment, a pack and a lineage.
#[test]
fn another_implementation_reads_what_the_programs_write() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::passphrase);
    bed.backup();
    bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 9000) i");
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    let key_file = bed.agent.place().join("another.key");
    bed.agent.run(&["key", "add", "--key-file", key_file.to_str().unwrap()]).expect_success();
    let kms = ["key", "add", "--wrap-command", "tr 0-9a-f g-v", "--unwrap-command", "tr g-v 0-9a-f"];
    bed.agent.run(&kms).expect_success();

    let root = bed.store.root().unwrap().to_str().unwrap().to_owned();
    let key = std::fs::read_to_string(&key_file).unwrap();
    let blob = std::fs::read_to_string(format!("{root}/keys/2")).unwrap();
    let blob = blob.split("\"blob\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let unwrapped: String = (0..blob.len())
        .step_by(2)
        .map(|at| char::from(u8::from_str_radix(&blob[at..at + 2], 16).unwrap()))
        .map(|c| char::from_digit(c as u32 - 'g' as u32, 16).unwrap())
        .collect();
    let slots = [("0", "passphrase", secret::PASSPHRASE), ("1", "key", &key), ("2", "command", &unwrapped)];
    let masters: Vec<String> = slots
        .iter()
        .map(|(number, kind, secret)| reader(&["slot", &root, number, kind], secret).expect_success().stdout)
        .collect();
    assert!(masters.iter().all(|master| *master == masters[0] && master.len() == 65), "{masters:?}");

    let objects = bed.back_door().list("clusters");
    let read = |name: &str| {
        let mut python = testbed::python_crypto();
        python.arg(top().join("tests/crypto/reader.py"));
        python.args(["object", &root, "0", "passphrase", name]);
        let out = bed.cluster.dir().join("out");
        python.stdout(std::fs::File::create(&out).unwrap()).stdin(std::process::Stdio::piped());
        let mut child = python.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), secret::PASSPHRASE.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{name}");
        std::fs::read(out).unwrap()
    };
    let named =
        |end: &str| objects.iter().find(|name| name.ends_with(end)).unwrap_or_else(|| panic!("{end}"));
    let content = read(named(&segment));
    assert_eq!(content, std::fs::read(bed.cluster.wal_dir().join(&segment)).unwrap());
    for end in [".pack", "/manifest", "/intent"] {
        read(named(end));
    }
    let lineage = objects.iter().find(|name| name.contains("/lineages/")).unwrap();
    let lineage: serde_json::Value = serde_json::from_slice(&read(lineage)).unwrap();
    assert_eq!(lineage["cluster"], "main");
}
