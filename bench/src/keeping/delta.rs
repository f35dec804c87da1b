//! `delta-restore`: a repair of a directory with some damaged blocks, against the restore that made it.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::damage::Spoiled;
use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::bed;
use crate::figures::GoodSide;
use crate::place::StoreKind;

/// The part of the blocks that is damaged.
const SHARE: f64 = 0.01;

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let server = EndedServer::of_data_set(scene);
    server.settle();
    let repository = OurRepository::of(scene, StoreKind::Local, Settings::default(), server.cluster())?;
    repository.backup(scene, server.cluster(), "full", 0)?;
    let target = bed::target(scene.work);
    let io = |e: std::io::Error| format!("damaging blocks: {e}");
    let (mut times, mut random) = (Vec::new(), StdRng::seed_from_u64(20));
    for round in 0..=scene.rounds {
        let full = repository.restore(scene, false, "restore", round)?;
        let damage = Spoiled::make(&target, SHARE, &mut random).map_err(io)?;
        let delta = repository.restore(scene, true, "restore --delta", round)?;
        if !damage.is_repaired().map_err(io)? {
            return Err(format!("not all of {} damaged blocks were repaired", damage.blocks()));
        }
        eprintln!("{}: round {round}: {} of {} blocks", scene.row, damage.blocks(), damage.of);
        if round > 0 {
            times.push(delta.report.seconds / full.report.seconds);
        }
    }
    repository.remove(scene);
    Ok(vec![
        BoundFinding::within("time, against a restore into an empty directory", "×", GoodSide::AtMost, 0.35, &times).noting(
            "each whole block of the relations is overwritten by random bytes with a likelihood of 1 %; afterwards all are \
             what they were",
        ),
    ])
}
