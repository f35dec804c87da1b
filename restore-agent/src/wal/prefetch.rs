//! Fetching ahead of PostgreSQL: what it asks for is mostly there already.
//!
//! Invariants: a slot that is [`Slot::Ready`] stands for a whole, verified file in the spool; absence is never answered from
//! memory; the bytes of all transfers together stay below [`MEMORY`]; the spool holds no more than the configured amount
//! ahead of the last request, and nothing behind it. Killed at any moment, this leaves files that the next prefetcher does
//! not believe.

mod handing;
mod outage;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use walpoint_base::{
    Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalDirectory, WalFileName,
};
use walpoint_runtime::config::ClusterSettings;

use self::outage::Outage;
use crate::wal::archive::{ClusterArchive, FetchResult, Landed, Proof};
use crate::wal::atomic_file::Durability;
use crate::wal::branch;
use crate::wal::note::TargetNote;
use crate::wal::pass::Pass;
use crate::wal::route::{Route, Step};
use crate::wal::spool::{self, Spool};

/// Bytes of objects in memory at the same time, over all transfers.
const MEMORY: u64 = 40 << 20;

/// How long the end of the archive is not looked at again ahead of requests, and how long a failed repository is left alone.
const PAUSE: Duration = Duration::from_secs(3);

/// A client takes its file within this time.
const TAKING: Duration = Duration::from_secs(30);

/// Segments of this many times their size have to fit on the spool's filesystem, or nothing is fetched ahead: PostgreSQL
/// needs the space more.
const SPARE_SEGMENTS: u64 = 8;

/// The prefetcher of one data directory.
#[derive(Debug)]
pub(crate) struct Prefetcher {
    archive: ClusterArchive,
    spool: Spool,
    place: WalDirectory,
    note: Option<TargetNote>,
    /// What PostgreSQL asked for just now.
    pass: Pass,
    ahead_bytes: u64,
    transfers: usize,
    memory: Arc<Semaphore>,
    state: Mutex<State>,
    /// Counts changes of the state, for those who wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<WalFileName, Slot>,
    /// The segment that PostgreSQL asked for last.
    position: Option<SegmentName>,
    /// When each file that may still lie in the spool was asked for last.
    asked: HashMap<WalFileName, Instant>,
    /// The newest timeline whose history PostgreSQL has been given, or the note's: where recovery goes.
    goal: Option<TimelineHistory>,
    /// Nothing is fetched ahead at or beyond this segment until then.
    pause: Option<(SegmentNo, Instant)>,
    /// The data directory was bound to another lineage, and transfers of the old one are under way.
    rebound: bool,
    /// The spool cannot be written.
    outage: Option<Outage>,
}

/// What is known about a file.
#[derive(Debug)]
enum Slot {
    /// Being fetched.
    Loading,
    /// Whole and verified in the spool.
    Ready(Landed),
    /// A fetch that a client waits for ended without a file.
    Ended(FetchResult),
}

impl Prefetcher {
    /// A prefetcher that fetches nothing until it is asked.
    pub(crate) fn new(
        archive: ClusterArchive,
        spool: Spool,
        place: WalDirectory,
        settings: &ClusterSettings,
    ) -> Arc<Self> {
        // There a restore leaves it, and whoever fetches one file reads it, wherever the spool lies.
        let note = TargetNote::read(&place.wal.join(spool::DIRECTORY));
        Arc::new(Self {
            archive,
            spool,
            pass: Pass::in_wal(&place.wal),
            place,
            note,
            ahead_bytes: settings.prefetch_max.as_u64(),
            transfers: settings.transfers,
            memory: Arc::new(Semaphore::new(permits(MEMORY))),
            state: Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// The data directory that is served.
    pub(crate) fn place(&self) -> &WalDirectory {
        &self.place
    }

    /// The repositories.
    pub(crate) fn archive(&self) -> &ClusterArchive {
        &self.archive
    }

    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    /// One attempt to have the file in the spool. Takes as long as the repositories do; if it is dropped, the fetch goes on
    /// and a later call finds its result. `ahead`: what follows will be asked for too.
    pub(crate) async fn demand(self: &Arc<Self>, name: WalFileName, ahead: bool) -> FetchResult {
        let mut changes = self.changes.subscribe();
        self.note_request(name, ahead);
        let stale = matches!(self.state().slots.get(&name), Some(Slot::Ended(_)));
        if stale {
            // Found out for a client that did not wait for it: by now it may be wrong.
            self.state().slots.remove(&name);
        }
        loop {
            changes.borrow_and_update();
            if let Some(outcome) = self.look(name) {
                return outcome;
            }
            if changes.changed().await.is_err() {
                return FetchResult::Uncertain("the prefetcher is ending".to_owned());
            }
        }
    }

    /// The outcome if there is one; starts a fetch if none is under way.
    fn look(self: &Arc<Self>, name: WalFileName) -> Option<FetchResult> {
        let outage = self.outage();
        let mut state = self.state();
        match state.slots.get(&name) {
            Some(Slot::Loading) => return None,
            Some(Slot::Ready(landed)) if self.spool.size_of(name) == Some(landed.size) => {
                return Some(FetchResult::Landed(landed.clone()));
            }
            Some(Slot::Ended(_)) => {
                if let Some(Slot::Ended(outcome)) = state.slots.remove(&name) {
                    return Some(outcome);
                }
            }
            // Taken by a client that then died, or removed by another program: fetch it again.
            Some(Slot::Ready(_)) | None => {}
        }
        if let Some((_, why)) = outage {
            state.slots.remove(&name);
            return Some(FetchResult::Unwritten(why));
        }
        state.slots.insert(name, Slot::Loading);
        drop(state);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = this.load(name, Proof::Wanted).await;
            let slot = match outcome {
                FetchResult::Landed(landed) => Slot::Ready(landed),
                other => Slot::Ended(other),
            };
            this.state().slots.insert(name, slot);
            this.announce();
        });
        None
    }

    /// Fetches into the spool within the memory that all transfers share. A panic is an outcome too.
    async fn load(self: &Arc<Self>, name: WalFileName, proof: Proof) -> FetchResult {
        // A transfer holds one object as it is stored, of at most the segment's size or that of a part, and a frame.
        let bytes = self.archive.segment_size().map_or(MEMORY, |size| size.bytes() + (2 << 20));
        let cost = permits(bytes.min(MEMORY));
        let Ok(held) = Arc::clone(&self.memory).acquire_many_owned(u32::try_from(cost).unwrap_or(1)).await
        else {
            return FetchResult::Uncertain("the prefetcher is ending".to_owned());
        };
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            let path = this.spool.path(name);
            let outcome = this.archive.fetch(name, &path, proof, Durability::Readers).await;
            drop(held);
            outcome
        });
        let outcome = task.await.unwrap_or_else(|error| {
            FetchResult::Uncertain(format!("internal error while fetching: {error}"))
        });
        self.learn_of_spool(&outcome);
        outcome
    }

    /// Remembers where PostgreSQL is.
    fn note_request(&self, name: WalFileName, ahead: bool) {
        let mut state = self.state();
        state.asked.insert(name, Instant::now());
        if let (WalFileName::Segment(segment), true) = (name, ahead) {
            state.position = Some(segment);
        }
        drop(state);
        self.announce();
    }

    /// Learns from a history that PostgreSQL was given where recovery goes.
    pub(crate) fn note_history(&self, history: TimelineHistory) {
        let mut state = self.state();
        if state.goal.as_ref().is_none_or(|goal| goal.timeline() < history.timeline()) {
            state.goal = Some(history);
        }
        drop(state);
        self.announce();
    }

    /// Fetches ahead for as long as the process lives.
    pub(crate) async fn run_ahead(self: Arc<Self>) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let waits = self.fetch_ahead().await;
            let woken = tokio::time::timeout(waits.unwrap_or(Duration::MAX), changes.changed()).await;
            if woken.is_ok_and(|changed| changed.is_err()) {
                return;
            }
        }
    }

    /// Starts what can be started. Returns after how long to look again though nothing changes.
    async fn fetch_ahead(self: &Arc<Self>) -> Option<Duration> {
        let position = self.state().position?;
        let size = self.archive.segment_size()?;
        let number = position.number(size)?;
        let depth = usize::try_from(self.ahead_bytes.div_ceil(size.bytes())).unwrap_or(usize::MAX);
        let Some(route) = self.route(position, size).await else { return Some(PAUSE) };
        let steps = route.ahead(number, depth);
        self.drop_passed(&steps);

        let spare = size.bytes().saturating_mul(SPARE_SEGMENTS);
        if self.spool.free_bytes().is_ok_and(|free| free < spare) {
            return Some(PAUSE);
        }
        if let Some((rest, _)) = self.outage() {
            return Some(rest + Duration::from_millis(10));
        }
        let mut state = self.state();
        if state.rebound {
            return None;
        }
        let pause = state.pause.filter(|(_, until)| *until > Instant::now());
        for step in steps {
            let loading = state.slots.values().filter(|slot| matches!(slot, Slot::Loading)).count();
            if loading >= self.transfers || pause.is_some_and(|(from, _)| step.number >= from) {
                break;
            }
            let known = |name: &SegmentName| match state.slots.get(&WalFileName::Segment(*name)) {
                // Taken, and PostgreSQL went back: it will be asked for again.
                Some(Slot::Ready(_)) => self.spool.size_of(WalFileName::Segment(*name)).is_some(),
                slot => slot.is_some(),
            };
            if step.names.is_empty() || step.names.iter().any(known) {
                continue;
            }
            for name in &step.names {
                state.slots.insert(WalFileName::Segment(*name), Slot::Loading);
            }
            let this = Arc::clone(self);
            tokio::spawn(async move { this.load_step(step).await });
        }
        pause.map(|(_, until)| until.saturating_duration_since(Instant::now()) + Duration::from_millis(10))
    }

    /// Fetches a segment under the first of its names that the archive has.
    async fn load_step(self: Arc<Self>, step: Step) {
        let mut landed = None;
        for name in &step.names {
            match self.load(WalFileName::Segment(*name), Proof::NotWanted).await {
                FetchResult::Landed(found) => {
                    landed = Some((*name, found));
                    break;
                }
                FetchResult::Absent(_) => {}
                // Whether PostgreSQL should take an older name is not known.
                FetchResult::Uncertain(_) | FetchResult::Refused(..) | FetchResult::Unwritten(_) => break,
            }
        }
        let mut state = self.state();
        for name in &step.names {
            state.slots.remove(&WalFileName::Segment(*name));
        }
        match landed {
            Some((name, found)) => {
                state.slots.insert(WalFileName::Segment(name), Slot::Ready(found));
            }
            None => {
                let now = Instant::now();
                let earlier = state.pause.filter(|(_, until)| *until > now).map(|(from, _)| from);
                let from = earlier.map_or(step.number, |earlier| earlier.min(step.number));
                state.pause = Some((from, now + PAUSE));
            }
        }
        drop(state);
        self.announce();
    }

    /// The way that recovery takes from `position`, as far as can be known.
    async fn route(&self, position: SegmentName, size: SegmentSize) -> Option<Route> {
        let last = self.note.as_ref().and_then(|note| note.last).and_then(|last| last.number(size));
        let goal = self.state().goal.clone();
        if let Some(goal) = goal.filter(|goal| goal.contains(position.timeline)) {
            return Some(Route::new(goal, size, last));
        }
        let noted = self.note.as_ref().map(|note| note.timeline).filter(|noted| *noted > position.timeline);
        for timeline in noted.into_iter().chain([position.timeline]) {
            let history = self.history(timeline).await?;
            if history.contains(position.timeline) {
                self.state().goal = Some(history.clone());
                return Some(Route::new(history, size, last));
            }
        }
        None
    }

    /// The history of a timeline; that of the first one has no file. `None` if it cannot be had at the moment.
    async fn history(&self, timeline: TimelineId) -> Option<TimelineHistory> {
        if timeline == TimelineId::FIRST {
            return Some(TimelineHistory::root(timeline));
        }
        match self.archive.history(timeline).await {
            Ok(Some(history)) => Some(history),
            Ok(None) => Some(TimelineHistory::root(timeline)),
            Err(_) if self.archive.stays_on(timeline) => Some(TimelineHistory::root(timeline)),
            Err(error) => {
                tracing::debug!(
                    "the history of timeline {timeline} is not known: {}",
                    walpoint_words::format_chain(&error)
                );
                None
            }
        }
    }

    /// Removes from the spool what PostgreSQL has passed: what is neither ahead nor about to be taken by a client.
    fn drop_passed(&self, steps: &[Step]) {
        let ahead = |name: &WalFileName| {
            steps.iter().flat_map(|s| &s.names).any(|n| WalFileName::Segment(*n) == *name)
        };
        let mut state = self.state();
        state.asked.retain(|_, at| at.elapsed() < TAKING);
        let passed: Vec<WalFileName> = state
            .slots
            .iter()
            .filter(|(name, slot)| !matches!(slot, Slot::Loading) && !ahead(name))
            .map(|(name, _)| *name)
            .filter(|name| !state.asked.contains_key(name))
            .collect();
        for name in passed {
            state.slots.remove(&name);
            if let Err(error) = self.spool.remove(name) {
                tracing::warn!("{name} stays in the spool: {error}");
            }
        }
    }

    /// Ends all transfers and cleans the spool up.
    pub(crate) fn close(&self, recovery_is_over: bool) -> std::io::Result<()> {
        self.memory.close();
        self.spool.close(recovery_is_over)
    }

    /// Ends all transfers and leaves nothing in the spool but names.
    pub(crate) fn leave(&self) -> std::io::Result<()> {
        self.memory.close();
        self.spool.empty()
    }

    /// Leaves of a file in the spool what lies before `until`. The next one who asks gets another.
    pub(crate) fn cut(&self, name: SegmentName, until: Lsn) -> std::io::Result<()> {
        let Some(size) = self.archive.segment_size() else { return Ok(()) };
        let name = WalFileName::Segment(name);
        self.state().slots.remove(&name);
        branch::cut(&self.spool.path(name), until, size)
    }

    /// The pass over the timelines in which PostgreSQL asks.
    pub(crate) fn pass(&self) -> &Pass {
        &self.pass
    }

    /// Puts a small file into the spool whose content is known already.
    pub(crate) fn place_known(&self, name: WalFileName, landed: Landed) {
        self.state().slots.insert(name, Slot::Ready(landed));
    }

    fn announce(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The state. A panic elsewhere leaves it usable: every change to it is a single insertion or removal.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory is counted in KiB, which fits the semaphore.
fn permits(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX)
}
