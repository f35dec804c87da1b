//! A repository that was lost and made anew, as the documentation says.

use std::fs;
use std::path::Path;

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

/// Promise 4: one of two repositories that acknowledge is lost, made anew with `init`, and has a backup. From then on recovery ends
/// where both say so, and waits for the old one no longer; without the new one it does not end.
#[test]
fn a_repository_that_was_made_anew_takes_the_place_of_the_old_one() {
    let second = Store::local();
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| {
        agent.repository("second", &second).cluster_line("fetch_timeout = \"2s\"")
    });
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let root = second.root().unwrap().to_owned();
    empty(&root);
    let made = bed.agent.init(&[]).expect_success();
    assert!(made.stdout.contains("Recovery waits for the answer"), "a name shows nothing: {made:#?}");
    let lost = made.stdout.split("to acknowledge WAL: ").nth(1).unwrap().split(' ').next().unwrap();
    let check = bed.agent.run(&["check", "--no-switch"]);
    assert!(check.stdout.contains(lost) && check.stdout.contains("--lost-repo"), "{check:#?}");
    let made = bed.agent.init(&["--lost-repo", lost]).expect_success();
    assert!(made.stdout.contains("takes the place"), "{made:#?}");
    bed.agent.init(&[]).expect_success();
    bed.agent.init(&["--lost-repo", lost]).expect_success();
    ledger.append_as(&bed.cluster, "a2");
    bed.backup();
    let a3 = ledger.append_as(&bed.cluster, "a3");
    ledger.append_as(&bed.cluster, "a4");
    bed.settle();
    let ended = |store: &Store| {
        let segments =
            store.back_door().list("clusters/main").into_iter().filter(|key| key.contains("/wal/"));
        segments.max()
    };
    wait::until_true(wait::SOON, "both have everything", || ended(&second) == ended(&bed.store));
    let check = bed.agent.run(&["check"]).expect_success();
    assert!(!check.stdout.contains("to acknowledge WAL"), "{check:#?}");
    bed.stop_daemon();
    bed.cluster.crash();

    let latest = bed.restore_and_start("latest", &[]);
    latest.wait_promoted();
    assert_eq!(ledger.labels(&latest), "a1 a2 a3 a4");
    let target = ["--target-time", &a3.time_after, "--target-action", "promote"];
    let earlier = bed.restore_and_start("earlier", &target);
    earlier.wait_promoted();
    assert_eq!(ledger.labels(&earlier), "a1 a2 a3");

    // The new one's word is needed as the old one's was.
    bed.restore("alone", &[]);
    let aside = root.with_extension("aside");
    fs::rename(&root, &aside).unwrap();
    let mut alone = Cluster::adopt(bed.cluster.dir().clone(), 17, bed.place("alone"), None);
    alone.launch();
    assert_ne!(alone.wait_for_end(wait::SOON), 0);
    fs::rename(&aside, &root).unwrap();
}

/// What records that is damaged in one repository: recovery ends by the word of the other one, `verify` names the remedy, and that works,
/// also where no other repository is left.
#[test]
fn a_damaged_record_of_who_acknowledges_holds_no_recovery_up_and_is_made_anew() {
    let second = Store::local();
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let bed = Archived::start_with(builder, Store::local(), |agent| {
        agent.repository("second", &second).cluster_line("fetch_timeout = \"2s\"")
    });
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.settle();
    empty(second.root().unwrap());
    let made = bed.agent.init(&[]).expect_success();
    let lost = made.stdout.split("to acknowledge WAL: ").nth(1).unwrap().split(' ').next().unwrap();
    bed.agent.init(&["--lost-repo", lost]).expect_success();
    bed.backup();
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let door = bed.store.back_door();
    let records = || -> Vec<String> {
        door.list("clusters/main").into_iter().filter(|key| key.contains("/ack/")).collect()
    };
    let damage = |record: &str| {
        let mut content = door.get(record).unwrap().to_vec();
        let middle = content.len() / 2;
        content[middle] ^= 4;
        door.put(record, content);
        user::give_tree(bed.store.root().unwrap());
    };
    let [record] = &records()[..] else { panic!("{:?}", records()) };
    damage(record);

    let verified = bed.agent.run(&["verify", "--light"]);
    assert!(!verified.success(), "{verified:#?}");
    let told = format!("{}{}", verified.stdout, verified.stderr);
    assert!(told.contains("/ack/") && told.contains("--lost-repo"), "{told}");
    let restored = bed.restore_and_start("damaged", &[]);
    restored.wait_promoted();
    assert_eq!(ledger.labels(&restored), "a1");

    let made = bed.agent.init(&["--lost-repo", lost]).expect_success();
    assert!(made.stdout.contains("names these again: main") && made.stdout.contains("second"), "{made:#?}");
    assert_eq!(records().len(), 2);
    bed.agent.run(&["verify", "--light"]).expect_success();

    // The other one is lost in its turn, and nothing else shows who acknowledged.
    let later = made.stdout.split("second (").nth(1).unwrap().split(')').next().unwrap();
    damage(records().iter().max().unwrap());
    let alone = Agent::with(&bed.cluster, &bed.store);
    let made = alone.init(&["--lost-repo", lost, "--lost-repo", later]).expect_success();
    assert!(
        made.stdout.contains("names these again: main (") && !made.stdout.contains("second"),
        "{made:#?}"
    );
    assert_eq!(records().len(), 3);
    alone.run(&["verify", "--light"]).expect_success();
}
