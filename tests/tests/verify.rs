//! K4: `archive-agent verify` reads what is kept, names what is wrong, and finds nothing where nothing is.

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

#[track_caller]
fn verify(bed: &Archived, arguments: &[&str], status: i32) -> Value {
    let output = bed.agent.run(&[&["verify", "--json"], arguments].concat()).expect_status(status);
    let json: Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr));
    json["repositories"][0].clone()
}

fn bed(store: Store) -> (Archived, Ledger) {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), store);
    let ledger = Ledger::create(&bed.cluster, "rows");
    bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 50000) i; checkpoint");
    (bed, ledger)
}

fn keys(bed: &Archived, part: &str, ending: &str) -> Vec<String> {
    let keys = bed.back_door().list("clusters/main");
    keys.into_iter().filter(|key| key.contains(part) && key.ends_with(ending)).collect()
}

fn kinds(report: &Value) -> Vec<(String, String)> {
    let findings = report["findings"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings.iter().map(|f| (text(&f["kind"]), text(&f["object"]))).collect()
}

/// Damages a pack of that backup in two ways: light sees lengths and absence, full sees every bit.
#[track_caller]
fn damaged_packs_are_found(bed: &Archived, pack: &str, first: &str) {
    let door = bed.back_door();
    for (light, flips) in [(0, true), (3, false)] {
        let whole = door.get(pack).unwrap();
        match flips {
            true => door.flip_bit(pack, whole.len() / 2),
            false => door.truncate(pack, whole.len() - 1),
        }
        verify(bed, &["--light"], light);
        let report = verify(bed, &[], 3);
        let named = kinds(&report);
        assert!(named.iter().any(|(_, object)| object == pack), "{named:?}");
        assert!(report["findings"][0]["backups"].to_string().contains(first), "{report:#}");
        assert!(report["findings"][0]["hint"].as_str().unwrap().contains("Take a backup"), "{report:#}");
        assert!(!keys(bed, "/announcements/", "").is_empty(), "the next backup does not build on it");
        door.put(pack, whole);
    }
    let announced = keys(bed, "/announcements/", "");
    let [announced] = &announced[..] else { panic!("announced once: {announced:?}") };
    let whole = door.get(announced).unwrap();
    door.flip_bit(announced, whole.len() / 2);
    let plan = bed.agent.restore(&["plan"]).expect_success().stdout;
    assert!(plan.contains("what was found cannot be read"), "{plan}");
    door.put(announced, whole);
    // What was announced is told by every run until it was read.
    verify(bed, &["--light"], 3);
    verify(bed, &[], 0);
}

/// Damages and deletes a segment.
#[track_caller]
fn damaged_and_lost_segments_are_found(bed: &Archived) {
    let door = bed.back_door();
    let segments = keys(bed, "/wal/00000001/", "");
    let segments: Vec<&String> =
        segments.iter().filter(|key| key.rsplit('/').next().unwrap().len() == 24).collect();
    let middle = segments[segments.len() - 3];
    let whole = door.get(middle).unwrap();
    door.flip_bit(middle, whole.len() / 2);
    verify(bed, &["--light"], 0);
    let report = verify(bed, &[], 3);
    assert!(kinds(&report).iter().any(|(kind, object)| kind == "damaged" && object == middle), "{report:#}");
    door.delete(middle);
    let report = verify(bed, &["--light"], 3);
    let name = middle.rsplit('/').next().unwrap();
    assert!(kinds(&report).iter().any(|(kind, object)| kind == "gap" && object.contains(name)), "{report:#}");
    assert!(report["findings"][0]["unrecoverable"].as_str().unwrap().contains("timeline 1"), "{report:#}");
    door.put(middle, whole);
}

/// Damages a manifest.
#[track_caller]
fn damaged_manifests_are_found(bed: &Archived, second: &str) {
    let door = bed.back_door();
    let manifest = format!("clusters/main/backups/{second}/manifest");
    let whole = door.get(&manifest).unwrap();
    door.flip_bit(&manifest, whole.len() - 10);
    let report = verify(bed, &["--light"], 3);
    assert!(kinds(&report).contains(&("damaged".to_owned(), manifest.clone())), "{report:#}");
    door.put(&manifest, whole);
}

/// K4: a flipped bit, a truncated and a deleted object, in packs, manifests and WAL: each is named, with what it costs.
#[test]
fn damage_of_every_kind_is_found_and_named() {
    for store in Store::all_good() {
        let (bed, mut ledger) = bed(store);
        let first = bed.backup();
        ledger.append(&bed.cluster);
        bed.cluster.fill_wal_mb(3);
        bed.settle();
        let second = bed.backup();
        let clean = verify(&bed, &[], 0);
        assert_eq!((clean["finding_count"].as_u64(), clean["backup_count"].as_u64()), (Some(0), Some(2)));
        assert!(clean["verified_bytes"].as_u64().unwrap() > 10 << 20, "{clean:#}");

        let packs = keys(&bed, &format!("/data/{first}/"), ".pack");
        damaged_packs_are_found(&bed, &packs[0], &first);
        damaged_and_lost_segments_are_found(&bed);
        damaged_manifests_are_found(&bed, &second);
        bed.back_door().delete(&packs[0]);
        let report = verify(&bed, &["--light"], 3);
        assert_eq!(kinds(&report)[0], ("missing".to_owned(), packs[0].clone()));
        let told = bed.agent.run(&["verify", "--light"]).expect_status(3);
        assert!(told.stdout.contains(&packs[0]) && told.stdout.contains("HINT: Take a backup"), "{told:#?}");
        let planned = bed.agent.restore(&["plan"]).expect_success().stdout;
        let damage = format!("was found damaged that backup {second} needs");
        assert!(planned.contains(&damage), "{planned}");
        let restored = bed.try_restore("damaged", &[]).expect_status(1);
        assert!(restored.stderr.contains(&damage), "it is told beforehand: {restored:#?}");
        // The other backup is whole where it shares nothing with what is gone.
        bed.agent.run(&["verify", "--light", "--backup", &first]).expect_status(3);
    }
}

/// K4: nothing is found where nothing is wrong: over the fork of a timeline, with records that go on across it.
#[test]
fn what_is_sound_is_found_sound_across_timelines() {
    let (mut bed, mut ledger) = bed(Store::local());
    bed.backup();
    let mark = ledger.append(&bed.cluster);
    // Without a later commit nothing proves that the time is over.
    ledger.append(&bed.cluster);
    bed.cluster.fill_wal_mb(2);
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    std::fs::rename(&pgdata, bed.place("lost")).unwrap();
    let target = ["--target-time", &*mark.time_after, "--target-action", "promote", "--resume-archiving"];
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &target);
    bed.cluster.start();
    bed.cluster.wait_promoted();
    ledger.append(&bed.cluster);
    bed.cluster.fill_wal_mb(3);
    bed.settle();
    let second = bed.backup();
    bed.settle();
    let report = verify(&bed, &[], 0);
    assert!(report["segment_count"].as_u64().unwrap() > 5, "{report:#}");
    verify(&bed, &["--backup", &second], 0);
    // What cannot be found out is no finding.
    bed.agent
        .run(&["verify", "--backup", "20200101T000000Z-00000001-0000000002000028-9f3a0c11"])
        .expect_status(1);
    bed.agent.run(&["verify", "--sample", "200%"]).expect_status(2);
    // Only of a backup "full" means something: that it stores every block again.
    bed.agent.run(&["verify", "--full"]).expect_status(2);
}

/// K4: samples go on where the last one stopped, so that a damaged object is found in the end.
#[test]
fn a_sample_goes_on_where_the_last_one_stopped() {
    let (bed, mut ledger) = bed(Store::local());
    bed.backup();
    for _ in 0..4 {
        ledger.append(&bed.cluster);
        bed.settle();
    }
    let segments = keys(&bed, "/wal/00000001/", "");
    let last = segments.iter().rfind(|key| key.rsplit('/').next().unwrap().len() == 24).unwrap();
    let length = bed.back_door().get(last).unwrap().len();
    // In its body: a damaged header is seen without reading the segment.
    bed.back_door().flip_bit(last, length - 10);
    let mut found = 0;
    for _ in 0..5 {
        let output = bed.agent.run(&["verify", "--json", "--sample", "20%"]);
        assert!([0, 3].contains(&output.status), "{output:#?}");
        found += usize::from(output.status == 3);
    }
    assert!((1..=2).contains(&found), "found in {found} of five runs over all objects");
    verify(&bed, &["--budget", "1m"], 3);
    assert_eq!(keys(&bed, "/leases/verify/", "").len(), 1);
}

/// K4: a history that is gone while segments of its timeline are there is found, also where a later timeline's history tells the
/// same; `status` shows it, and no plan ends on that timeline.
#[test]
fn a_history_that_was_deleted_is_found() {
    let (mut bed, mut ledger) = bed(Store::local());
    bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let mut heirs = Vec::new();
    for _ in 0..2 {
        let from: &Cluster = heirs.last().map_or(&bed.cluster, |(heir, ..): &(Cluster, _, _)| heir);
        let mut heir = from.standby();
        let agent = Agent::with(&heir, &bed.store);
        agent.archive_from(&heir);
        heir.start();
        heir.wait_replayed(from);
        heir.promote();
        let daemon = agent.daemon();
        ledger.append(&heir);
        let segment = heir.switch_wal();
        heir.wait_archived(&segment);
        heirs.push((heir, agent, daemon));
    }
    verify(&bed, &[], 0);
    let door = bed.back_door();
    for (timeline, known_from_a_descendant) in [("00000002", true), ("00000003", false)] {
        let key = keys(&bed, "/history/", &format!("{timeline}.history")).remove(0);
        let whole = door.get(&key).unwrap();
        door.delete(&key);
        let report = verify(&bed, &["--light"], 3);
        let wanted = format!("timeline {}", &timeline[7..]);
        assert!(report.to_string().contains(&wanted), "{report:#}");
        let status = bed.agent.run(&["status"]).expect_success().stdout;
        assert!(
            status.contains(&format!("{wanted}: its WAL is archived, but its history is missing")),
            "{status}"
        );
        if known_from_a_descendant {
            let target = ["plan", "--target-timeline", &timeline[7..]];
            let refused = bed.agent.restore(&target).expect_status(1);
            assert!(
                refused.stdout.contains("the history of timeline 2 is damaged or missing"),
                "{}",
                refused.stdout
            );
            bed.agent.restore(&["plan"]).expect_success();
        }
        door.put(&key, whole);
        verify(&bed, &["--light"], 0);
    }
    bed.stop_daemon();
}

/// K4: what only helps to find the rest is read too: a restore point, PostgreSQL's note of a backup, a segment that nothing
/// needs.
#[test]
fn damaged_objects_that_no_restore_reads_are_named() {
    for store in Store::all_good() {
        let (bed, _) = bed(store);
        bed.cluster.fill_wal_mb(2);
        bed.settle();
        bed.backup();
        bed.cluster.psql("select pg_create_restore_point('before-deploy')");
        bed.settle();
        let orphan = || {
            let mut stored = keys(&bed, "/wal/00000001/", "");
            stored.retain(|key| key.rsplit('/').next().unwrap().len() == 24);
            stored
        };
        let note = || keys(&bed, "/wal/", ".backup");
        wait::until_true(wait::SOON, "everything is stored", || {
            !orphan().is_empty() && !note().is_empty() && !keys(&bed, "/points/", "").is_empty()
        });
        verify(&bed, &[], 0);
        let door = bed.back_door();
        for key in [&keys(&bed, "/points/", "")[0], &note()[0], &orphan()[0]] {
            let whole = door.get(key).unwrap();
            door.flip_bit(key, whole.len() - 3);
            let report = verify(&bed, &[], 3);
            assert_eq!(kinds(&report), [("damaged".to_owned(), key.clone())], "{report:#}");
            door.put(key, whole);
        }
        verify(&bed, &[], 0);
    }
}
