//! The harness itself: stores take objects, keep tests apart, and behave as their descriptions say.

use object_store::{ObjectStore, PutMode, PutPayload};
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::s3_admin;
use walpoint_tests::seaweed::{self, Credentials};
use walpoint_tests::store::Store;

fn create(store: &Store, key: &str, text: &'static str) -> object_store::Result<()> {
    let store = store.back_door().store();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let key = key.into();
    let put = store.put_opts(&key, PutPayload::from_static(text.as_bytes()), PutMode::Create.into());
    runtime.block_on(put).map(drop)
}

#[test]
fn good_stores_create_only_once() {
    for store in Store::all_good() {
        create(&store, "a/b", "first").unwrap();
        let again = create(&store, "a/b", "second").unwrap_err();
        assert!(matches!(again, object_store::Error::AlreadyExists { .. }), "{again}");
        let door = store.back_door();
        assert_eq!(door.get("a/b").unwrap(), "first");
        assert_eq!(door.list("a"), ["a/b"]);
        door.flip_bit("a/b", 0);
        assert_eq!(door.get("a/b").unwrap(), "girst");
        door.truncate("a/b", 2);
        assert_eq!(door.get("a/b").unwrap(), "gi");
        door.delete("a/b");
        assert_eq!(door.get("a/b"), None);
    }
}

#[test]
fn the_bad_store_overwrites() {
    let store = Store::rclone();
    create(&store, "a/b", "first").unwrap();
    create(&store, "a/b", "second").unwrap();
    assert_eq!(store.back_door().get("a/b").unwrap(), "second");
}

#[test]
fn buckets_are_apart_and_go() {
    let (one, two) = (Store::s3(), Store::s3());
    create(&one, "k", "one").unwrap();
    assert_eq!(two.back_door().get("k"), None);
    let (port, name) = (one.port().unwrap(), one.bucket().unwrap().to_owned());
    assert_eq!(s3_admin::request(port, &Credentials::full(), "HEAD", &format!("/{name}"), &[], "").0, 200);
    drop(one);
    assert_eq!(s3_admin::request(port, &Credentials::full(), "HEAD", &format!("/{name}"), &[], "").0, 404);
}

#[test]
fn rights_differ() {
    let store = Store::s3();
    let (port, bucket) = (store.port().unwrap(), store.bucket().unwrap());
    let path = format!("/{bucket}/k");
    let ask = |who: Credentials, method| s3_admin::request(port, &who, method, &path, &[], "").0;
    assert_eq!(ask(Credentials::reader(), "PUT"), 403);
    assert_eq!(ask(Credentials::no_list(), "PUT"), 200);
    assert_eq!(ask(Credentials::reader(), "GET"), 200);
    assert_eq!(ask(Credentials::unknown(), "GET"), 403);
    let list = |who| s3_admin::request(port, &who, "GET", &format!("/{bucket}?list-type=2"), &[], "").0;
    assert_eq!((list(Credentials::reader()), list(Credentials::no_list())), (200, 403));
}

#[test]
fn versions_and_locks_hold() {
    let store = Store::s3();
    let (port, bucket) = (store.port().unwrap(), store.bucket().unwrap());
    s3_admin::enable_versioning(port, bucket);
    let locked = format!("l{:016x}", rand::random::<u64>());
    s3_admin::create_locked_bucket(seaweed::shared().s3_port, &locked, 1);
    let full = Credentials::full();
    let (status, _) = s3_admin::request(port, &full, "PUT", &format!("/{locked}/k"), &[], "kept");
    assert_eq!(status, 200);
    let (_, versions) = s3_admin::request(port, &full, "GET", &format!("/{locked}?versions="), &[], "");
    let id = versions.split("<VersionId>").nth(1).unwrap().split('<').next().unwrap();
    let (status, answer) =
        s3_admin::request(port, &full, "DELETE", &format!("/{locked}/k?versionId={id}"), &[], "");
    assert_eq!(status, 403, "{answer}");
}

#[test]
fn a_bucket_can_vanish() {
    let bucket = seaweed::shared().bucket();
    bucket.remove();
    let path = format!("/{}/k", bucket.name());
    assert_eq!(
        s3_admin::request(seaweed::shared().s3_port, &Credentials::full(), "GET", &path, &[], "").0,
        404
    );
}

#[test]
fn the_http_proxy_answers_in_the_stores_place() {
    let store = Store::s3();
    let proxy = HttpProxy::to(store.port().unwrap());
    let path = format!("/{}/k", store.bucket().unwrap());
    let ask = |method: &str, body: &str| {
        s3_admin::request(proxy.port(), &Credentials::full(), method, &path, &[], body)
    };
    assert_eq!(ask("PUT", "text").0, 200);
    proxy.set(vec![
        FaultRule::new("GET", "/k", 503, "SlowDown").times(1),
        FaultRule::new("PUT", "", 500, "InternalError").after_doing_it(),
    ]);
    let (status, body) = ask("GET", "");
    assert_eq!(status, 503);
    assert!(body.contains("SlowDown"));
    assert_eq!(ask("GET", ""), (200, "text".to_owned()));
    assert_eq!(ask("PUT", "done").0, 500);
    proxy.set(Vec::new());
    assert_eq!(ask("GET", ""), (200, "done".to_owned()));
    assert_eq!(proxy.requests().len(), 5);
}
