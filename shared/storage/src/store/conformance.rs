//! What every store must do: one suite, run against each kind. Every check uses names of its own, so several may run in
//! one store at the same time; each panics with what it found.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a suite of tests fails loudly")]
#![allow(missing_docs, reason = "the names say it")]

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::join_all;

use super::{Creation, NumberClaim, Store};
use crate::error::RepoError;
use crate::layout::{Key, Prefix};
use crate::object::{
    MAX_CONTENT, MAX_FRAME, ObjectKind, ObjectReader, ObjectWriter, RepositoryId, SealedObject, Sealer,
};

/// Everything.
pub async fn all(store: &Store) {
    reading(store).await;
    creating_once(store).await;
    claiming(store).await;
    replacing_a_copy(store).await;
    racing_with_other_content(store).await;
    racing_with_the_same_content(store).await;
    listing(store).await;
    listing_what_goes_with_a_segment(store).await;
    listing_many(store).await;
    deleting(store).await;
    the_largest_object(store).await;
}

fn sealer() -> Sealer {
    Sealer::plain(RepositoryId([3; 16]))
}

fn prefix() -> Prefix {
    format!("conformance/{:016x}", rand::random::<u64>()).parse().unwrap()
}

fn sealed(key: &Key, content: &[u8]) -> SealedObject {
    let mut writer = ObjectWriter::new(&sealer(), ObjectKind::Probe, key).unwrap();
    writer.frames(content, MAX_FRAME).unwrap();
    writer.finish().unwrap()
}

fn content(bytes: Bytes, key: &Key) -> Vec<u8> {
    let mut content = Vec::new();
    let reader = ObjectReader::open(&sealer(), &[ObjectKind::Probe], key, bytes).unwrap();
    reader.read_all(MAX_CONTENT, &mut content).unwrap();
    content
}

pub async fn reading(store: &Store) {
    let key = prefix().key("object").unwrap();
    assert!(store.get(&key).await.unwrap_err().is_not_found());
    assert!(store.get_range(&key, 0..10).await.unwrap_err().is_not_found());
    assert_eq!(store.head(&key).await.unwrap(), None);

    let object = sealed(&key, b"content");
    assert_eq!(store.create_once(&object).await.unwrap(), Creation::New);
    let bytes = object.to_bytes();
    assert_eq!(store.get(&key).await.unwrap(), bytes);
    let meta = store.head(&key).await.unwrap().unwrap();
    assert_eq!(meta.size, bytes.len() as u64);
    let age = jiff::Timestamp::now().duration_since(meta.modified).abs();
    assert!(age < jiff::SignedDuration::from_mins(2), "made {age:?} ago, or in the future");
    let middle = store.get_range(&key, 3..20).await.unwrap();
    assert_eq!((&middle.bytes[..], middle.size), (&bytes[3..20], bytes.len() as u64));
    let tail = store.get_range(&key, 100..100_000).await.unwrap();
    assert_eq!((&tail.bytes[..], tail.size), (&bytes[100..], bytes.len() as u64));
    // Below an object there is nothing, and the directory it is in is no object.
    let below: Key = format!("{key}/below").parse().unwrap();
    assert_eq!(store.head(&below).await.unwrap(), None);
    let directory: Key = key.as_str().rsplit_once('/').unwrap().0.parse().unwrap();
    assert!(store.get(&directory).await.unwrap_err().is_not_found());
}

pub async fn creating_once(store: &Store) {
    let key = prefix().key("a/b/c/object").unwrap();
    let (one, again, other) = (sealed(&key, b"one"), sealed(&key, b"one"), sealed(&key, b"other"));
    assert_eq!(store.create_once(&one).await.unwrap(), Creation::New);
    assert_eq!(store.create_once(&again).await.unwrap(), Creation::Same);
    match store.create_once(&other).await {
        Err(RepoError::Conflict { ours, theirs, .. }) => {
            assert_eq!((ours, theirs), (other.content(), one.content()));
        }
        done => panic!("a different content was answered with {done:?}"),
    }
    assert_eq!(store.get(&key).await.unwrap(), one.to_bytes(), "what was stored first is unchanged");
}

pub async fn claiming(store: &Store) {
    let key = prefix().key("000001").unwrap();
    let (mine, theirs) = (sealed(&key, b"same"), sealed(&key, b"same"));
    assert_eq!(store.claim(&mine).await.unwrap(), NumberClaim::Won);
    assert_eq!(store.claim(&theirs).await.unwrap(), NumberClaim::Lost);
    assert_eq!(
        store.claim(&mine).await.unwrap(),
        NumberClaim::Won,
        "asking again does not lose what was won"
    );
}

pub async fn replacing_a_copy(store: &Store) {
    let key = prefix().key("copy").unwrap();
    let objects = [sealed(&key, b"first"), sealed(&key, b"second, and longer"), sealed(&key, b"3")];
    for object in &objects {
        store.replace_copy(object).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), object.to_bytes());
    }
    assert_eq!(store.claim(&objects[0]).await.unwrap(), NumberClaim::Lost, "creating replaces nothing");
    store.delete(&key).await.unwrap();
}

pub async fn racing_with_other_content(store: &Store) {
    let key = prefix().key("race").unwrap();
    let objects: Vec<_> = (0..8u8).map(|n| sealed(&key, &[n; 100])).collect();
    let results = join_all(objects.iter().map(|object| store.create_once(object))).await;
    let winners: Vec<_> =
        objects.iter().zip(&results).filter(|(_, r)| matches!(r, Ok(Creation::New))).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    let lost = results.iter().filter(|r| matches!(r, Err(RepoError::Conflict { .. }))).count();
    assert_eq!(lost, 7, "{results:?}");
    assert_eq!(store.get(&key).await.unwrap(), winners[0].0.to_bytes());
}

pub async fn racing_with_the_same_content(store: &Store) {
    let key = prefix().key("deep/er/race").unwrap();
    let objects: Vec<_> = (0..8).map(|_| Arc::new(sealed(&key, b"the same"))).collect();
    // On threads of their own, as different programs would.
    let tasks = objects.iter().map(|object| {
        let (store, object) = (store.clone(), Arc::clone(object));
        tokio::spawn(async move { store.create_once(&object).await })
    });
    let results: Vec<_> = join_all(tasks).await.into_iter().map(|r| r.unwrap()).collect();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(results.iter().filter(|r| matches!(r, Ok(Creation::New))).count(), 1, "{results:?}");
    assert_eq!(content(store.get(&key).await.unwrap(), &key), b"the same");
}

pub async fn listing(store: &Store) {
    let prefix = prefix();
    assert_eq!(store.list_all(&prefix).await.unwrap(), []);
    assert!(store.list_dirs(&prefix).await.unwrap().is_empty());
    let names = ["a/1", "a/2", "b-x", "b.x/y", "b/1", "b/2/c", "b/2/d", "b/2.d/e", "b0", "ba/1", "c"];
    for name in names {
        store.create_once(&sealed(&prefix.key(name).unwrap(), name.as_bytes())).await.unwrap();
    }
    let list = async |below: &str, after: Option<&str>| -> Vec<String> {
        let below: Prefix = match below {
            "" => prefix.clone(),
            _ => format!("{}/{below}", prefix.as_str()).parse().unwrap(),
        };
        let after = after.map(|name| format!("{}/{name}", prefix.as_str()));
        let entries: Vec<_> = store.list(&below, after.as_deref()).try_collect().await.unwrap();
        entries.iter().map(|e| e.key.below(&prefix).unwrap().to_owned()).collect()
    };
    // Stores differ in where they put a directory among names that begin with its name, such as "b/1" and "b-x", and
    // the layout has no such neighbours.
    let mut all = list("", None).await;
    all.sort_unstable();
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(all, expected);
    let mut below = list("b", None).await;
    below.sort_unstable();
    assert_eq!(below, ["b/1", "b/2.d/e", "b/2/c", "b/2/d"], "not what merely begins with the same letters");
    assert_eq!(list("b/2", None).await, ["b/2/c", "b/2/d"]);
    assert_eq!(list("b/2", Some("b/2/c")).await, ["b/2/d"], "what follows does not include it");
    assert_eq!(list("b/2", Some("b/2/c0")).await, ["b/2/d"], "the start need not exist");
    assert_eq!(list("b/2", Some("b/2/x")).await, [""; 0]);
    assert_eq!(list("a", Some("a/-")).await, ["a/1", "a/2"]);
    assert_eq!(list("nothing", None).await, [""; 0]);
    assert_eq!(store.list_dirs(&prefix).await.unwrap(), ["a", "b", "b.x", "ba"]);
    let entry = store.list_all(&prefix).await.unwrap().remove(0);
    let meta = store.head(&entry.key).await.unwrap().unwrap();
    assert_eq!(entry.size, meta.size);
}

/// As the layout has them: an object, and directories whose names begin with its name.
pub async fn listing_what_goes_with_a_segment(store: &Store) {
    let prefix = prefix();
    let names = [
        "00/0A",
        "00/0A.ended/1",
        "00/0A.ended/2",
        "00/0A.partial",
        "00/0B",
        "01/0A",
        "01/0A.parts/1",
        "01/0C",
    ];
    for name in names.iter().rev() {
        store.create_once(&sealed(&prefix.key(name).unwrap(), name.as_bytes())).await.unwrap();
    }
    for (after, expected) in [
        (None, &names[..]),
        (Some("00/09z"), &names[..]),
        (Some("00/0A"), &names[1..]),
        (Some("00/0A.ended/1"), &names[2..]),
        (Some("00/0A0"), &names[4..]),
        (Some("00/0B0"), &names[5..]),
        (Some("01/0-"), &names[5..]),
        (Some("01/0A0"), &names[7..]),
        (Some("01/0C0"), &[]),
    ] {
        let after = after.map(|name| format!("{}/{name}", prefix.as_str()));
        let entries: Vec<_> = store.list(&prefix, after.as_deref()).try_collect().await.unwrap();
        let listed: Vec<_> = entries.iter().map(|e| e.key.below(&prefix).unwrap()).collect();
        assert_eq!(listed, expected, "after {after:?}");
    }
}

pub async fn listing_many(store: &Store) {
    let prefix = prefix();
    let keys: Vec<Key> = (0..1100).map(|n| prefix.key(&format!("{:02}/{n:05}", n % 3)).unwrap()).collect();
    for some in keys.chunks(50) {
        let objects: Vec<_> = some.iter().map(|key| sealed(key, b"")).collect();
        for result in join_all(objects.iter().map(|object| store.create_once(object))).await {
            result.unwrap();
        }
    }
    let mut expected: Vec<_> = keys.iter().map(Key::to_string).collect();
    expected.sort_unstable();
    let listed: Vec<_> = store.list_all(&prefix).await.unwrap().iter().map(|e| e.key.to_string()).collect();
    assert_eq!(listed, expected);
    let after = &expected[1050];
    let rest: Vec<_> = store.list(&prefix, Some(after)).try_collect().await.unwrap();
    assert_eq!(rest.len(), 49);
    // Of those that are gone already nothing is said.
    store.delete(&keys[7]).await.unwrap();
    let results = store.delete_all(&keys).await;
    assert_eq!(results.len(), keys.len());
    results.into_iter().for_each(|result| result.unwrap());
    assert_eq!(store.list_all(&prefix).await.unwrap(), []);
}

pub async fn deleting(store: &Store) {
    let prefix = prefix();
    let (one, two) = (prefix.key("x/one").unwrap(), prefix.key("x/two").unwrap());
    for key in [&one, &two] {
        store.create_once(&sealed(key, b"content")).await.unwrap();
    }
    store.delete(&one).await.unwrap();
    store.delete(&one).await.expect("an object that is gone is no error");
    assert_eq!(store.head(&one).await.unwrap(), None);
    assert!(store.head(&two).await.unwrap().is_some());
    store.delete(&two).await.unwrap();
    assert_eq!(
        store.create_once(&sealed(&one, b"other")).await.unwrap(),
        Creation::New,
        "the name is free again"
    );
}

pub async fn the_largest_object(store: &Store) {
    let key = prefix().key("large").unwrap();
    // Does not compress, so it takes the most an object can take.
    let mut noise = vec![0; MAX_CONTENT];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let object = sealed(&key, &noise);
    assert!(object.len() > MAX_CONTENT as u64);
    assert_eq!(store.create_once(&object).await.unwrap(), Creation::New);
    assert!(content(store.get(&key).await.unwrap(), &key) == noise);
    store.delete(&key).await.unwrap();
}
