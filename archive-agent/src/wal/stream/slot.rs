//! The slot of a stream. It keeps WAL that the stream has not reported as durable, and must not hold a server up: where more waits
//! than the configuration allows, it is moved on.

use walpoint_base::{Lsn, SlotName};
use walpoint_pg::server::{Server, ServerError, SlotState, Walsender};

/// SQLSTATEs of a server that has no slot to give: too few (`max_replication_slots`), or none at all (`wal_level`).
const NO_SLOT: [&str; 2] = ["53400", "55000"];

/// What there is of a slot.
#[derive(Debug)]
pub(super) enum Slot {
    /// It keeps WAL from here on, and no process uses it.
    Reserved(Lsn),
    /// The same of one that was made just now: nothing was confirmed with it.
    Created(Lsn),
    /// It keeps no WAL before the first report: it was created without RESERVE_WAL.
    Unreserved,
    /// This process of the server uses it.
    Used(i32),
    /// The server has none to give; why.
    None(String),
}

/// The slot, which is created if it is not there, or has lost its WAL.
pub(super) async fn ensure(
    server: &mut Server,
    walsender: &mut Walsender,
    name: &SlotName,
) -> anyhow::Result<Slot> {
    let mut found = server.slot(name).await?;
    if let Some(lost) = found.as_ref().filter(|slot| slot.physical && slot.is_lost()) {
        if let Some(process) = lost.active_pid {
            return Ok(Slot::Used(process));
        }
        tracing::warn!(
            slot = %name,
            "the server removed WAL that the replication slot needed: creating the slot anew\nDETAIL: Segments that wait in pg_wal \
             are archived all the same.\nHINT: Raise max_slot_wal_keep_size or idle_replication_slot_timeout."
        );
        walsender.drop_slot(name).await?;
        found = None;
    }
    let created = found.is_none();
    if created {
        match walsender.create_slot(name).await {
            Ok(_) => tracing::info!(slot = %name, "created a replication slot"),
            Err(error) if error.sqlstate().is_some_and(|state| NO_SLOT.contains(&state)) => {
                return Ok(Slot::None(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        found = server.slot(name).await?;
    }
    match found {
        Some(SlotState { physical: false, .. }) => {
            anyhow::bail!(
                "replication slot \"{name}\" is a logical one\nHINT: Set \"slot\" in the cluster's [stream] to another name."
            )
        }
        Some(SlotState { active_pid: Some(process), .. }) => Ok(Slot::Used(process)),
        Some(SlotState { restart: Some(restart), .. }) if created => Ok(Slot::Created(restart)),
        Some(SlotState { restart: Some(restart), .. }) => Ok(Slot::Reserved(restart)),
        Some(SlotState { restart: None, .. }) => Ok(Slot::Unreserved),
        None => anyhow::bail!("replication slot \"{name}\" was removed a moment ago"),
    }
}

/// Moves the slot on to a position: the server no longer keeps what lies before it for the stream.
pub(super) async fn give_up(
    server: &mut Server,
    name: &SlotName,
    restart: Lsn,
    to: Lsn,
) -> Result<(), ServerError> {
    if restart < to {
        server.advance_slot(name, to).await?;
        tracing::warn!(slot = %name, from = %restart, %to, "moved the replication slot on, so that the server can remove WAL");
    }
    Ok(())
}
