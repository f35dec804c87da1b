//! Promises 1, 2 and 4 where they begin: what the repository believes of a real store, whatever the network and the
//! server do.

use std::time::{Duration, Instant};

use bytes::Bytes;
use walpoint_base::chain::ChainFacts;
use walpoint_base::crossing::CrossingFacts;
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{
    Lsn, PgMajor, SegmentFacts, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId, WalFileName,
};
use walpoint_repo::Repository;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::{Stored, WalArchive, WalFlags};
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;
use walpoint_storage::object::MasterKey;
use walpoint_storage::store::settings::ConditionalWrites;
use walpoint_storage::store::{Limits, Store, StoreSettings, conformance};
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::seaweed::{self, Credentials};
use walpoint_tests::store::Store as Place;

/// Settings for a store of the test bed, reached through `port` where one is given.
fn settings(place: &Place, port: Option<u16>, who: &Credentials) -> StoreSettings {
    place.settings_as(who, port)
}

async fn open(place: &Place) -> Store {
    Store::open(&settings(place, None, &Credentials::full())).await.unwrap()
}

const NAME: &str = "000000010000000000000003";

fn segment() -> Bytes {
    let mut bytes = vec![0; 1 << 20];
    for (n, page) in bytes[..700_000].chunks_mut(64).enumerate() {
        page[..8].copy_from_slice(&(n as u64).to_le_bytes());
    }
    bytes.into()
}

fn facts() -> SegmentFacts {
    let (name, size): (SegmentName, _) = (NAME.parse().unwrap(), SegmentSize::new(1 << 20).unwrap());
    SegmentFacts {
        name,
        system_id: SystemId(7400000000000000001),
        major: PgMajor::new(17).unwrap(),
        size,
        block_size: 8192,
        first_page_timeline: name.timeline,
        content_len: 700_000,
        first_record: Some(Lsn(0x300028)),
        last_record: Some(Lsn(0x3A0000)),
        end: Lsn(0x400000),
        whole: true,
        switched: true,
        records: 10,
        transactions: None,
        crossing: CrossingFacts::default(),
        chain: ChainFacts::default(),
        marks: SegmentMarks::default(),
        restore_points: vec![],
        further_points: 0,
    }
}

/// A repository with a lineage; the archive opened anew, through `port` where one is given.
async fn archive(place: &Place, port: Option<u16>, master: Option<MasterKey>) -> WalArchive {
    let full = Credentials::full();
    let made = Repository::init("main", &settings(place, None, &full), master.clone()).await.unwrap();
    assert!(made.probe.findings().iter().all(|(_, f)| f.is_good()), "{:?}", made.probe);
    let facts = facts();
    let new = NewLineage {
        system_id: facts.system_id,
        major: facts.major,
        segment_size: facts.size,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage = made.repository.create_lineage(&"main".parse().unwrap(), new).await.unwrap();
    let repository = Repository::open_with_key("main", &settings(place, port, &full), master).await.unwrap();
    let patient = Limits { read_timeout: Duration::from_secs(1), ..repository.store().limits() };
    repository.with_limits(patient).wal(&lineage)
}

async fn put(archive: &WalArchive) -> Result<Stored, RepoError> {
    archive.put_segment(&facts(), segment(), WalFlags::default()).await
}

/// Every store does what the repository needs of one (A2: equal content by two writers, different content by two).
#[tokio::test(flavor = "multi_thread")]
async fn good_stores_pass_the_suite() {
    for place in Place::all_good() {
        conformance::all(&open(&place).await).await;
    }
}

/// A1, and how many requests it takes: one to store, one to look, one to read.
#[tokio::test]
async fn a_segment_costs_one_request() {
    for place in Place::all_good() {
        for master in [None, Some(MasterKey::new([7; 32]))] {
            let place = if master.is_some() && place.port().is_some() { Place::s3() } else { Place::local() };
            let archive = archive(&place, None, master).await;
            let store = archive.repository().store();
            let begin = store.requests();
            assert_eq!(put(&archive).await.unwrap(), Stored::New);
            assert_eq!(store.requests().total() - begin.total(), 1);
            assert_eq!(put(&archive).await.unwrap(), Stored::Same);
            let begin = store.requests();
            let header = archive.header(facts().name).await.unwrap().unwrap();
            assert_eq!((store.requests().total() - begin.total(), header.end), (1, facts().end));
            let begin = store.requests();
            let file = archive.get(WalFileName::Segment(facts().name)).await.unwrap().unwrap();
            assert_eq!((file.content == segment(), store.requests().total() - begin.total()), (true, 1));
            let begin = store.requests();
            assert_eq!(archive.anything_after(TimelineId::FIRST, SegmentNo(3)).await.unwrap(), None);
            assert!(archive.anything_after(TimelineId::FIRST, SegmentNo(2)).await.unwrap().is_some());
            assert_eq!(store.requests().total() - begin.total(), 2);
        }
    }
}

/// A9: whatever a throttled or failing server answers, an acknowledged segment is there, and one that is there is found.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_lie_do_not() {
    let place = Place::s3();
    let proxy = HttpProxy::to(place.port().unwrap());
    let archive = archive(&place, Some(proxy.port()), None).await;
    let key = archive.paths().segment(facts().name);
    let at = "/wal/";
    for (case, rules, expected) in [
        ("throttled", vec![FaultRule::new("PUT", at, 503, "SlowDown").times(2)], Some(Stored::New)),
        (
            "done, and told otherwise",
            vec![FaultRule::new("PUT", at, 500, "InternalError").times(1).after_doing_it()],
            Some(Stored::New),
        ),
        (
            "a conflict for nothing",
            vec![FaultRule::new("PUT", at, 409, "ConditionalRequestConflict").times(1)],
            Some(Stored::New),
        ),
        (
            "done, told otherwise, and the look fails too",
            vec![
                FaultRule::new("PUT", at, 500, "InternalError").times(1).after_doing_it(),
                FaultRule::new("GET", at, 503, "SlowDown").times(2),
            ],
            Some(Stored::New),
        ),
        ("down", vec![FaultRule::new("", at, 503, "ServiceUnavailable")], None),
    ] {
        proxy.set(rules);
        let begun = Instant::now();
        let stored = put(&archive).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "{case}");
        match expected {
            Some(expected) => assert_eq!(stored.unwrap(), expected, "{case}"),
            None => assert!(stored.as_ref().unwrap_err().is_transient(), "{case}: {stored:?}"),
        }
        proxy.set(vec![]);
        let there = archive.get(WalFileName::Segment(facts().name)).await.unwrap();
        assert_eq!(there.is_some(), expected.is_some(), "{case}");
        archive.repository().store().delete(&key).await.unwrap();
    }
}

/// A9, F1: a network that breaks, stalls or cuts is waited for within bounds, and never taken for absence.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_network_is_never_absence() {
    let place = Place::s3();
    let proxy = Proxy::to(place.port().unwrap());
    let archive = archive(&place, Some(proxy.port()), None).await;
    put(&archive).await.unwrap();
    let name = WalFileName::Segment(facts().name);
    for fault in [
        Fault::Refuse,
        Fault::Blackhole,
        Fault::ResetAnswerAfter(0),
        Fault::ResetAnswerAfter(5_000),
        Fault::TruncateAnswerAfter(5_000),
        Fault::HalfCloseAfter(5_000),
        Fault::StallAnswerAfter(5_000),
    ] {
        proxy.set(fault);
        proxy.cut();
        let begun = Instant::now();
        match archive.get(name).await {
            // The rest was asked for on other connections.
            Ok(file) => assert!(file.unwrap().content == segment(), "{fault:?}"),
            Err(error) => assert!(error.is_transient(), "{fault:?}: {}", error_chain(&error)),
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{fault:?}: {:?}", begun.elapsed());
        proxy.heal();
        assert!(archive.get(name).await.unwrap().is_some(), "{fault:?}: a moment later");
    }
    proxy.set(Fault::ResetAnswerAfter(0));
    proxy.cut();
    let missing = WalFileName::History(TimelineId::new(2).unwrap());
    assert!(archive.get(missing).await.unwrap_err().is_transient());
    proxy.heal();
    assert_eq!(archive.get(missing).await.unwrap(), None);
}

/// F1: a bucket that vanished is no bucket without that segment.
#[tokio::test]
async fn a_missing_bucket_is_no_repository() {
    let place = Place::s3();
    let archive = archive(&place, None, None).await;
    let missing = WalFileName::Segment(facts().name);
    assert_eq!(archive.get(missing).await.unwrap(), None);
    archive.repository().read_descriptor_again().await.unwrap();

    let gone = seaweed::shared().bucket();
    gone.remove();
    let url = format!("s3://{}/repo", gone.name());
    let settings = place.settings_at(&url, &Credentials::full(), None);
    let error = Repository::open("main", &settings).await.unwrap_err();
    assert!(matches!(error, RepoError::NoRepository { .. }), "{}", error_chain(&error));
    let store = Store::open(&settings).await.unwrap();
    let error = store.get(&"clusters/main/x".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, RepoError::NoRepository { .. }), "{}", error_chain(&error));
    let error = Repository::init("main", &settings, None).await.unwrap_err();
    assert!(error_chain(&error).contains("NoSuchBucket"), "{}", error_chain(&error));
}

/// A9: credentials that are wrong, or may not do what is asked, are named at once and not tried again.
#[tokio::test]
async fn refused_credentials_are_told() {
    let place = Place::s3();
    let archive = archive(&place, None, None).await;
    let open_as = async |who: Credentials| Repository::open("main", &settings(&place, None, &who)).await;
    let error = open_as(Credentials::unknown()).await.unwrap_err();
    assert!(matches!(error, RepoError::Denied { .. }), "{}", error_chain(&error));
    let reader = open_as(Credentials::reader()).await.unwrap();
    let begin = reader.store().requests();
    let error = put(&reader.wal(archive.lineage())).await.unwrap_err();
    assert!(matches!(error, RepoError::Denied { .. }), "{}", error_chain(&error));
    assert_eq!(reader.store().requests().put - begin.put, 1);
    put(&archive).await.unwrap();
    assert!(reader.wal(archive.lineage()).header(facts().name).await.unwrap().is_some());
}

/// K5: a store that takes If-None-Match and overwrites is found out before anything is trusted to it.
#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    let place = Place::rclone();
    let strict = settings(&place, None, &Credentials::full());
    let error = Repository::init("main", &strict, None).await.unwrap_err();
    assert!(
        matches!(error, RepoError::Settings { setting: "conditional_writes", .. }),
        "{}",
        error_chain(&error)
    );
    assert!(error.to_string().contains("overwrote"), "{error}");
    let begun = Store::open(&strict).await.unwrap().head(&"walpoint.json".parse().unwrap()).await.unwrap();
    assert_eq!(begun, None, "nothing was begun");

    let knowing = StoreSettings { conditional_writes: ConditionalWrites::LookFirst, ..strict };
    // This one does not even answer ranges as the protocol says; then nothing helps.
    let error = Repository::init("main", &knowing, None).await.unwrap_err();
    assert!(error_chain(&error).contains("cannot be read back"), "{}", error_chain(&error));
}

/// A wrong address or port fails within the retry budget and says what was tried.
#[tokio::test]
async fn a_wrong_endpoint_is_told() {
    let place = Place::s3();
    let mut wrong = settings(&place, Some(1), &Credentials::full());
    wrong.limits.retries = Some(1);
    let begun = Instant::now();
    let error = Repository::open("main", &wrong).await.unwrap_err();
    assert!(error.is_transient() && error_chain(&error).contains("127.0.0.1:1"), "{}", error_chain(&error));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// K3: a store that knows no bulk requests, or refuses them, is asked for each object.
#[tokio::test]
async fn what_cannot_be_deleted_in_bulk_goes_one_by_one() {
    let place = Place::s3();
    let proxy = HttpProxy::to(place.port().unwrap());
    proxy.set(vec![FaultRule::new("POST", "delete", 501, "NotImplemented")]);
    let settings = settings(&place, Some(proxy.port()), &Credentials::full());
    let store = Store::open(&settings).await.unwrap();
    let keys: Vec<_> = (1..=3).map(walpoint_storage::layout::probe).collect();
    for key in &keys {
        store.create_blindly(key, Bytes::from_static(b"x")).await.unwrap();
    }
    store.delete(&keys[0]).await.unwrap();
    for result in store.delete_all(&keys[1..]).await {
        result.unwrap();
    }
    for key in &keys {
        assert!(store.head(key).await.unwrap().is_none(), "{key}");
    }
}
