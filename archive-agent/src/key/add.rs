//! `key add`: one more secret that opens the repository.

use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_storage::keys::KeySlots;

use super::{KeyDocument, New, Open, recorded, tell};

/// Runs the command.
pub(super) async fn run(common: &CommonArgs, new: &New) -> Result<(), Failure> {
    let open = Open::of(common).await?;
    let source = new.secret.new_source()?;
    let slots: &KeySlots = &open.slots;
    // Opened anew: what is remembered in this process proves nothing about the slot.
    let opened = slots.open(&open.source).await?;
    let added = slots.add(&opened.master, &source, &new.comment).await?;
    let changed = KeyDocument {
        repository: open.name,
        added_slot: Some(added),
        secret_source: Some(source.to_string()),
        configuration: Some(new.secret.lines()),
        removed_slot: None,
        proven_slot: Some(opened.slot),
    };
    recorded::changed(common, &Ok(open.repository), &changed).await;
    tell(common, &changed)
}
