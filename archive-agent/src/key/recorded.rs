//! What a change of the keys puts on record as evidence: the numbers of the slots, and nothing of the secrets.

use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;
use walpoint_words::recording;

use super::KeyDocument;
use crate::evidence::draft;

/// Records what was changed, in the chain of the selected cluster. The repository was opened before: afterwards the configured secret
/// may open it no more.
pub(super) async fn changed(
    common: &CommonArgs,
    repository: &Result<Repository, RepoError>,
    changed: &KeyDocument,
) {
    let added = changed.added_slot.map(|slot| format!("slot {slot} added"));
    let removed = changed.removed_slot.map(|slot| format!("slot {slot} removed"));
    let scenario = added.into_iter().chain(removed).collect::<Vec<_>>().join(", ");
    let said = Draft { scenario: Some(scenario), ..draft(Kind::KeyChange, Outcome::Success) };
    // It was selected a moment ago.
    let Ok(selection) = common.select::<StoreSettings>() else { return };
    match repository {
        Ok(repository) => recording::append(repository, &selection, &said).await,
        Err(error) if selection.settings.evidence => recording::warn(&changed.repository, &said, error),
        Err(_) => {}
    }
}
