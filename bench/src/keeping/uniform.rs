//! `incremental-uniform`: an incremental backup after uniform updates, against the changed blocks alone, and against a full
//! backup of the same cluster in the same round.

use super::changed;
use super::finding::BoundFinding;
use super::load;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::figures::{GoodSide, number};
use crate::place::StoreKind;
use crate::stats::median;

/// A row in this share of the blocks is updated. Indexes add to it, and blocks that are met twice take from it.
const SHARE: f64 = 0.05;

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let mut server = EndedServer::of_data_set(scene);
    let copy = scene.place_for("copy");
    let io = |e: std::io::Error| format!("comparing the cluster: {e}");
    server.settle();
    server.offline(|pgdata| changed::take(pgdata, &copy)).map_err(io)?;
    let (mut stored, mut times, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=scene.few_rounds() {
        let repository = OurRepository::of(scene, StoreKind::Local, Settings::default(), server.cluster())?;
        let full = repository.backup(scene, server.cluster(), "full", round)?;
        let before = repository.stored(scene);
        load::uniform(&server, SHARE);
        server.settle();
        let differs = server.offline(|pgdata| changed::take(pgdata, &copy)).map_err(io)?;
        let incremental = repository.backup(scene, server.cluster(), "incremental", round)?;
        let added = repository.stored(scene) - before;
        eprintln!(
            "{}: round {round}: {:.2} % of {} blocks changed, compressed {} MB; stored {} MB",
            scene.row,
            differs.share() * 100.0,
            differs.blocks,
            number(differs.compressed as f64 / 1e6),
            number(added as f64 / 1e6)
        );
        if round > 0 {
            let most = 1.25 * differs.compressed as f64 + 0.0015 * differs.bytes as f64;
            stored.push((added as f64 / 1e6, most / 1e6));
            times.push(incremental.report.seconds / full.report.seconds);
            shares.push(differs.share() * 100.0);
        }
        repository.remove(scene);
    }
    let note = format!(
        "a row is updated in each of 5 % of the blocks of every large table; with indexes {} % of all blocks change. Changed \
         blocks: those of 8 KiB that differ between copies of the data directory taken while the server is stopped, without \
         pg_wal, compressed 128 KiB at a time by zstd level 1. Stored: all objects of the backup, its WAL included",
        number(median(&shares))
    );
    Ok(vec![
        BoundFinding::beside("stored by the incremental", "MB", GoodSide::AtMost, stored)
            .by("1.25 × zstd-1 of the changed blocks + 0.15 % of the cluster")
            .noting(note.clone()),
        BoundFinding::within("time, against a full backup", "×", GoodSide::AtMost, 0.5, &times).noting(note),
    ])
}
