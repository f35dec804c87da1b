//! What is made sure of before a file is handed to the server: that it is of the lineage that the data directory is bound to by now, and
//! that it continues what the server has, which may have come by streaming since the file was fetched ahead.

use std::sync::Arc;

use walpoint_base::{SegmentName, WalFileName};

use super::{Prefetcher, Slot};

impl Prefetcher {
    /// Forgets everything if the data directory is bound otherwise than when its lineage was looked up. Transfers that are under way are
    /// waited for: what they leave is of the other lineage.
    pub(crate) async fn follow_binding(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if self.has_followed() {
                return self.announce();
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether everything is of the lineage that the data directory is bound to. Starts to forget if not; nothing new is fetched ahead
    /// until that is done.
    fn has_followed(&self) -> bool {
        let mut state = self.state();
        if !state.rebound && !self.archive.is_rebound() {
            return true;
        }
        state.rebound = true;
        if state.slots.values().any(|slot| matches!(slot, Slot::Loading)) {
            return false;
        }
        let names: Vec<WalFileName> = state.slots.drain().map(|(name, _)| name).collect();
        for name in names {
            if let Err(error) = self.spool.remove(name) {
                // No slot stands for it: it is not handed over.
                tracing::warn!("{name} stays in the spool: {error}");
            }
        }
        (state.goal, state.pause) = (None, None);
        self.archive.forget();
        state.rebound = false;
        true
    }

    /// Compares a segment that was fetched ahead with what the server has by now. If it does not continue that, or it cannot be found out,
    /// the segment is fetched anew, and judged by what comes of that.
    pub(crate) async fn check_ahead(self: &Arc<Self>, name: SegmentName) {
        let file = WalFileName::Segment(name);
        if !matches!(self.state().slots.get(&file), Some(Slot::Ready(_))) {
            return;
        }
        let Err(error) = self.archive.admit_again(name).await else { return };
        tracing::debug!("{name} is fetched anew: {}", walpoint_words::format_chain(&error));
        self.state().slots.retain(|known, slot| *known != file || !matches!(slot, Slot::Ready(_)));
    }
}
