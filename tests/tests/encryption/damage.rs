//! F3, promise 10 under encryption: a bit that flips anywhere, and objects that change places, are found.

use walpoint_base::WalFileName;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;

use crate::secret;

/// One byte in each region of an object: magic, kind, flags, salt, content hash, lengths, check; the first frame's header, its
/// check and its body; somewhere in the middle; the last tag.
fn regions(length: usize) -> Vec<usize> {
    let mut at = vec![3, 10, 13, 20, 40, 66, 74, 81, 85, 100, 120, 129, 137, 144, 155, 161];
    at.extend([length / 4, length / 2, length / 2 + length / 4, length - 40, length - 17, length - 1]);
    at
}

fn objects(bed: &Archived, of: impl Fn(&str) -> bool) -> Vec<String> {
    bed.back_door().list("clusters").into_iter().filter(|key| of(key)).collect()
}

#[test]
fn damage_anywhere_and_objects_that_changed_places_are_found() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::key_file);
    bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 20000) i");
    bed.backup();
    bed.cluster.fill_wal_mb(4);
    bed.settle();
    let (runtime, door) = (secret::runtime(), bed.back_door());
    let repository = secret::open(&runtime, &bed);
    let lineages = runtime.block_on(repository.lineages(&"main".parse().unwrap())).unwrap().read;
    let wal = repository.wal(&lineages[0]);
    let fetch = |name: &str| {
        let name: WalFileName = name.parse().unwrap();
        runtime.block_on(wal.get(name)).map(|file| file.is_some())
    };

    let segments = objects(&bed, |key| key.contains("/wal/") && key.len() - key.rfind('/').unwrap() == 25);
    assert!(segments.len() >= 4, "{segments:?}");
    let key = &segments[1];
    let name = key.rsplit('/').next().unwrap();
    let good = door.get(key).unwrap();
    assert!(fetch(name).unwrap());
    for at in regions(good.len()) {
        door.flip_bit(key, at);
        let error = fetch(name).unwrap_err().to_string();
        assert!(error.contains(key), "byte {at}: {error}");
        door.put(key, good.clone());
    }
    for length in [0, 100, 128, 150, good.len() - 1] {
        door.truncate(key, length);
        assert!(fetch(name).is_err(), "cut to {length}");
        door.put(key, good.clone());
    }

    // Two segments that changed places: each is a sound object, under a name that is not its own.
    let other = &segments[2];
    let second = door.get(other).unwrap();
    door.put(key, second.clone());
    door.put(other, good.clone());
    for key in [key, other] {
        let error = fetch(key.rsplit('/').next().unwrap()).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    door.put(key, good);
    door.put(other, second);
    assert!(fetch(name).unwrap());

    // The backup: the program says which object, and makes no cluster that starts.
    let restore = |place: &str| bed.try_restore(place, &["--target-immediate"]);
    let mut place = 0;
    let packs = objects(&bed, |key| key.ends_with(".pack"));
    assert!(packs.len() >= 2, "data and tables: {packs:?}");
    for key in [&packs[0], &packs[1], &objects(&bed, |key| key.ends_with("/manifest"))[0]] {
        let good = door.get(key).unwrap();
        for at in [20, 120, 137, 161, good.len() / 2, good.len() - 1] {
            // The last frame of a pack is empty and read by nobody but `verify`.
            if key.ends_with(".pack") && at == good.len() - 1 {
                continue;
            }
            door.flip_bit(key, at);
            place += 1;
            let name = format!("damaged-{place}");
            let output = restore(&name).expect_status(1);
            // A manifest that is damaged is a backup that cannot be used; it is named by its id.
            let named = key.trim_end_matches("/manifest").rsplit('/').next().unwrap();
            let told = format!("{}{}", output.stdout, output.stderr);
            assert!(told.contains(named), "{key} byte {at}: {output:#?}");
            assert!(!bed.place(&name).join("global/pg_control").exists(), "{key} byte {at}");
            door.put(key, good.clone());
        }
    }
    let (first, second) = (door.get(&packs[0]).unwrap(), door.get(&packs[1]).unwrap());
    door.put(&packs[0], second.clone());
    door.put(&packs[1], first.clone());
    restore("swapped").expect_status(1);
    door.put(&packs[0], first);
    door.put(&packs[1], second);
    restore("well").expect_success();
}
