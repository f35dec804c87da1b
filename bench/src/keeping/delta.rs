//! `delta-restore`: a repair of a directory with some damaged blocks, against the restore that made it.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::damage::Damage;
use super::finding::Finding;
use super::ground::Ground;
use super::ours::{Repository, Settings};
use super::server::Server;
use crate::bed;
use crate::figures::Side;
use crate::place::StoreKind;

/// The part of the blocks that is damaged.
const SHARE: f64 = 0.01;

pub(super) fn measure(ground: &mut Ground<'_>) -> Result<Vec<Finding>, String> {
    let server = Server::of_data_set(ground);
    server.settle();
    let repository = Repository::of(ground, StoreKind::Local, Settings::default(), server.cluster())?;
    repository.backup(ground, server.cluster(), "full", 0)?;
    let target = bed::target(ground.work);
    let io = |e: std::io::Error| format!("damaging blocks: {e}");
    let (mut times, mut random) = (Vec::new(), StdRng::seed_from_u64(20));
    for round in 0..=ground.rounds {
        let full = repository.restore(ground, false, "restore", round)?;
        let damage = Damage::make(&target, SHARE, &mut random).map_err(io)?;
        let delta = repository.restore(ground, true, "restore --delta", round)?;
        if !damage.is_repaired().map_err(io)? {
            return Err(format!("not all of {} damaged blocks were repaired", damage.blocks()));
        }
        eprintln!("{}: round {round}: {} of {} blocks", ground.row, damage.blocks(), damage.of);
        if round > 0 {
            times.push(delta.report.seconds / full.report.seconds);
        }
    }
    repository.remove(ground);
    Ok(vec![
        Finding::within("time, against a restore into an empty directory", "×", Side::AtMost, 0.35, &times).noting(
            "each whole block of the relations is overwritten by random bytes with a likelihood of 1 %; afterwards all are \
             what they were",
        ),
    ])
}
