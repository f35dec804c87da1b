//! `deep-restore`: a restore of the last of many increments, against that of a full backup of the same state; and what the
//! repository holds when all others are expired.

use super::finding::BoundFinding;
use super::load;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::figures::{GoodSide, number};
use crate::place::StoreKind;
use crate::stats::median;

/// How deep.
const DAYS: u32 = 20;

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let server = EndedServer::of_data_set(scene);
    load::prepare_days(&server);
    server.settle();
    let keeps_one = Settings { keeps_one: true, ..Settings::default() };
    let deep = OurRepository::of(scene, StoreKind::Local, keeps_one, server.cluster())?;
    deep.backup(scene, server.cluster(), "full", 0)?;
    let mut held = deep.stored(scene);
    let mut added = Vec::new();
    for day in 1..=DAYS {
        load::day(&server, day, scene.size);
        server.settle();
        deep.backup(scene, server.cluster(), "incremental", day)?;
        let now = deep.stored(scene);
        added.push((now - held) as f64);
        held = now;
    }
    let fresh = OurRepository::of(scene, StoreKind::Local, Settings::default(), server.cluster())?;
    fresh.backup(scene, server.cluster(), "full", DAYS + 1)?;
    let live = fresh.stored(scene) as f64;

    let mut times = Vec::new();
    for round in 0..=scene.rounds {
        let restore = |scene: &mut KeepingBed<'_>, of_deep: bool| {
            let (what, repository) =
                if of_deep { ("restore, deep", &deep) } else { ("restore, fresh", &fresh) };
            let seen = repository.restore(scene, false, what, round)?;
            Ok::<f64, String>(seen.report.seconds)
        };
        let deep_first = round.is_multiple_of(2);
        let (first, second) = (restore(scene, deep_first)?, restore(scene, !deep_first)?);
        let (of_deep, of_fresh) = if deep_first { (first, second) } else { (second, first) };
        if round > 0 {
            times.push(of_deep / of_fresh);
        }
    }

    // One run announces, the next one deletes.
    for run in 1..=2 {
        deep.agent(scene, "expire", "expire", run)?;
    }
    let (kept, waiting) = kept_and_waiting(&deep.printed()?)?;
    if kept != 1 || waiting != 0 {
        return Err(format!("{kept} backups stayed, and {waiting} objects wait to be deleted"));
    }
    let left = deep.stored(scene) as f64;
    let note = format!(
        "each increment after pgbench on random accounts and an application's day (random keys, documents, imports, a partition that \
         comes and one that goes, VACUUM FULL now and then): {} % of what a full backup stores ({} MB) each. Before expire the \
         repository holds {}× of it",
        number(median(&added) / live * 100.0),
        number(live / 1e6),
        number(held as f64 / live)
    );
    deep.remove(scene);
    fresh.remove(scene);
    Ok(vec![
        BoundFinding::within("time of the restore, against a fresh full", "×", GoodSide::AtMost, 1.3, &times)
            .noting(note.clone()),
        BoundFinding::within(
            "repository after expire, against a fresh full",
            "×",
            GoodSide::AtMost,
            1.5,
            &[left / live],
        )
        .noting(note),
    ])
}

/// How many backups stay, and how many objects are marked for deletion and not deleted, of what `expire --json` printed.
fn kept_and_waiting(printed: &serde_json::Value) -> Result<(usize, u64), String> {
    let repository = &printed["repositories"][0];
    let (backups, classes) = (repository["backups"].as_array(), repository["classes"].as_array());
    let (Some(backups), Some(classes)) = (backups, classes) else {
        return Err(format!("expire printed {printed}"));
    };
    let kept = backups.iter().filter(|backup| backup["decision"] != "expire").count();
    let waiting = classes.iter().filter_map(|class| class["pending_count"].as_u64()).sum();
    Ok((kept, waiting))
}
