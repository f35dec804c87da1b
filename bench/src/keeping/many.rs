//! `many-files`: a full backup and a restore of very many small relations, against the same bytes in few files.

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::relations::Pair;
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::bed;
use crate::figures::{GoodSide, number};
use crate::place::{StoreKind, bytes_below};

const RELATIONS: u32 = 200_000;
const RELATIONS_QUICK: u32 = 10_000;

/// Seconds of both in one round.
struct Round {
    backup: f64,
    restore: f64,
}

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let relations = if scene.is_quick() { RELATIONS_QUICK } else { RELATIONS };
    let pair = Pair::make(scene, relations).map_err(|e| format!("making files: {e}"))?;
    let (mut backups, mut restores, mut memory) = (Vec::new(), Vec::new(), [0u64; 2]);
    for round in 0..=scene.few_rounds() {
        let mut of = |scene: &mut KeepingBed<'_>, many: bool| {
            let (what, server) = if many { ("many files", &pair.many) } else { ("few files", &pair.few) };
            let (times, peaks) = once(scene, server, what, pair.bytes, round)?;
            if many {
                memory = [memory[0].max(peaks[0]), memory[1].max(peaks[1])];
            }
            Ok::<Round, String>(times)
        };
        let many_first = round.is_multiple_of(2);
        let first = of(scene, many_first)?;
        let second = of(scene, !many_first)?;
        let (many, few) = if many_first { (first, second) } else { (second, first) };
        if round > 0 {
            backups.push(many.backup / few.backup);
            restores.push(many.restore / few.restore);
        }
    }
    let note = format!(
        "{} MB in {} files named as relations in one database, of 8 KiB (40 %), 16 KiB (30 %), 32 KiB (20 %) and 64 KiB (10 %) \
         with real pages, which the catalog does not know; against the same in files of 1 GiB. To a directory and back",
        number(pair.bytes as f64 / 1e6),
        pair.files
    );
    let mib = |bytes: u64| bytes as f64 / (1u64 << 20) as f64;
    let limit = 128e6 / (1u64 << 20) as f64;
    let resident = |what: &str, bytes: u64| {
        BoundFinding::within(what, "MiB", GoodSide::AtMost, limit, &[mib(bytes)]).by("128 MB")
    };
    Ok(vec![
        BoundFinding::within("time of the backup, against few files", "×", GoodSide::AtMost, 1.5, &backups)
            .noting(note.clone()),
        BoundFinding::within("time of the restore, against few files", "×", GoodSide::AtMost, 1.5, &restores)
            .noting(note.clone()),
        resident("resident memory of the backup", memory[0]).noting(note.clone()),
        resident("resident memory of the restore", memory[1]).noting(note),
    ])
}

/// A backup and a restore; how long, and the peak memory of both.
fn once(
    scene: &mut KeepingBed<'_>,
    server: &EndedServer,
    what: &str,
    bytes: u64,
    round: u32,
) -> Result<(Round, [u64; 2]), String> {
    server.settle();
    let repository = OurRepository::of(scene, StoreKind::Local, Settings::default(), server.cluster())?;
    let backup = repository.backup(scene, server.cluster(), &format!("backup, {what}"), round)?;
    let restore = repository.restore(scene, false, &format!("restore, {what}"), round)?;
    repository.remove(scene);
    let restored = bytes_below(&bed::target(scene.work));
    if restored < bytes {
        return Err(format!("{restored} bytes were restored of {bytes}"));
    }
    let memory = [backup.peak("archive-agent")?, restore.peak("restore-agent")?];
    Ok((Round { backup: backup.report.seconds, restore: restore.report.seconds }, memory))
}
