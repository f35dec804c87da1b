//! The WAL stream of a server, as its replication slot shows it.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{Lsn, SlotName};
use walpoint_pg::server::{Server, ServerError};
use walpoint_runtime::config::StreamSettings;
use walpoint_runtime::human;

/// A stream.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct StreamState {
    /// The replication slot.
    slot: String,
    /// Whether the daemon is connected to it.
    active: bool,
    /// Up to where all WAL is stored. Absent if the slot does not exist or keeps no WAL.
    #[serde(skip_serializing_if = "Option::is_none")]
    durable_lsn: Option<Lsn>,
    /// The size of the WAL written since: what a loss of the server would cost now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_bytes: Option<u64>,
    /// `pg_replication_slots.wal_status`. Absent if the slot does not exist or keeps no WAL.
    #[serde(skip_serializing_if = "Option::is_none")]
    wal_status: Option<String>,
}

impl StreamState {
    /// Asks for the slot of a stream that is switched on. `position`: the end of the server's WAL.
    pub(super) async fn of(
        server: &mut Server,
        settings: Option<&StreamSettings>,
        position: Option<Lsn>,
    ) -> Result<Option<Self>, ServerError> {
        let Some(stream) = settings.filter(|stream| stream.enabled) else { return Ok(None) };
        let slot = server.slot(&stream.slot).await?;
        let durable = slot.as_ref().and_then(|slot| slot.restart);
        Ok(Some(Self {
            slot: SlotName::as_str(&stream.slot).to_owned(),
            active: slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()),
            durable_lsn: durable,
            pending_bytes: position.zip(durable).map(|(position, durable)| position.since(durable)),
            wal_status: slot.and_then(|slot| slot.wal_status),
        }))
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let Some(durable) = self.durable_lsn else {
            return format!(
                "NOT STREAMING: replication slot \"{}\" does not exist or keeps no WAL\nHINT: \"archive-agent health\" shows why.",
                self.slot
            );
        };
        let pending = self.pending_bytes.map(|bytes| format!(", {} of WAL since", human::size(bytes)));
        let stored = format!("all WAL up to {durable} is stored{}", pending.unwrap_or_default());
        match (self.active, self.wal_status.as_deref()) {
            (_, Some("lost")) => format!(
                "NOT STREAMING: the server removed WAL that replication slot \"{}\" needed",
                self.slot
            ),
            (true, _) => stored,
            (false, _) => {
                format!("NOT STREAMING: {stored}\nHINT: \"archive-agent health\" shows why.")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_interrupted_stands_out() {
        let state = StreamState {
            slot: "walpoint".to_owned(),
            active: true,
            durable_lsn: Some(Lsn(0x100_0000)),
            pending_bytes: Some(2048),
            wal_status: Some("reserved".to_owned()),
        };
        assert_eq!(state.text(), "all WAL up to 0/1000000 is stored, 2.0 KiB of WAL since");
        let away = StreamState { active: false, ..state.clone() };
        assert!(
            away.text().starts_with("NOT STREAMING: all WAL up to 0/1000000 is stored"),
            "{}",
            away.text()
        );
        let lost = StreamState { wal_status: Some("lost".to_owned()), ..state.clone() };
        assert!(lost.text().contains("removed WAL"), "{}", lost.text());
        let none = StreamState { durable_lsn: None, ..state };
        assert!(none.text().contains("does not exist"), "{}", none.text());
    }
}
