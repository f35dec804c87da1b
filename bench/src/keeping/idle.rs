//! `incremental-idle`: what a backup costs of a cluster in which nothing happened: bytes on a directory, requests on S3.

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::relations::Pair;
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::figures::{GoodSide, number};
use crate::place::{StoreKind, bytes_below};

/// Files of which requests are counted.
const RELATIONS: u32 = 50_000;
const RELATIONS_QUICK: u32 = 5_000;

/// Requests may differ by what lies in the time that they take: renewed leases, another look for WAL.
const CHANCE: f64 = 4.0;

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let stored = stored(scene)?;
    scene.work.remove("run");
    Ok(vec![stored, requests(scene)?])
}

fn stored(scene: &mut KeepingBed<'_>) -> Result<BoundFinding, String> {
    let server = EndedServer::of_data_set(scene);
    let cluster = bytes_below(server.pgdata()) - bytes_below(&server.pgdata().join("pg_wal"));
    let repository = OurRepository::of(scene, StoreKind::Local, Settings::default(), server.cluster())?;
    repository.backup(scene, server.cluster(), "full", 0)?;
    let mut all = Vec::new();
    for round in 1..=scene.few_rounds() {
        server.settle();
        let before = repository.stored(scene);
        repository.backup(scene, server.cluster(), "incremental", round)?;
        all.push((repository.stored(scene) - before) as f64 / 1024.0);
    }
    repository.remove(scene);
    let limit = (0.0002 * cluster as f64 + 65536.0) / 1024.0;
    Ok(BoundFinding::within("stored by the incremental", "KiB", GoodSide::AtMost, limit, &all)
        .by("0.02 % of the cluster + 64 KiB")
        .noting(format!(
            "cluster of {} MB; all objects of the backup, its WAL included",
            number(cluster as f64 / 1e6)
        )))
}

fn requests(scene: &mut KeepingBed<'_>) -> Result<BoundFinding, String> {
    let relations = if scene.is_quick() { RELATIONS_QUICK } else { RELATIONS };
    let pair = Pair::make(scene, relations).map_err(|e| format!("making files: {e}"))?;
    let mut counts = Vec::new();
    for (what, server) in [("few files", &pair.few), ("many files", &pair.many)] {
        let repository = OurRepository::of(scene, StoreKind::S3, Settings::default(), server.cluster())?;
        repository.backup(scene, server.cluster(), &format!("full, {what}"), 0)?;
        let mut of_rounds = Vec::new();
        for round in 1..=scene.few_rounds() {
            server.settle();
            let seen = repository.backup(scene, server.cluster(), &format!("incremental, {what}"), round)?;
            eprintln!("{}: round {round}: {what}: {:?}", scene.row, seen.requests);
            of_rounds.push(seen.requests.values().sum::<u64>() as f64);
        }
        repository.remove(scene);
        counts.push(of_rounds);
    }
    let rounds: Vec<(f64, f64)> =
        counts[1].iter().zip(&counts[0]).map(|(many, few)| (*many, few + CHANCE)).collect();
    let note = format!(
        "requests to S3: the same {} MB in {} files more, named as relations, against files of 1 GiB",
        number(pair.bytes as f64 / 1e6),
        pair.files
    );
    Ok(BoundFinding::beside("requests with many files", "", GoodSide::AtMost, rounds)
        .by(format!("as with few files, give or take {CHANCE}"))
        .noting(note))
}
