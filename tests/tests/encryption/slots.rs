//! `archive-agent key`: slots come and go, the last one never by accident, and nobody is kept busy by hostile ones.

use std::process::Command;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, user, wait};

use crate::secret;

fn json(output: Output) -> Value {
    serde_json::from_str(&output.expect_success().stdout).unwrap()
}

fn key(bed: &Archived, arguments: &[&str]) -> Output {
    bed.agent.run(&[&["key"], arguments].concat())
}

/// Slots as `key list` shows them: number, kind, whether the configured secret opens it.
fn listed(bed: &Archived) -> Vec<(u64, String, Option<bool>)> {
    let shown = json(key(bed, &["list", "--json"]));
    let slots = shown["slots"].as_array().unwrap().iter();
    slots
        .map(|slot| {
            let kind = slot["kind"].as_str().unwrap_or_default().to_owned();
            (slot["slot"].as_u64().unwrap(), kind, slot["opens"].as_bool())
        })
        .collect()
}

/// Secrets are added, exchanged and removed while the daemon archives; no data changes; the last slot stays.
#[test]
fn secrets_come_and_go_and_the_last_one_stays() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::passphrase);
    let id = bed.backup();
    bed.settle();
    let data: Vec<_> =
        bed.back_door().list("clusters").into_iter().filter(|k| k.contains("/data/")).collect();
    let shown = key(&bed, &["list"]).expect_success().stdout;
    assert!(shown.contains("passphrase") && shown.contains("opens"), "{shown}");
    assert!(shown.contains("made by init on"), "the comment: {shown}");

    // The last one does not go, not by a wrong proof either.
    let told = key(&bed, &["remove", "0"]).expect_status(1).stderr;
    assert!(told.contains("no other slot of repository main is proven to open"), "{told}");
    let place = bed.agent.place().to_owned();
    let path = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let stray = secret::file(&bed.agent, "stray", &"5".repeat(64));
    key(&bed, &["remove", "0", "--key-file", stray.to_str().unwrap()]).expect_status(1);
    key(&bed, &["remove", "5"]).expect_status(1);

    // One more: its key file is made. Then the first may go, proven by the second.
    let added =
        json(key(&bed, &["add", "--json", "--key-file", &path("second.key"), "--comment", "in the safe"]));
    assert_eq!((&added["added_slot"], &added["removed_slot"]), (&1.into(), &Value::Null), "{added}");
    assert!(added["configuration"].as_str().unwrap().contains("second.key"), "{added}");
    let (passphrase, key_slot) = ("passphrase".to_owned(), "key".to_owned());
    assert_eq!(listed(&bed), [(0, passphrase.clone(), Some(true)), (1, key_slot.clone(), Some(false))]);
    let told = key(&bed, &["remove", "0", "--key-file", stray.to_str().unwrap()]).expect_status(1).stderr;
    assert!(told.contains("proven"), "{told}");
    let told = key(&bed, &["add", "--key-file", stray.to_str().unwrap(), "--passphrase-file", "/x"]);
    told.expect_status(2);
    key(&bed, &["add"]).expect_status(2);

    // A new passphrase in the place of the old one.
    let next = secret::file(&bed.agent, "next", "a quite different passphrase");
    let next = next.to_str().unwrap();
    let same = secret::file(&bed.agent, "same", secret::PASSPHRASE);
    let told = key(&bed, &["rotate", "--passphrase-file", same.to_str().unwrap()]).expect_status(1).stderr;
    assert!(told.contains("the new secret is the old one"), "{told}");
    let rotated = json(key(&bed, &["rotate", "--json", "--passphrase-file", next]));
    assert_eq!((&rotated["added_slot"], &rotated["removed_slot"]), (&2.into(), &0.into()), "{rotated}");
    // The daemon had its key before; whoever comes now with the old one is locked out.
    bed.settle();
    let told = bed.agent.restore(&["plan"]).expect_status(1).stderr;
    assert!(told.contains("does not open its key slot"), "{told}");
    let agent = secret::other_agent(&bed, &[&format!("passphrase_file = \"{next}\"")]);
    agent.restore(&["plan"]).expect_success();
    let removed = agent.run(&["key", "remove", "1"]).expect_success().stdout;
    assert!(removed.contains("slot 1 removed; slot 2 was proven to open"), "{removed}");
    let still: Vec<_> =
        bed.back_door().list("clusters").into_iter().filter(|k| k.contains("/data/")).collect();
    assert_eq!(still, data, "data was touched");
    let target = bed.place("copy");
    agent.restore(&["restore", "--backup", &id, "--pgdata", target.to_str().unwrap()]).expect_success();

    // Who removes the only slot that the configuration opens learns of it.
    let third = path("third.key");
    agent.run(&["key", "add", "--key-file", &third]).expect_success();
    let locked_out = secret::other_agent(&bed, &[&format!("key_file = \"{third}\"")]);
    let told = locked_out.run(&["key", "remove", "3", "--passphrase-file", next]).expect_success();
    assert!(told.stderr.contains("opened only slot 3 of repository main"), "{told:#?}");
    assert!(told.stdout.contains(&format!("passphrase_file = \"{next}\"")), "{told:#?}");

    // The very last one only by saying in words what that means.
    let force = |typed: &str| {
        let mut command = agent.command("archive-agent", ["key", "remove", "2", "--even-if-last"]);
        process::run_with_input(&mut command, typed.as_bytes(), wait::SOON)
    };
    // The configured secret opens the slot itself, which proves no other.
    for typed in ["", "yes\n", "destroy\n"] {
        let output = force(typed).expect_status(1);
        assert!(output.stderr.contains("the confirmation was not given"), "{output:#?}");
        assert!(output.stderr.contains("lost for"), "what it means is said: {output:#?}");
    }
    let shown = json(agent.run(&["key", "list", "--json"]));
    force(&format!("destroy {}\n", shown["repository_id"].as_str().unwrap())).expect_success();
    let told = agent.restore(&["plan"]).expect_status(1).stderr;
    assert!(told.contains("it has no key slot"), "{told}");
}

/// Slots that somebody put there to exhaust readers, or damaged ones, are named and passed over; the good one opens.
#[test]
fn hostile_slots_take_no_memory_and_lock_nobody_out() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::passphrase);
    bed.backup();
    let door = bed.back_door();
    let good = String::from_utf8(door.get("keys/0").unwrap().to_vec()).unwrap();
    let sealed = |number: u32, text: &str| {
        let body = text.split(",\"check\":").next().unwrap();
        format!("{body},\"check\":\"{}\"}}\n", check(number, body))
    };
    assert_eq!(sealed(0, &good), good, "the check is computed as the format says");
    // The good one comes last.
    door.delete("keys/0");
    door.put(
        "keys/0",
        sealed(0, &good.replace("\"memory_kib\":32768", "\"memory_kib\":4194304")).into_bytes(),
    );
    door.put("keys/1", sealed(1, &good.replace("\"passes\":4", "\"passes\":4000000000")).into_bytes());
    door.put("keys/2", good.as_bytes()[..good.len() / 2].to_vec());
    door.put("keys/3", vec![b'{'; 1 << 20]);
    // Under another number the good one is no slot; made anew it is.
    let next = secret::file(&bed.agent, "next", "a quite different passphrase");
    let limited = |arguments: &[&str]| {
        // Of address space: gigabytes would not fit.
        let mut command = Command::new("prlimit");
        command.arg("--as=1500000000").arg(testbed::under_test("archive-agent")).args(arguments);
        command.env("WALPOINT_CONFIG", bed.agent.config());
        process::run(user::become_user(&mut command), wait::SOON)
    };
    let output = limited(&["key", "list"]).expect_success().stdout;
    assert!(output.contains("more memory or time") && output.contains("keys/2 is damaged"), "{output}");
    let told = limited(&["backup"]).expect_status(1).stderr;
    assert!(told.contains("keys/0 is damaged"), "{told}");
    assert!(next.exists());
    // A store that has the true one back opens, whatever lies beside it.
    door.put("keys/0", good.into_bytes());
    limited(&["key", "list"]).expect_success();
    bed.agent.restore(&["plan"]).expect_success();
    bed.agent.run(&["key", "add", "--passphrase-file", next.to_str().unwrap()]).expect_success();
}

/// K4, K5: a slot that is damaged is found while another one opens the repository, and can be replaced.
#[test]
fn a_damaged_slot_is_found_before_it_is_needed() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::passphrase);
    bed.backup();
    let next = secret::file(&bed.agent, "next", "a quite different passphrase");
    let next = next.to_str().unwrap();
    key(&bed, &["add", "--passphrase-file", next]).expect_success();
    bed.agent.run(&["verify"]).expect_success();
    let shown = bed.agent.run(&["check", "--no-switch"]).expect_success().stdout;
    assert!(shown.contains("opens slot 0 of 2") && !shown.contains("cannot be read"), "{shown}");

    bed.back_door().flip_bit("keys/1", 40);
    let found = bed.agent.run(&["verify", "--light"]).expect_status(3);
    let text = format!("{}{}", found.stdout, found.stderr);
    assert!(text.contains("keys/1") && text.contains("archive-agent key remove 1"), "{text}");
    let shown = bed.agent.run(&["check", "--no-switch"]).expect_success().stdout;
    assert!(shown.contains("opens slot 0, the only one that can be read"), "{shown}");
    assert!(shown.contains("slot 1 cannot be read: keys/1 is damaged"), "{shown}");

    key(&bed, &["add", "--passphrase-file", next]).expect_success();
    key(&bed, &["remove", "1"]).expect_success();
    bed.agent.run(&["verify"]).expect_success();
}

/// The check of a slot's document, by other code than ours.
fn check(number: u32, body: &str) -> String {
    let script = "import sys, blake3; print(blake3.blake3(sys.argv[1].encode() + b'\\0' + sys.argv[2].encode()).hexdigest())";
    let mut python = testbed::python_crypto();
    let output = process::run(python.args(["-c", script, &format!("keys/{number}"), body]), wait::SOON);
    output.expect_success().stdout.trim().to_owned()
}
