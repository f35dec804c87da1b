//! F1 on a standby: an answer within two seconds, whatever happens, and never one that stops the server; histories from
//! the cache.

use std::time::Duration;

use rustix::process::Signal;
use walpoint_base::{Lsn, SegmentName, SegmentSize};
use walpoint_tests::process::{self, Output};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::wait;
use walpoint_tests::waldata::{self, WalData};

use crate::archive::Archive;
use crate::target::{Target, prefetchers};

const NEXT_HISTORY: &str = "00000003.history";
const HISTORY: &str = "00000002.history";

struct Bed {
    wal: WalData,
    store: Store,
    proxy: Proxy,
}

impl Bed {
    fn new() -> Bed {
        let (wal, store) = (waldata::promotion(17), Store::s3());
        let archive = Archive::create(wal.pg_wal.parent().unwrap(), &[("main", &store)]);
        let first = segments(&wal).remove(0);
        archive.put_all(&wal.archive, |name| name == first || name == HISTORY);
        drop(archive);
        let proxy = Proxy::to(store.port().unwrap());
        Bed { wal, store, proxy }
    }

    fn target(&self) -> Target {
        let target = Target::like(self.wal.pg_wal.parent().unwrap()).standby();
        target.configure(|agent| agent.repository_via("main", &self.store, &self.proxy))
    }

    fn expected(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.wal.archive.join(name)).ok()
    }
}

/// Segments of the second timeline.
fn segments(wal: &WalData) -> Vec<String> {
    let names = wal.segments().into_iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("00000002")).collect()
}

/// It took no longer than a standby may wait, and a moment for the machine.
#[track_caller]
fn in_time(output: Output) -> Output {
    assert!(output.took < Duration::from_millis(2400), "took {:?}: {output:#?}", output.took);
    output
}

/// F1: an outage is "ask again", in time, from both programs.
#[test]
fn an_outage_neither_stops_nor_blocks_a_standby() {
    let bed = Bed::new();
    let target = bed.target();
    let name = segments(&bed.wal).remove(0);
    assert_eq!(in_time(target.fetch(&name)).status, 0);
    for fault in [Fault::Blackhole, Fault::Refuse, Fault::Latency(Duration::from_secs(5))] {
        bed.proxy.set(fault);
        for name in [name.as_str(), NEXT_HISTORY] {
            // Without a prefetcher, with one that starts, with one that runs.
            for output in [target.fetch_directly(name), target.fetch(name), target.fetch(name)] {
                let output = in_time(output);
                // What was fetched ahead of the outage may still be given.
                assert!(
                    output.status == 1 || (output.status == 0 && target.file().is_some()),
                    "{fault:?} {output:#?}"
                );
                assert!(
                    output.status == 0 || output.stderr.contains("This standby will retry"),
                    "{fault:?}: {}",
                    output.stderr
                );
            }
        }
        crate::target::kill_prefetchers(&target.agent);
        bed.proxy.heal();
    }
    assert_eq!(in_time(target.fetch(&name)).status, 0);
    assert_eq!(in_time(target.fetch(NEXT_HISTORY)).status, 1);
}

/// F1: a history that was seen is there in an outage; one that was not is as configured.
#[test]
fn histories_survive_an_outage() {
    let bed = Bed::new();
    for (policy, status) in [("missing", 1), ("stop", 255)] {
        let line = format!("standby_history_outage = \"{policy}\"");
        let target = bed.target().configure(|agent| agent.cluster_line(&line));
        assert_eq!(target.fetch(HISTORY).status, 0, "{policy}");
        bed.proxy.set(Fault::Blackhole);
        crate::target::kill_prefetchers(&target.agent);
        for output in [target.fetch(HISTORY), target.fetch_directly(HISTORY)] {
            assert_eq!(in_time(output).status, 0, "{policy}");
            assert_eq!(target.file(), bed.expected(HISTORY), "{policy}");
        }
        for output in [target.fetch(NEXT_HISTORY), target.fetch_directly(NEXT_HISTORY)] {
            assert_eq!(in_time(output).status, status, "{policy}");
        }
        // Segments are never a reason to stop.
        assert_eq!(in_time(target.fetch(&segments(&bed.wal)[0])).status, 1, "{policy}");
        // A prefetcher that hangs: the client, which reads no configuration, knows the policy too.
        let hung = prefetchers(&target.agent);
        assert_eq!(hung.len(), 1);
        process::kill_pid(hung[0], Signal::STOP);
        assert_eq!(in_time(target.fetch(NEXT_HISTORY)).status, status, "{policy}");
        assert_eq!(in_time(target.fetch(HISTORY)).status, 0, "{policy}");
        assert_eq!(in_time(target.fetch(&segments(&bed.wal)[0])).status, 1, "{policy}");
        bed.proxy.heal();
    }
}

/// F1: what takes longer than a standby waits arrives all the same: the next request finds it.
#[test]
fn a_slow_store_is_waited_for_in_the_background() {
    let bed = Bed::new();
    let target = bed.target();
    let name = segments(&bed.wal).remove(0);
    bed.proxy.set(Fault::Latency(Duration::from_millis(1000)));
    assert_eq!(in_time(target.fetch(&name)).status, 1);
    wait::until_true(wait::SOON, "the segment arrives", || in_time(target.fetch(&name)).status == 0);
    assert_eq!(target.file(), bed.expected(&name));
}

/// F1: a configuration error must not shut down a server that serves readers.
#[test]
fn a_typo_in_the_configuration_does_not_stop_a_standby() {
    let bed = Bed::new();
    let target = bed.target().configure(|agent| agent.cluster_line("look_ahed = 1"));
    for output in [target.fetch(&segments(&bed.wal)[0]), target.fetch_directly(NEXT_HISTORY)] {
        let output = in_time(output);
        assert_eq!(output.status, 1, "{output:#?}");
        assert!(output.stderr.contains("look_ahed"), "{}", output.stderr);
    }
}

/// F1: a history that came by streaming lies in `pg_wal` only. A standby gets nothing of the parent behind the position at which that
/// history leaves it, with and without a prefetcher.
#[test]
fn a_parents_segment_ends_where_a_history_that_was_streamed_leaves_it() {
    let (wal, store) = (waldata::promotion(17), Store::local());
    let archive = Archive::create(wal.pg_wal.parent().unwrap(), &[("main", &store)]);
    archive.put_all(&wal.archive, |name| name.starts_with("00000001") && name.len() == 24);
    let target = Target::like(wal.pg_wal.parent().unwrap()).standby();
    let target = target.configure(|agent| agent.repository("main", &store));
    let paths = wal.segments();
    let path = paths.iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("00000001"));
    let name = path.unwrap().file_name().unwrap().to_str().unwrap();
    let mut expected = std::fs::read(path.unwrap()).unwrap();
    let keep = 0x8000;
    let size = SegmentSize::new(expected.len() as u64).unwrap();
    let start = name.parse::<SegmentName>().unwrap().number(size).unwrap().start(size);
    let history = format!("1\t{}\tno recovery target specified\n", Lsn(start.0 + keep));
    std::fs::write(target.pgdata.join("pg_wal").join(HISTORY), history).unwrap();
    expected[usize::try_from(keep).unwrap()..].fill(0);
    for output in [target.fetch_directly(name), target.fetch(name)] {
        assert_eq!(output.status, 0, "{output:#?}");
        assert!(output.stderr.contains("leaves its timeline"), "{output:#?}");
    }
    assert_eq!(target.file(), Some(expected));
    assert_eq!(target.fetch_directly(HISTORY).status, 1, "what lies in pg_wal is not in the archive");
}
