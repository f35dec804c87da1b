//! `full-puts`: how many objects a full backup writes to S3.

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::figures::{GoodSide, number};
use crate::place::StoreKind;

/// A pack that is worth its request.
const PACK: f64 = 24.0 * (1u64 << 20) as f64;

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let server = EndedServer::of_data_set(scene);
    let (mut all, mut stored) = (Vec::new(), 0);
    // What is counted does not depend on who uses the machine.
    for round in 1..=scene.few_rounds().min(2) {
        server.settle();
        let repository = OurRepository::of(scene, StoreKind::S3, Settings::default(), server.cluster())?;
        let before = repository.stored(scene);
        let seen = repository.backup(scene, server.cluster(), "full", round)?;
        stored = repository.stored(scene) - before;
        eprintln!(
            "{}: round {round}: {:?}, stored {} MB",
            scene.row,
            seen.requests,
            number(stored as f64 / 1e6)
        );
        let writes = |kind: &&str| seen.requests.get(*kind).copied().unwrap_or(0);
        let puts: u64 = ["PUT", "POST"].iter().map(writes).sum();
        all.push((puts as f64, stored as f64 / PACK + 20.0));
        repository.remove(scene);
    }
    Ok(vec![BoundFinding::beside("PUTs", "", GoodSide::AtMost, all).by("stored / 24 MiB + 20").noting(
        format!(
            "{} MB stored, WAL and the daemon's requests meanwhile included",
            number(stored as f64 / 1e6)
        ),
    )])
}
