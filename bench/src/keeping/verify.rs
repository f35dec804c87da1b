//! `verify-full`: how fast every byte of a backup and its WAL is read, opened and checked.

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::figures::{GoodSide, number};
use crate::machine;
use crate::place::StoreKind;

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let server = EndedServer::of_data_set(scene);
    server.settle();
    let repository = OurRepository::of(scene, StoreKind::Local, Settings::default(), server.cluster())?;
    repository.backup(scene, server.cluster(), "full", 0)?;
    let cluster = crate::place::bytes_below(&server.pgdata().join("base"));
    let (mut rates, mut covered) = (Vec::new(), 0);
    for round in 0..=scene.rounds {
        let seen = repository.agent(scene, "verify", "verify", round)?;
        let printed = repository.printed()?;
        let told = &printed["repositories"][0];
        covered = told["verified_bytes"].as_u64().ok_or_else(|| format!("verify printed {printed}"))?;
        if told["finding_count"] != 0 || covered < cluster / 20 * 19 {
            return Err(format!(
                "verify found {}, and verified {covered} bytes of {cluster}",
                told["finding_count"]
            ));
        }
        if round > 0 {
            rates.push(covered as f64 / 1e6 / seen.report.seconds);
        }
    }
    repository.remove(scene);
    Ok(vec![
        BoundFinding::within("bytes verified, before compression", "MB/s", GoodSide::AtLeast, 700.0, &rates).noting(format!(
            "{} MB of files and WAL from a directory that is in the page cache, on {} cores; the time is the command's",
            number(covered as f64 / 1e6),
            machine::cores()
        )),
    ])
}
