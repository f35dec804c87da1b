//! `incremental-idle`: what a backup costs of a cluster in which nothing happened: bytes on a directory, requests on S3.

use super::finding::BoundFinding;
use super::ground::KeepingBed;
use super::ours::{OurRepository, Settings};
use super::relations::Pair;
use super::server::EndedServer;
use crate::figures::{GoodSide, number};
use crate::place::{StoreKind, bytes_below};

/// Files of which requests are counted.
const RELATIONS: u32 = 50_000;
const RELATIONS_QUICK: u32 = 5_000;

/// Requests may differ by what lies in the time that they take: renewed leases, another look for WAL.
const CHANCE: f64 = 4.0;

pub(super) fn measure(ground: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let stored = stored(ground)?;
    ground.work.remove("run");
    Ok(vec![stored, requests(ground)?])
}

fn stored(ground: &mut KeepingBed<'_>) -> Result<BoundFinding, String> {
    let server = EndedServer::of_data_set(ground);
    let cluster = bytes_below(server.pgdata()) - bytes_below(&server.pgdata().join("pg_wal"));
    let repository = OurRepository::of(ground, StoreKind::Local, Settings::default(), server.cluster())?;
    repository.backup(ground, server.cluster(), "full", 0)?;
    let mut all = Vec::new();
    for round in 1..=ground.few_rounds() {
        server.settle();
        let before = repository.stored(ground);
        repository.backup(ground, server.cluster(), "incremental", round)?;
        all.push((repository.stored(ground) - before) as f64 / 1024.0);
    }
    repository.remove(ground);
    let limit = (0.0002 * cluster as f64 + 65536.0) / 1024.0;
    Ok(BoundFinding::within("stored by the incremental", "KiB", GoodSide::AtMost, limit, &all)
        .by("0.02 % of the cluster + 64 KiB")
        .noting(format!(
            "cluster of {} MB; all objects of the backup, its WAL included",
            number(cluster as f64 / 1e6)
        )))
}

fn requests(ground: &mut KeepingBed<'_>) -> Result<BoundFinding, String> {
    let relations = if ground.is_quick() { RELATIONS_QUICK } else { RELATIONS };
    let pair = Pair::make(ground, relations).map_err(|e| format!("making files: {e}"))?;
    let mut counts = Vec::new();
    for (what, server) in [("few files", &pair.few), ("many files", &pair.many)] {
        let repository = OurRepository::of(ground, StoreKind::S3, Settings::default(), server.cluster())?;
        repository.backup(ground, server.cluster(), &format!("full, {what}"), 0)?;
        let mut of_rounds = Vec::new();
        for round in 1..=ground.few_rounds() {
            server.settle();
            let seen = repository.backup(ground, server.cluster(), &format!("incremental, {what}"), round)?;
            eprintln!("{}: round {round}: {what}: {:?}", ground.row, seen.requests);
            of_rounds.push(seen.requests.values().sum::<u64>() as f64);
        }
        repository.remove(ground);
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
