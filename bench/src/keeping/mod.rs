//! The second table: speed and size of what only we are compared with, ourselves or a computed bound. Incremental backups,
//! very many files, restores deep in a chain, `verify`, encryption.
//!
//! | module | owns |
//! |---|---|
//! | [`scene`] | what a row is measured in |
//! | [`ours`] | a repository of ours, and what is done with it |
//! | [`server`] | a running cluster that a row may change |
//! | [`load`] | what happens to it between two backups |
//! | [`changed`] | exactly the blocks that differ between two copies, and what zstd makes of them |
//! | [`relations`] | clusters of very many files, and of the same bytes in few |
//! | [`damage`] | spoiled blocks |
//! | [`finding`], [`table`] | bounds, and how they are written down |
//! | `uniform`, `idle`, `puts`, `many`, `deep`, `delta`, `verify`, `encryption`, `drill`, `events`, `evidence` | a row each |
//!
//! Variants that are compared are measured in turn in each round, another one first each time; a ratio is that of one
//! round. What a row leaves, in whatever way it ends, goes with the working directory's `run`.

pub mod changed;
pub mod damage;
pub mod finding;
pub mod load;
pub mod ours;
pub mod relations;
pub mod scene;
pub mod server;
pub mod table;

mod deep;
mod delta;
mod drill;
mod encryption;
mod events;
mod evidence;
mod idle;
mod many;
mod puts;
mod uniform;
mod verify;

use self::finding::BoundFinding;
use self::scene::KeepingBed;
use crate::data::Data;
use crate::place::Stores;
use crate::run::RunPlan;
use crate::tools::Tool;
use crate::work::WorkDirectory;

/// A row of the second table.
#[derive(Debug, Clone, Copy)]
pub struct KeepingRow {
    /// How it is called.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    measure: fn(&mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String>,
}

/// All rows, in the order in which they are measured: last those that leave very many files to be removed.
pub const ROWS: [KeepingRow; 11] = [
    KeepingRow {
        name: "incremental-uniform",
        title: "Incremental backup after uniform updates of a twentieth of the blocks",
        measure: uniform::measure,
    },
    KeepingRow { name: "full-puts", title: "PUTs of a full backup to S3", measure: puts::measure },
    KeepingRow { name: "deep-restore", title: "Restore 20 increments deep", measure: deep::measure },
    KeepingRow {
        name: "delta-restore",
        title: "restore --delta over a directory with one damaged block in a hundred",
        measure: delta::measure,
    },
    KeepingRow { name: "verify-full", title: "Full verify of a directory", measure: verify::measure },
    KeepingRow {
        name: "encryption",
        title: "Archiving, backup and restore with encryption against without",
        measure: encryption::measure,
    },
    KeepingRow { name: "drill", title: "A restore drill", measure: drill::measure },
    KeepingRow { name: "events", title: "What happened, from archived WAL", measure: events::measure },
    KeepingRow { name: "evidence", title: "A chain of 100,000 records", measure: evidence::measure },
    KeepingRow {
        name: "many-files",
        title: "Backup and restore of 200,000 relations of 8 to 64 KiB",
        measure: many::measure,
    },
    KeepingRow {
        name: "incremental-idle",
        title: "Incremental backup of an idle cluster",
        measure: idle::measure,
    },
];

/// The row of that name.
pub fn find(name: &str) -> Option<KeepingRow> {
    ROWS.into_iter().find(|row| row.name == name)
}

/// Measures the plan's rows of this table; what failed is told in `left_out`.
pub fn run(
    plan: &RunPlan,
    work: &WorkDirectory,
    data: &Data,
    stores: &mut Stores,
    ours: &Tool,
    left_out: &mut Vec<String>,
) -> Vec<BoundFinding> {
    let mut all = Vec::new();
    for row in &plan.keeping {
        let mut scene = KeepingBed {
            work,
            data,
            stores: &mut *stores,
            ours,
            rounds: plan.rounds,
            size: plan.size,
            row: row.name,
            foreign: Vec::new(),
        };
        let begun = std::time::Instant::now();
        match (row.measure)(&mut scene) {
            Ok(findings) => {
                let foreign = scene.foreign_share();
                all.extend(findings.into_iter().map(|found| BoundFinding {
                    row: row.name,
                    foreign,
                    ..found
                }));
            }
            Err(problem) => {
                eprintln!("{}: {problem}", row.name);
                left_out.push(format!("{}: {problem}", row.name));
            }
        }
        eprintln!("{}: {:.0} s in all", row.name, begun.elapsed().as_secs_f64());
        work.remove("run");
    }
    all
}
