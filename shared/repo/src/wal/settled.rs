//! Settlements: a person has looked at a history that was refused, and the one that is stored counts from then on; or at a stored one
//! that contradicts an ancestor's, and it counts.
//!
//! `<TLI>.history.settled/<hash>` is a document, created once, for one refused history. Another one that is refused later puts
//! the timeline in doubt again. Nothing that is stored changes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::TimelineId;
use walpoint_storage::descriptor::now;
use walpoint_storage::document::{self, as_text};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::object::ContentHash;

use super::WalArchive;

/// Who settled what, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settlement {
    format: u16,
    /// The timeline that two servers claimed.
    #[serde(with = "as_text")]
    pub timeline: TimelineId,
    /// The history that was refused, or the stored one.
    #[serde(with = "as_text")]
    pub history: ContentHash,
    /// Whether it is the stored one, which counts. One that was refused may have been stored since by who does not compare it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stored: bool,
    /// Why the stored one counts.
    pub reason: String,
    /// Who says so.
    pub who: String,
    /// When.
    pub settled: Timestamp,
}

impl Settlement {
    /// The same about that history by the hash that another repository has for it.
    pub(super) fn about(self, history: ContentHash) -> Self {
        Self { history, ..self }
    }
}

impl WalArchive {
    /// Settles a refused history; what was settled before stays as it is.
    pub async fn settle_history(
        &self,
        timeline: TimelineId,
        history: ContentHash,
        reason: &str,
        who: &str,
    ) -> Result<()> {
        self.settle(timeline, (history, false), reason, who).await
    }

    /// Says that a stored history counts although it contradicts that of an ancestor. `false` if it was settled before as one that was
    /// refused: that stays as it is.
    pub async fn count_history(
        &self,
        timeline: TimelineId,
        history: ContentHash,
        reason: &str,
        who: &str,
    ) -> Result<bool> {
        self.settle(timeline, (history, true), reason, who).await?;
        Ok(self.settlement(timeline, history).await?.is_some_and(|settlement| settlement.stored))
    }

    async fn settle(
        &self,
        timeline: TimelineId,
        (history, stored): (ContentHash, bool),
        reason: &str,
        who: &str,
    ) -> Result<()> {
        let (reason, who, format) =
            (reason.to_owned(), who.to_owned(), walpoint_storage::object::FORMAT_VERSION);
        let settlement = Settlement { format, timeline, history, stored, reason, who, settled: now() };
        self.note_settlement(&settlement).await
    }

    pub(super) async fn note_settlement(&self, settlement: &Settlement) -> Result<()> {
        let key = self.paths().settled_history(settlement.timeline, settlement.history);
        let document = document::seal(Some(self.sealer()), &key, settlement)?;
        match self.store().create_document(&document).await {
            Ok(_) | Err(RepoError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The settlement of a refused history, if there is one.
    pub async fn settlement(&self, timeline: TimelineId, history: ContentHash) -> Result<Option<Settlement>> {
        let key = self.paths().settled_history(timeline, history);
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let settlement: Settlement = document::open(Some(self.sealer()), &key, &bytes)?;
        if (settlement.timeline, settlement.history) != (timeline, history) {
            return Err(RepoError::corrupt(&key, "it is about another history"));
        }
        Ok(Some(settlement))
    }
}
