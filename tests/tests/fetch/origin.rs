//! Promise 4: the end of recovery is believed only from the repositories and the lineage that it began with.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Output;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::waldata::{self, WalData};
use walpoint_tests::{user, wait};

use crate::archive::Archive;
use crate::target::{Target, kill_prefetchers, prefetchers};

const NEXT_HISTORY: &str = "00000003.history";

/// Everything in a store.
fn objects(store: &Store) -> Vec<(String, Bytes)> {
    let door = store.back_door();
    let object = |key: String| door.get(&key).map(|bytes| (key, bytes));
    door.list("").into_iter().filter_map(object).collect()
}

/// Replaces everything in a store.
fn replace_by(store: &Store, objects: &[(String, Bytes)]) {
    let door = store.back_door();
    door.list("").iter().for_each(|key| door.delete(key));
    objects.iter().for_each(|(key, bytes)| door.put(key, bytes.clone()));
    if let Some(root) = store.root() {
        user::give_tree(root);
    }
}

/// Segments of the second timeline.
fn segments(wal: &WalData) -> Vec<String> {
    let names = wal.segments().into_iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("00000002")).collect()
}

/// What lies at the repository's place all of a sudden.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Other {
    /// A repository of its own, with the same cluster in it.
    Repository,
    /// The same repository, in which the cluster was registered anew.
    Lineage,
    /// What it was earlier.
    OlderCopy,
}

impl Other {
    fn put(self, wal: &WalData, store: &Store, older: &[(String, Bytes)]) {
        let register = || drop(Archive::create(wal.pg_wal.parent().unwrap(), &[("main", store)]));
        match self {
            Other::Repository => {
                replace_by(store, &[]);
                register();
            }
            Other::Lineage => {
                let door = store.back_door();
                door.list("clusters").iter().for_each(|key| door.delete(key));
                register();
            }
            Other::OlderCopy => replace_by(store, older),
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Other::Repository => "this recovery began with repository",
            Other::Lineage => "was created again in it after this recovery began",
            Other::OlderCopy => "this is an older copy of the repository",
        }
    }
}

/// An archive up to the fourth segment of its second timeline; a data directory that was given all of them.
struct Bed {
    wal: WalData,
    older: Vec<(String, Bytes)>,
    now: Vec<(String, Bytes)>,
    store: Store,
}

impl Bed {
    fn new(store: Store) -> Bed {
        let wal = waldata::promotion(17);
        let second = segments(&wal);
        let archive = Archive::create(wal.pg_wal.parent().unwrap(), &[("main", &store)]);
        archive.put_all(&wal.archive, |name| name < second[2].as_str());
        let older = objects(&store);
        archive.put_all(&wal.archive, |name| name <= second[3].as_str());
        drop(archive);
        let now = objects(&store);
        Bed { wal, older, now, store }
    }

    fn target(&self) -> Target {
        let target = Target::like(self.wal.pg_wal.parent().unwrap());
        target.configure(|agent| agent.repository("main", &self.store))
    }

    /// What recovery was given, and the name that it asks for next.
    fn recover(&self, target: &Target) -> String {
        let second = segments(&self.wal);
        for name in &second[..4] {
            assert_eq!(target.fetch_directly(name).status, 0, "{name}");
        }
        second[4].clone()
    }

    fn change(&self, other: Other) {
        other.put(&self.wal, &self.store, &self.older);
    }

    fn put_back(&self) {
        replace_by(&self.store, &self.now);
    }
}

/// The answer of a prefetcher that runs since before the change, then that of one that starts, without a spool, and without
/// a prefetcher. The first is as expected; the others are given back, to be looked at.
#[track_caller]
fn answers(target: &Target, name: &str, status: i32) -> Vec<Output> {
    let first = target.fetch(name);
    assert_eq!(first.status, status, "{name}: {first:#?}");
    kill_prefetchers(&target.agent);
    let mut outputs = vec![target.fetch(name)];
    kill_prefetchers(&target.agent);
    drop(fs::remove_dir_all(target.spool()));
    outputs.push(target.fetch_directly(name));
    outputs.push(target.fetch(name));
    for output in &outputs {
        assert_eq!(output.status, status, "{name}: {output:#?}");
    }
    outputs
}

/// F1: whatever has taken the repository's place says nothing about what this recovery needs.
#[test]
fn what_took_the_repositorys_place_proves_nothing() {
    for store in [Store::local(), Store::s3()] {
        let bed = Bed::new(store);
        for other in [Other::Repository, Other::Lineage, Other::OlderCopy] {
            let target = bed.target();
            let next = bed.recover(&target);
            for name in [next.as_str(), NEXT_HISTORY] {
                assert_eq!(target.fetch(name).status, 1, "{name}");
            }
            bed.change(other);
            for name in [next.as_str(), NEXT_HISTORY] {
                for output in answers(&target, name, 255) {
                    assert!(output.stderr.contains(other.reason()), "{other:?} {name}: {}", output.stderr);
                }
            }
            // A recovery that begins now knows of nothing else.
            if other != Other::OlderCopy {
                let first = &segments(&bed.wal)[0];
                assert_eq!(bed.target().fetch_directly(first).status, 1);
            }
            bed.put_back();
            answers(&target, &next, 1);
            // Somebody who knows better decides.
            bed.change(Other::Repository);
            assert_eq!(target.fetch(&next).status, 255);
            fs::remove_file(target.pgdata.join("pg_wal/walpoint-origin")).unwrap();
            answers(&target, &next, 1);
            bed.put_back();
        }
    }
}

/// F1: where waiting cannot change the answer, PostgreSQL is stopped at once, with the reason; never is the answer that the file is absent.
#[test]
fn what_was_made_anew_is_refused_at_once() {
    let bed = Bed::new(Store::local());
    for other in [Other::Repository, Other::Lineage] {
        let target = Target::patient(bed.wal.pg_wal.parent().unwrap());
        let target = target.configure(|agent| agent.repository("main", &bed.store));
        let next = bed.recover(&target);
        assert_eq!(target.fetch(&next).status, 1, "a prefetcher runs");
        bed.change(other);
        let began = Instant::now();
        for name in [next.as_str(), NEXT_HISTORY] {
            for output in answers(&target, name, 255) {
                assert!(output.stderr.contains(other.reason()), "{other:?} {name}: {}", output.stderr);
            }
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{other:?}: {:?}", began.elapsed());
        bed.put_back();
        answers(&target, &next, 1);
    }
}

/// F1: a standby neither stops nor believes it.
#[test]
fn a_standby_outlives_what_took_the_repositorys_place() {
    let bed = Bed::new(Store::local());
    for (policy, status) in [("missing", 1), ("stop", 255)] {
        let line = format!("standby_history_outage = \"{policy}\"");
        let target = bed.target().standby().configure(|agent| agent.cluster_line(&line));
        let next = bed.recover(&target);
        assert_eq!(target.fetch("00000002.history").status, 0);
        for other in [Other::Repository, Other::Lineage, Other::OlderCopy] {
            bed.change(other);
            for output in answers(&target, &next, 1) {
                assert!(output.stderr.contains("This standby will retry"), "{output:#?}");
                assert!(output.stderr.contains(other.reason()), "{output:#?}");
            }
            assert_eq!(target.fetch_directly(NEXT_HISTORY).status, status, "{policy}");
            bed.put_back();
            assert_eq!(target.fetch_directly(NEXT_HISTORY).status, 1, "{policy}");
        }
    }
}

/// F1: of two repositories one was made anew: its word does not count, and the other's alone is not enough.
#[test]
fn one_of_two_repositories_made_anew_proves_nothing() {
    let wal = waldata::promotion(17);
    let second = segments(&wal);
    let stores = [Store::local(), Store::local()];
    let archive = Archive::create(wal.pg_wal.parent().unwrap(), &[("a", &stores[0]), ("b", &stores[1])]);
    archive.put_all(&wal.archive, |name| name <= second[3].as_str());
    drop(archive);
    let target = Target::like(wal.pg_wal.parent().unwrap());
    let target = target.configure(|agent| agent.repository("a", &stores[0]).repository("b", &stores[1]));
    assert_eq!(target.fetch(&second[3]).status, 0);
    assert_eq!(target.fetch(&second[4]).status, 1);
    for made_anew in [0, 1] {
        let now = objects(&stores[made_anew]);
        Other::Lineage.put_named(&wal, &stores[made_anew], ["a", "b"][made_anew]);
        for output in answers(&target, &second[4], 255) {
            assert!(output.stderr.contains(Other::Lineage.reason()), "{output:#?}");
        }
        replace_by(&stores[made_anew], &now);
        assert_eq!(target.fetch(&second[4]).status, 1);
    }
}

/// F1: where one repository was made anew and the other does not answer, that one is waited for.
#[test]
fn a_repository_that_may_answer_later_is_waited_for() {
    let wal = waldata::promotion(17);
    let second = segments(&wal);
    let stores = [Store::local(), Store::local()];
    let archive = Archive::create(wal.pg_wal.parent().unwrap(), &[("a", &stores[0]), ("b", &stores[1])]);
    archive.put_all(&wal.archive, |name| name <= second[3].as_str());
    drop(archive);
    let target = Target::patient(wal.pg_wal.parent().unwrap());
    let target = target.configure(|agent| agent.repository("a", &stores[0]).repository("b", &stores[1]));
    second[..3].iter().for_each(|name| assert_eq!(target.fetch(name).status, 0, "{name}"));
    kill_prefetchers(&target.agent);
    drop(fs::remove_dir_all(target.spool()));
    Other::Lineage.put_named(&wal, &stores[0], "a");
    let (root, aside) = (stores[1].root().unwrap(), stores[1].root().unwrap().with_extension("aside"));
    fs::rename(root, &aside).unwrap();
    let fetched = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| target.fetch(&second[3]));
        std::thread::sleep(Duration::from_secs(3));
        let waits = !fetching.is_finished();
        fs::rename(&aside, root).unwrap();
        (waits, fetching.join().unwrap())
    });
    assert!(fetched.0 && fetched.1.status == 0, "{fetched:#?}");
}

impl Other {
    fn put_named(self, wal: &WalData, store: &Store, name: &str) {
        assert_eq!(self, Other::Lineage);
        let door = store.back_door();
        door.list("clusters").iter().for_each(|key| door.delete(key));
        drop(Archive::create(wal.pg_wal.parent().unwrap(), &[(name, store)]));
    }
}

/// F1: `expire` removes the timeline that a recovery has left long ago, also what it held beyond the fork: that a later
/// timeline left it shows that the repository went on.
#[test]
fn a_timeline_that_expired_is_no_older_copy() {
    let (wal, store) = (waldata::promotion(17), Store::local());
    let archive = Archive::create(wal.pg_wal.parent().unwrap(), &[("main", &store)]);
    archive.put_all(&wal.archive, |_| true);
    drop(archive);
    let first = wal.segments().into_iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned());
    let first = first.filter(|name| name.starts_with("00000001")).min().unwrap();
    for policy in ["missing", "stop"] {
        let line = format!("standby_history_outage = \"{policy}\"");
        let target = Target::like(wal.pg_wal.parent().unwrap()).standby();
        let target = target.configure(|agent| agent.repository("main", &store).cluster_line(&line));
        let now = objects(&store);
        assert_eq!(target.fetch_directly(&first).status, 0, "{first}");
        let door = store.back_door();
        let expired = door.list("clusters/main").into_iter().filter(|key| key.contains("/wal/00000001/"));
        let expired: Vec<String> = expired.collect();
        assert!(expired.len() > 2);
        expired.iter().for_each(|key| door.delete(key));
        for output in answers(&target, NEXT_HISTORY, 1) {
            assert!(output.stderr.contains("is not in the archive"), "{policy}: {output:#?}");
        }
        replace_by(&store, &now);
    }
}

/// F4: a prefetcher that served an earlier recovery in the same directory serves none that a restore has begun since.
#[test]
fn a_prefetcher_of_an_earlier_recovery_is_not_believed() {
    let bed = Bed::new(Store::local());
    let target = bed.target();
    let second = segments(&bed.wal);
    assert_eq!(target.fetch(&second[0]).status, 0);
    let earlier = prefetchers(&target.agent);
    assert_eq!(earlier.len(), 1);
    let later = bed.target();
    assert_eq!(later.fetch_directly(&second[0]).status, 0);
    let origin = |target: &Target| target.pgdata.join("pg_wal/walpoint-origin");
    fs::copy(origin(&later), origin(&target)).unwrap();
    let output = target.fetch(&second[1]);
    assert_eq!(output.status, 0, "{output:#?}");
    assert!(output.stderr.contains("served an earlier recovery"), "{output:#?}");
    wait::until_true(wait::SOON, "it ends", || !prefetchers(&target.agent).contains(&earlier[0]));
}

/// F2: between a restore and the server's start the repository is lost; what is found in its place ends nothing.
#[test]
fn a_restored_server_believes_only_what_it_was_restored_from() {
    let bed = Archived::start_with(Cluster::builder().segment_size_mb(1), Store::local(), |agent| {
        agent.cluster_line("fetch_timeout = \"1s\"")
    });
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let older = objects(&bed.store);
    for _ in 0..4 {
        ledger.append(&bed.cluster);
        bed.settle();
    }
    let last = ledger.highest(&bed.cluster);
    let now = objects(&bed.store);
    let pgdata = bed.restore("copy", &["--target-action", "promote"]);
    let mut copy =
        Cluster::adopt(std::sync::Arc::clone(bed.cluster.dir()), bed.cluster.major(), pgdata, None);
    for made_anew in [false, true] {
        if made_anew {
            replace_by(&bed.store, &[]);
            bed.agent.init(&[]).expect_success();
        } else {
            replace_by(&bed.store, &older);
        }
        copy.launch();
        assert_ne!(copy.wait_for_end(Duration::from_secs(60)), 0);
        assert!(!copy.log().contains("selected new timeline"), "{}", copy.log());
    }
    replace_by(&bed.store, &now);
    copy.start();
    copy.wait_promoted();
    assert_eq!(ledger.highest(&copy), last, "{}", copy.log());
}
