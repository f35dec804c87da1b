//! A spool that cannot be written: its filesystem is full, damaged or read-only, a quota is spent. Recovery does not stop for that.
//! Whoever asks fetches the file directly to where PostgreSQL wants it, which may have room; what waits ahead goes, because the filesystem
//! may be the same; and nothing is fetched into the spool for a while.

use std::time::{Duration, Instant};

use super::Prefetcher;
use crate::wal::archive::FetchResult;

/// How long a spool that cannot be written is left alone.
const PAUSE: Duration = Duration::from_secs(15);

/// That the spool cannot be written.
#[derive(Debug)]
pub(super) struct Outage {
    /// When it is tried again.
    until: Instant,
    why: String,
    /// Whether PostgreSQL's log has it.
    told: bool,
}

impl Outage {
    /// Follows what a transfer came to.
    fn after(earlier: Option<Self>, outcome: &FetchResult, now: Instant) -> Option<Self> {
        match outcome {
            FetchResult::Landed(_) => None,
            FetchResult::Unwritten(why) => {
                let told = earlier.is_some_and(|earlier| earlier.told);
                Some(Self { until: now + PAUSE, why: why.clone(), told })
            }
            _ => earlier,
        }
    }

    /// For how long nothing is fetched into the spool; `None` if that is tried again.
    fn rest(&self, now: Instant) -> Option<Duration> {
        self.until.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }
}

impl Prefetcher {
    /// Learns from what a transfer came to whether the spool can be written.
    pub(super) fn learn_of_spool(&self, outcome: &FetchResult) {
        let mut state = self.state();
        state.outage = Outage::after(state.outage.take(), outcome, Instant::now());
        drop(state);
        if matches!(outcome, FetchResult::Unwritten(_)) {
            self.drop_passed(&[]);
        }
    }

    /// How long the spool is left alone, and why, if it is.
    pub(super) fn outage(&self) -> Option<(Duration, String)> {
        let state = self.state();
        let outage = state.outage.as_ref()?;
        Some((outage.rest(Instant::now())?, outage.why.clone()))
    }

    /// What PostgreSQL's log is to have of a spool that cannot be written: each outage once, empty after that.
    pub(crate) fn untold(&self, why: &str) -> String {
        let mut state = self.state();
        let Some(outage) = state.outage.as_mut() else { return unwritable(why) };
        if std::mem::replace(&mut outage.told, true) { String::new() } else { unwritable(why) }
    }
}

fn unwritable(why: &str) -> String {
    format!(
        "the spool cannot be used: {why}\nDETAIL: Until it can be, WAL is fetched directly, and nothing ahead; recovery is \
         slower.\nHINT: Make room there, or name another directory (spool)."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::archive::Landed;

    #[test]
    fn an_outage_lasts_until_something_lands() {
        let now = Instant::now();
        let full = FetchResult::Unwritten("full".into());
        let outage = Outage::after(None, &full, now).unwrap();
        assert!(!outage.told && outage.rest(now).is_some() && outage.rest(now + PAUSE).is_none());
        let told = Outage { told: true, ..outage };
        let other = FetchResult::Uncertain("down".into());
        let told = Outage::after(Some(told), &other, now + PAUSE).unwrap();
        let again = Outage::after(Some(told), &full, now + PAUSE).unwrap();
        assert!(again.told && again.rest(now + PAUSE).is_some(), "the same outage");
        assert!(Outage::after(Some(again), &FetchResult::Landed(Landed::of(1)), now).is_none());
    }
}
