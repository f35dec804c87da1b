//! What placing and removing holds puts on record as evidence.

use walpoint_repo::Repository;
use walpoint_repo::evidence::{Kind, Outcome};
use walpoint_repo::holds::{HeldOn, Placement};
use walpoint_runtime::args::Selection;
use walpoint_storage::store::StoreSettings;
use walpoint_words::recording;

use crate::evidence::draft;

/// Records that a hold was placed.
pub(super) async fn placed(
    repository: &Repository,
    selection: &Selection<StoreSettings>,
    number: u64,
    placement: &Placement,
) {
    let until = placement.until.map_or("until it is removed".to_owned(), |until| format!("until {until}"));
    let note = format!("{}, {until}: {}", on(placement), placement.reason);
    record(repository, selection, (format!("hold {number} placed"), note), &placement.who, Some(placement))
        .await;
}

/// Records that a hold was removed; without `placement`, one that could not be read.
pub(super) async fn removed(
    repository: &Repository,
    selection: &Selection<StoreSettings>,
    number: u64,
    who: &str,
    placement: Option<&Placement>,
) {
    let note = placement.map_or("it could not be read".to_owned(), |placement| {
        format!("{}, placed by {}: {}", on(placement), placement.who, placement.reason)
    });
    record(repository, selection, (format!("hold {number} removed"), note), who, placement).await;
}

fn on(placement: &Placement) -> String {
    match &placement.on {
        HeldOn::Backup(id) => format!("on backup {id}"),
        HeldOn::Label(label) => format!("on label \"{label}\""),
    }
}

async fn record(
    repository: &Repository,
    selection: &Selection<StoreSettings>,
    (scenario, note): (String, String),
    who: &str,
    placement: Option<&Placement>,
) {
    let backup = placement.and_then(|placement| match placement.on {
        HeldOn::Backup(id) => Some(id),
        HeldOn::Label(_) => None,
    });
    let said = draft(Kind::Hold, Outcome::Success).by(who).about(backup);
    let said = said.with_scenario(&scenario).with_note(&note);
    recording::append(repository, selection, &said).await;
}
