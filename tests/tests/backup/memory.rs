//! Promise 9: a backup's memory is bounded, whatever the size of the cluster.

use std::fs;
use std::time::Duration;

use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Background;
use walpoint_tests::store::Store;
use walpoint_tests::user;

use crate::bed::{Bed, noise};

/// More data than memory allowed, and tens of thousands of files: never more than 128 MiB resident.
#[test]
fn a_backup_stays_below_128_mib() {
    stays_below_128_mib(Bed::local(Cluster::builder().major(15)), &["backup"]);
}

/// The same over a network, into two repositories, by as many readers as are ever used by default.
#[test]
fn a_backup_into_two_stores_by_eight_readers_stays_below_128_mib() {
    let second = Store::local();
    let change = |agent: Agent| agent.repository("second", &second).cluster_line("workers = 8");
    stays_below_128_mib(Bed::new(Cluster::builder().major(16), Store::s3(), change), &["backup"]);
}

/// The same when the server sends it, in one stream that eight threads store.
#[test]
fn a_remote_backup_stays_below_128_mib() {
    let bed = Bed::new(Cluster::builder(), Store::local(), |agent| agent.cluster_line("workers = 8"));
    stays_below_128_mib(bed, &["backup", "--remote"]);
}

fn stays_below_128_mib(bed: Bed, arguments: &[&str]) {
    let pgdata = bed.cluster.pgdata();
    (0..6).for_each(|n| noise(&pgdata.join(format!("noise{n}")), 64));
    fs::create_dir(pgdata.join("many")).unwrap();
    for n in 0..50_000u32 {
        fs::write(pgdata.join(format!("many/{n}")), n.to_le_bytes()).unwrap();
    }
    user::give_tree(pgdata);
    let mut command = bed.agent.command("archive-agent", arguments);
    let mut backup = Background::start(&mut command, &bed.agent.place().join("backup.log"));
    let (status, highest) = backup.wait_watched(Duration::from_secs(240));
    assert_eq!(status, 0, "{}", backup.log());
    println!("highest resident: {} MiB", highest >> 20);
    assert!(highest > 0 && highest < 128 << 20, "{} MiB", highest >> 20);
}
