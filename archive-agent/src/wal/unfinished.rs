//! What could not be copied to a repository: where the next comparison begins, and when.
//!
//! It lasts as long as the process: the next one compares everything.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use walpoint_base::TimelineId;

/// The pauses before everything is compared once more grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(3600));

/// What was tried in vain, up to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    /// The timeline of the last one.
    pub(super) timeline: TimelineId,
    /// The last one, as listings sort it.
    pub(super) file: String,
    /// How many failed.
    pub(super) failures: usize,
    /// What became of the first one.
    pub(super) problem: String,
}

impl Tried {
    /// Whether a file is among those that were tried, or comes before them.
    pub(super) fn covers(&self, timeline: TimelineId, file: &str) -> bool {
        (timeline, file) <= (self.timeline, self.file.as_str())
    }
}

#[derive(Debug, Default)]
struct State {
    /// By the name of the repository that it was to be copied from.
    tried: BTreeMap<String, Tried>,
    /// Why a file could not be read in the comparison that is under way, if it is not known whether that lasts.
    doubt: Option<String>,
    /// When everything is compared once more, and the pause before that.
    again: Option<(Instant, Duration)>,
}

/// What could not be copied to one repository.
#[derive(Debug, Default)]
pub(super) struct Unfinished(Mutex<State>);

impl Unfinished {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the last comparison with a repository ended, if it ended early.
    pub(super) fn tried(&self, source: &str) -> Option<Tried> {
        self.state().tried.get(source).cloned()
    }

    /// A comparison with a repository ended there, or went through everything.
    pub(super) fn set_tried(&self, source: &str, tried: Option<Tried>) {
        let mut state = self.state();
        match tried {
            Some(tried) => drop(state.tried.insert(source.to_owned(), tried)),
            None => drop(state.tried.remove(source)),
        }
    }

    /// A file cannot be read now, and others can.
    pub(super) fn doubts(&self, problem: String) {
        self.state().doubt.get_or_insert(problem);
    }

    /// Why a file could not be read since this was asked last.
    pub(super) fn take_doubt(&self) -> Option<String> {
        self.state().doubt.take()
    }

    /// Files were left: everything is compared once more, after a longer pause each time.
    pub(super) fn is_left(&self) {
        let mut state = self.state();
        let pause = state.again.map_or(PAUSES.0, |(_, pause)| (pause * 2).min(PAUSES.1));
        state.again = Some((Instant::now() + pause, pause));
    }

    /// Nothing is left.
    pub(super) fn completes(&self) {
        self.state().again = None;
    }

    /// When everything is compared once more, if something was left.
    pub(super) fn due(&self) -> Option<Instant> {
        self.state().again.map(|(due, _)| due)
    }

    /// What was left was left of another repository or lineage.
    pub(super) fn forget(&self) {
        *self.state() = State::default();
    }
}
