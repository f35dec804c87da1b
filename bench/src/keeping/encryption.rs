//! `encryption`: the same work on a repository that is encrypted and on one that is not, in turn.

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::figures::GoodSide;
use crate::place::StoreKind;

/// What is measured, in order.
const WORK: [&str; 3] = ["archive", "backup", "restore"];

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let server = EndedServer::of_data_set(scene);
    let mut ratios: [Vec<f64>; 3] = Default::default();
    for round in 0..=scene.rounds {
        // Nobody is always the first.
        let encrypted_first = round.is_multiple_of(2);
        let mut times = [[0.0; 3]; 2];
        for encrypted in [encrypted_first, !encrypted_first] {
            times[usize::from(encrypted)] = once(scene, &server, encrypted, round)?;
        }
        if round > 0 {
            for (n, all) in ratios.iter_mut().enumerate() {
                all.push(times[1][n] / times[0][n]);
            }
        }
    }
    let findings = WORK.iter().zip(&ratios).map(|(work, ratios)| {
        BoundFinding::within(&format!("time to {work}, against none"), "×", GoodSide::AtMost, 1.1, ratios)
            .noting("to a directory and from it; the key is in a file")
    });
    Ok(findings.collect())
}

/// Seconds of archiving, of a backup, of its restore.
fn once(
    scene: &mut KeepingBed<'_>,
    server: &EndedServer,
    encrypted: bool,
    round: u32,
) -> Result<[f64; 3], String> {
    let settings = Settings { encrypted, ..Settings::default() };
    let what = |work: &str| format!("{work}{}", if encrypted { ", encrypted" } else { "" });
    let [archive, backup, restore] = WORK.map(what);

    let wal = scene.data.wal.clone();
    let repository = OurRepository::make(scene, StoreKind::Local, settings, &wal, None)?;
    let segments = scene.data.segments();
    let archived = repository.archive(scene, segments, &archive, round)?.report.seconds;
    repository.remove(scene);

    server.settle();
    let repository = OurRepository::of(scene, StoreKind::Local, settings, server.cluster())?;
    let backed_up = repository.backup(scene, server.cluster(), &backup, round)?.report.seconds;
    let restored = repository.restore(scene, false, &restore, round)?.report.seconds;
    repository.remove(scene);
    Ok([archived, backed_up, restored])
}
