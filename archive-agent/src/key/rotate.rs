//! `key rotate`: a new secret in the place of the configured one.
//!
//! The new slot is made and proven before the old one goes. The master key stays, so no data is touched, and whoever had the
//! old secret and a copy of its slot can still have it: see `docs/security.md`.

use anyhow::anyhow;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_storage::keys::Removal;

use super::{KeyDocument, New, Open, recorded, tell};

/// Runs the command.
pub(super) async fn run(common: &CommonArgs, new: &New) -> Result<(), Failure> {
    let open = Open::of(common).await?;
    if new.secret.source()?.as_ref() == Some(&open.source) {
        return Err(Failure::usage(anyhow!(
            "the configuration already names the {}\nHINT: Keep the new secret in a different place than \
             the old one.",
            open.source
        )));
    }
    let source = new.secret.new_source()?;
    let old = open.slots.open(&open.source).await?;
    if open.slots.proves(old.slot, &source).await.unwrap_or(false) {
        return Err(anyhow!("the new secret is the old one: it already opens slot {}", old.slot).into());
    }
    let added = open.slots.add(&old.master, &source, &new.comment).await?;
    let removed = match open.slots.remove(old.slot, Some(added)).await? {
        Removal::Removed => Some(old.slot),
        Removal::PutBack => {
            return Err(anyhow!(
                "another process has just removed slot {added}\nDETAIL: Slot {} was put back.",
                old.slot
            )
            .into());
        }
    };
    let changed = KeyDocument {
        repository: open.name,
        added_slot: Some(added),
        secret_source: Some(source.to_string()),
        configuration: Some(new.secret.lines()),
        removed_slot: removed,
        proven_slot: Some(added),
    };
    recorded::changed(common, &Ok(open.repository), &changed).await;
    tell(common, &changed)
}
