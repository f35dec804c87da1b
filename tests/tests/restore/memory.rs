//! Promise 9: a restore's memory is bounded, whatever the size of the cluster.

use std::fs;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Background;
use walpoint_tests::store::Store;
use walpoint_tests::user;

/// A cluster with more data than memory allowed and tens of thousands of files, restored into nothing and once more over what
/// is damaged: never more than 128 MiB resident.
fn stays_below_128_mib(store: Store) {
    let bed = Archived::start(Cluster::builder(), store);
    let pgdata = bed.cluster.pgdata();
    let mut seed = 1u64;
    for n in 0..6 {
        // Bytes that do not compress.
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        })
        .take(8 << 20)
        .flatten()
        .collect();
        fs::write(pgdata.join(format!("noise{n}")), noise).unwrap();
    }
    fs::create_dir(pgdata.join("many")).unwrap();
    for n in 0..20_000u32 {
        fs::write(pgdata.join(format!("many/{n}")), n.to_le_bytes()).unwrap();
    }
    user::give_tree(pgdata);
    bed.backup();
    bed.settle();
    let target = bed.place("target");
    let watched = |arguments: &[&str]| {
        let all = [&["restore", "--quiet", "--pgdata", target.to_str().unwrap()], arguments].concat();
        let log = bed.agent.place().join("restore.log");
        let mut restore = Background::start(&mut bed.agent.command("restore-agent", all), &log);
        let (status, highest) = restore.wait_watched(Duration::from_secs(240));
        assert_eq!(status, 0, "{}", restore.log());
        println!("{arguments:?}: highest resident: {} MiB", highest >> 20);
        assert!(highest > 0 && highest < 128 << 20, "{arguments:?}: {} MiB", highest >> 20);
    };
    watched(&[]);
    for n in 0..3 {
        fs::write(target.join(format!("noise{n}")), "damaged").unwrap();
    }
    watched(&["--delta"]);
    for n in 0..6 {
        let name = format!("noise{n}");
        assert!(
            fs::read(target.join(&name)).unwrap() == fs::read(pgdata.join(&name)).unwrap(),
            "{name} differs"
        );
    }
    let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), &target);
    restored.wait_promoted();
}

/// From a directory.
#[test]
fn a_restore_stays_below_128_mib() {
    stays_below_128_mib(Store::local());
}

/// Over a network.
#[test]
fn a_restore_from_s3_stays_below_128_mib() {
    stays_below_128_mib(Store::s3());
}
