//! The table `[cluster.NAME.stream]`.

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer};
use walpoint_base::{SlotName, span};

/// The most that a flush may wait.
const LONGEST: SignedDuration = SignedDuration::from_mins(10);

/// Whether and how the daemon streams the WAL of the segment that is being written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSettings {
    /// Stream.
    #[serde(default)]
    pub enabled: bool,
    /// The replication slot, which is created if it is not there.
    #[serde(default = "slot", deserialize_with = "read_slot")]
    pub slot: SlotName,
    /// Store what was received at once, for a server that waits for it (`synchronous_standby_names`).
    #[serde(default)]
    pub synchronous: bool,
    /// How long received WAL waits before it is stored, unless `synchronous` is set.
    #[serde(default = "flush_interval", deserialize_with = "span::deserialize")]
    pub flush_interval: SignedDuration,
    /// Stream from a standby, too.
    #[serde(default)]
    pub on_standby: bool,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            slot: slot(),
            synchronous: false,
            flush_interval: flush_interval(),
            on_standby: false,
        }
    }
}

impl StreamSettings {
    /// What its keys contradict: a key, and what is wrong with it.
    pub(super) fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = super::not_above_zero(&[("flush_interval", self.flush_interval)]);
        if self.flush_interval > LONGEST {
            found.push(("flush_interval", "\"flush_interval\" must be at most 10 minutes".to_owned()));
        }
        found
    }
}

fn slot() -> SlotName {
    SlotName::walpoint()
}

fn flush_interval() -> SignedDuration {
    SignedDuration::from_secs(1)
}

fn read_slot<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SlotName, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}
