//! Promise 9: a restore's memory is bounded, whatever the size of the cluster.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Background;
use walpoint_tests::store::Store;
use walpoint_tests::user;

/// What lies in the small files: nothing, zeros, bytes, bytes and zeros after them.
fn small(n: u32) -> Vec<u8> {
    match n % 4 {
        0 => Vec::new(),
        1 => vec![0; 9000],
        2 => n.to_le_bytes().to_vec(),
        _ => [vec![7; 8192], n.to_le_bytes().to_vec(), vec![0; 20_000]].concat(),
    }
}

/// A block in a file that is a hole otherwise, every so many bytes: it spans windows of the restore.
const APART: u64 = 16 << 20;

/// The length of a file that is nothing but a hole.
const TERABYTE: u64 = 1 << 40;

fn block_of(n: u64) -> [u8; 8192] {
    [u8::try_from(n % 250).unwrap() + 1; 8192]
}

/// What the restore made of the many files and of the file with the holes.
fn compare(target: &Path, pgdata: &Path) {
    for n in 0..20_000u32 {
        let name = format!("many/{n}");
        let file = target.join(&name);
        assert!(fs::read(&file).unwrap() == small(n), "{name} differs");
        let (mode, wanted) =
            (fs::metadata(&file).unwrap().mode(), fs::metadata(pgdata.join(&name)).unwrap().mode());
        assert_eq!(mode, wanted, "{name}");
    }
    let nothing = fs::metadata(target.join("terabyte")).unwrap();
    assert_eq!((nothing.len(), nothing.blocks()), (TERABYTE, 0));
    let holes = File::open(target.join("holes")).unwrap();
    let meta = holes.metadata().unwrap();
    assert_eq!(meta.len(), 80 * APART);
    assert!(meta.blocks() * 512 < 8 << 20, "{} bytes of it are there", meta.blocks() * 512);
    for n in 0..80 {
        let mut found = [0; 8192];
        holes.read_exact_at(&mut found, n * APART).unwrap();
        assert!(found == block_of(n), "block {n} differs");
    }
}

/// Bytes that do not compress, as many as are asked for.
fn noise() -> impl FnMut(usize) -> Vec<u8> {
    let mut seed = 1u64;
    move |bytes| {
        let next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        };
        std::iter::repeat_with(next).take(bytes / 8).flatten().collect()
    }
}

/// More data than memory allowed, tens of thousands of files, and files that have holes.
fn write_files(pgdata: &Path, noise: &mut impl FnMut(usize) -> Vec<u8>) {
    for n in 0..6 {
        fs::write(pgdata.join(format!("noise{n}")), noise(64 << 20)).unwrap();
    }
    fs::create_dir(pgdata.join("many")).unwrap();
    for n in 0..20_000u32 {
        let file = pgdata.join(format!("many/{n}"));
        fs::write(&file, small(n)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(if n % 3 == 0 { 0o640 } else { 0o600 })).unwrap();
    }
    let holes = File::create(pgdata.join("holes")).unwrap();
    holes.set_len(80 * APART).unwrap();
    for n in 0..80 {
        holes.write_all_at(&block_of(n), n * APART).unwrap();
    }
    File::create(pgdata.join("terabyte")).unwrap().set_len(TERABYTE).unwrap();
    user::give_tree(pgdata);
}

/// Damages files of every kind.
fn spoil(target: &Path) {
    for n in 0..3 {
        fs::write(target.join(format!("noise{n}")), "damaged").unwrap();
    }
    for n in 0..20_000u32 {
        let file = target.join(format!("many/{n}"));
        match n % 7 {
            0 => fs::remove_file(file).unwrap(),
            1 => fs::write(file, [9; 12_000]).unwrap(),
            _ => {}
        }
    }
    let holes = fs::OpenOptions::new().write(true).open(target.join("holes")).unwrap();
    for n in [0, 31, 32, 33, 79] {
        holes.write_all_at(&[0; 4096], n * APART).unwrap();
        holes.write_all_at(&[3; 100], n * APART + 100_000).unwrap();
    }
}

/// A cluster with more data than memory allowed, tens of thousands of files, and one that is longer than a window, restored
/// into nothing and once more over what is damaged: never more than 128 MiB resident, and all of it is what it was.
fn stays_below_128_mib(store: Store) {
    let bed = Archived::start(Cluster::builder(), store);
    let pgdata = bed.cluster.pgdata();
    let mut noise = noise();
    write_files(pgdata, &mut noise);
    bed.backup();
    // From now on neighbours come from different backups.
    for round in 1..4 {
        for n in 0..3 {
            let file = fs::OpenOptions::new().write(true).open(pgdata.join(format!("noise{n}"))).unwrap();
            for block in (round..8192).step_by(4) {
                file.write_all_at(&noise(8192), block * 8192).unwrap();
            }
        }
        bed.backup();
    }
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
    compare(&target, pgdata);
    spoil(&target);
    watched(&["--delta"]);
    compare(&target, pgdata);
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

/// B8: a million small files, backed up, backed up again and restored: never more than 128 MiB resident, and all are right.
#[test]
#[ignore = "gigabytes of small files: make soak"]
fn a_million_small_files_stay_below_128_mib() {
    let bed = Archived::start(Cluster::builder(), Store::local());
    let pgdata = bed.cluster.pgdata();
    for n in 0..1_000_000u32 {
        if n % 1000 == 0 {
            fs::create_dir_all(pgdata.join(format!("many/{}", n / 1000))).unwrap();
        }
        fs::write(pgdata.join(format!("many/{}/{n}", n / 1000)), n.to_le_bytes()).unwrap();
    }
    user::give_tree(&pgdata.join("many"));
    let watched = |program: &str, arguments: &[&str]| {
        let log = bed.agent.place().join("watched.log");
        let mut running = Background::start(&mut bed.agent.command(program, arguments), &log);
        let (status, highest) = running.wait_watched(Duration::from_secs(900));
        assert_eq!(status, 0, "{}", running.log());
        println!("{arguments:?}: highest resident: {} MiB", highest >> 20);
        assert!(highest > 0 && highest < 128 << 20, "{arguments:?}: {} MiB", highest >> 20);
    };
    watched("archive-agent", &["backup"]);
    let changed = 777_777u32;
    fs::write(pgdata.join("many/777/777777"), (!changed).to_le_bytes()).unwrap();
    watched("archive-agent", &["backup"]);
    watched("archive-agent", &["verify", "--quiet"]);
    bed.settle();
    let target = bed.place("target");
    watched("restore-agent", &["restore", "--quiet", "--pgdata", target.to_str().unwrap()]);
    for n in 0..1_000_000u32 {
        let found = fs::read(target.join(format!("many/{}/{n}", n / 1000))).unwrap();
        let wanted = if n == changed { !n } else { n };
        assert!(found == wanted.to_le_bytes(), "many/{}/{n} differs: {found:?}", n / 1000);
    }
}
