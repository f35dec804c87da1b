//! One stream, from its start to the end of its timeline, of the connection or of the server.
//!
//! Nothing in the loop waits for a store: what is stored is a future beside the others, so signs of life are answered while stores hang.
//! Where too much waits to be stored nothing more is read, and the server keeps the rest. If that lasts, what comes is read and discarded: a
//! server that cannot send cannot end the connection either, and its checkpoints wait for that where the slot is to lose WAL
//! (`max_slot_wal_keep_size`). The next session begins with what is not stored.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use walpoint_base::{Lsn, PgTimestamp, SegmentSize};
use walpoint_pg::wal_stream::{StreamEvent, WalPiece, WalStream};
use walpoint_repo::wal::slices::SliceName;
use walpoint_runtime::human;

use super::NextStart;
use super::merge::Merging;
use super::segment::OpenSegment;
use super::store::{BegunBefore, Merges, SliceStore, Storing};
use crate::wal::{disk, identity, postmaster};

/// Slices that are stored at the same time.
const SLICES: usize = 2;
/// Whole segments that are stored at the same time.
const WHOLES: usize = 4;
/// So many bytes wait in memory at the most, but for one message.
const WAITING: usize = 8 << 20;

/// How often to look after the server, and to give a sign of life.
const LOOK: Duration = Duration::from_secs(2);

/// The server may be so long behind what is stored: a standby is.
const AWAITED: Duration = Duration::from_secs(30);

/// Nothing more is read for so long, at most.
const UNREAD: Duration = Duration::from_secs(10);

/// Nothing is done more often than this.
const SHORTEST: Duration = Duration::from_millis(10);

/// A server that is stopping waits so long for what cannot be stored.
const WHILE_STOPPING: Duration = Duration::from_secs(10);

/// How a session streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Slices are stored at once, not every `flush_interval`.
    pub(super) synchronous: bool,
    pub(super) flush_interval: Duration,
    /// How long either side may be silent.
    pub(super) silence: Duration,
    /// So many bytes may wait for the stream in the server.
    pub(super) most: Option<u64>,
}

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// All of its timeline is stored that is not the next one's as well.
    Timeline(NextStart),
    /// The server shuts down.
    Shutdown,
    /// Another connection is worth a try.
    Behind,
    /// Others have stored of the segment that begins there: the next session compares that.
    Begun(NextStart),
}

/// A stream and what was received of it.
pub(super) struct Session {
    stream: WalStream,
    store: Arc<SliceStore>,
    rules: Rules,
    size: SegmentSize,
    /// A hasher for each repository.
    empty: Vec<blake3::Hasher>,
    segment: OpenSegment,
    /// Slices of earlier sessions that the open segment holds, for each repository.
    earlier: Vec<Vec<SliceName>>,
    /// Slices of the open segment. Empty while `wholes` is not.
    slices: Storing,
    /// Slices of the open segment that become one, and those that are being put in the place of others: one at a time.
    merging: Merging,
    merges: Merges,
    wholes: Storing,
    /// Every byte before this is stored.
    durable: Lsn,
    /// The end of WAL on the server, as it said last.
    server_end: Lsn,
    next: Option<NextStart>,
    /// Whether it was reported that `pg_wal` cannot be read.
    unreadable: bool,
    heard: Instant,
    began: Instant,
    stopping: Option<Instant>,
    /// Since when nothing more was read.
    unread: Option<Instant>,
    /// Whether what comes is discarded.
    discards: bool,
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Session {
    pub(super) fn new(
        mut stream: WalStream,
        store: SliceStore,
        (segment, empty): (OpenSegment, Vec<blake3::Hasher>),
        (size, earlier): (SegmentSize, Vec<Vec<SliceName>>),
        rules: Rules,
    ) -> Self {
        // Whether the server is silent is looked at here.
        stream.set_silence_limit(rules.silence.saturating_mul(4));
        Self {
            durable: segment.position,
            server_end: segment.position,
            stream,
            store: Arc::new(store),
            rules,
            size,
            empty,
            segment,
            earlier,
            slices: Storing::new(),
            merging: Merging::default(),
            merges: Merges::new(),
            wholes: Storing::new(),
            next: None,
            unreadable: false,
            heard: Instant::now(),
            began: Instant::now(),
            stopping: None,
            unread: None,
            discards: false,
        }
    }

    /// Streams to the end. An error ends the connection; what is stored stays.
    pub(super) async fn run(mut self) -> anyhow::Result<Ended> {
        let (mut flush, mut look) = (
            ticks(self.rules.flush_interval.max(SHORTEST)),
            ticks(LOOK.min(self.rules.silence / 4).max(SHORTEST)),
        );
        (self.store.reports.working)();
        loop {
            if let Some(next) = self.next.filter(|_| self.wholes.is_empty() && self.slices.is_empty()) {
                return Ok(Ended::Timeline(next));
            }
            tokio::select! {
                event = self.stream.next(), if self.discards || self.has_room() => {
                    if let Some(ended) = self.take(event?).await? {
                        return Ok(ended);
                    }
                }
                Some(stored) = self.slices.next(), if !self.slices.is_empty() => {
                    if let Some(ended) = self.begun(&stored) {
                        return Ok(ended);
                    }
                    self.advance(stored?).await?;
                }
                Some(merges) = self.merges.next(), if !self.merges.is_empty() => self.merged(merges),
                Some(stored) = self.wholes.next(), if !self.wholes.is_empty() => {
                    if let Some(ended) = self.begun(&stored) {
                        return Ok(ended);
                    }
                    self.advance(stored?).await?;
                }
                _ = flush.tick() => self.flush(),
                _ = look.tick() => {
                    if let Some(ended) = self.look().await? {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// The end of the session, if others have stored of a segment of which it has stored nothing, or some more since.
    fn begun(&self, stored: &anyhow::Result<Lsn>) -> Option<Ended> {
        let BegunBefore { segment } = stored.as_ref().err()?.downcast_ref()?;
        let switch = segment.number(self.size)?.start(self.size);
        Some(Ended::Begun(NextStart { timeline: segment.timeline, switch }))
    }

    /// Whether more may be read.
    fn has_room(&self) -> bool {
        self.next.is_none() && self.wholes.len() < WHOLES && self.segment.waiting() < WAITING
    }

    async fn take(&mut self, event: StreamEvent) -> anyhow::Result<Option<Ended>> {
        self.heard = Instant::now();
        match event {
            StreamEvent::Wal(WalPiece { server_end, .. }) if self.discards => {
                self.server_end = self.server_end.max(server_end);
            }
            StreamEvent::TimelineEnd(_) if self.discards => return Ok(Some(Ended::Behind)),
            StreamEvent::Wal(WalPiece { bytes, server_end, .. }) => {
                self.unread = None;
                self.server_end = self.server_end.max(server_end);
                self.add(&bytes)?;
                if self.rules.synchronous || self.segment.has_full() {
                    self.flush();
                }
            }
            StreamEvent::Keepalive(alive) => {
                self.server_end = self.server_end.max(alive.server_end);
                if alive.wants_reply {
                    self.flush();
                    self.report(false).await?;
                }
            }
            StreamEvent::TimelineEnd(next) => {
                // What the open segment holds of it begins the next timeline's segment, too.
                self.next = Some(NextStart { timeline: next.timeline, switch: next.switch });
            }
            StreamEvent::ServerShutdown => return Ok(Some(Ended::Shutdown)),
        }
        Ok(None)
    }

    fn add(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            let (rest, durable) = self.segment.add(bytes)?;
            if let Some(durable) = durable {
                self.durable = self.durable.max(durable);
            }
            bytes = rest;
            if self.segment.is_complete() {
                self.complete();
            }
        }
        if self.server_end >= self.segment.end {
            // The rest of the segment is on its way.
            self.segment.skip();
        }
        Ok(())
    }

    /// The open segment was received to its end: it is stored as a whole, and the next one is open.
    fn complete(&mut self) {
        let (end, timeline) = (self.segment.end, self.segment.name.timeline);
        let next = OpenSegment::at(end, timeline, self.size, self.empty.clone(), None);
        let done = std::mem::replace(&mut self.segment, next);
        self.merging.clear();
        let under_way = (std::mem::take(&mut self.slices), std::mem::take(&mut self.merges));
        let earlier = std::mem::take(&mut self.earlier);
        let whole = Arc::clone(&self.store).whole((done.name, end), done.hashes(), under_way, earlier);
        self.wholes.push_back(Box::pin(whole));
    }

    /// Begins to store what waits.
    fn flush(&mut self) {
        if !self.wholes.is_empty() || self.next.is_some() {
            return;
        }
        while self.slices.len() < SLICES
            && let Some(slice) = self.segment.take()
        {
            self.merging.begins(&slice);
            self.slices.push_back(Box::pin(Arc::clone(&self.store).slice(slice)));
        }
    }

    /// Puts one slice in the place of many, if many are stored.
    fn merge(&mut self) {
        if self.merges.is_empty()
            && let Some(merged) = self.merging.is_stored(self.durable)
        {
            self.merges.push_back(Box::pin(Arc::clone(&self.store).merge(merged)));
        }
    }

    /// Notes that one slice is in the place of many, or that these stay; `merges`: whether others may be replaced.
    fn merged(&mut self, merges: bool) {
        if !merges {
            self.merging.stop();
        }
        self.merge();
    }

    /// Notes up to where all is stored, and tells the server.
    async fn advance(&mut self, durable: Lsn) -> anyhow::Result<()> {
        self.durable = self.durable.max(durable);
        self.merge();
        (self.store.reports.working)();
        if self.rules.synchronous || self.segment.has_full() {
            self.flush();
        }
        self.report(false).await
    }

    async fn report(&mut self, wants_reply: bool) -> anyhow::Result<()> {
        if self.next.is_none() {
            let now = PgTimestamp::from_time(jiff::Timestamp::now());
            self.stream.report(self.durable, now, wants_reply).await?;
        }
        Ok(())
    }

    /// Looks in `pg_wal` where the newest segment begins, if that matters: while nothing is read, the server says nothing of its end.
    async fn look_for_end(&mut self) {
        if self.rules.most.is_none() {
            return;
        }
        let wal = self.store.archiver.uploader().wal_directory();
        match identity::newest_begun(&wal, self.segment.name.timeline, self.size).await {
            Ok(newest) => {
                let begin = newest.map_or(Lsn::INVALID, |newest| newest.start(self.size));
                self.server_end = self.server_end.max(begin);
            }
            Err(error) if !std::mem::replace(&mut self.unreadable, true) => tracing::warn!(
                "it is not known how much WAL waits for the stream, so queue_max does not count meanwhile: {}",
                walpoint_words::error(&error)
            ),
            Err(_) => {}
        }
    }

    /// Reports that others have stored more of the segment than this server has of it, if that lasts.
    fn looks_behind(&self) {
        let awaited = self.segment.awaits().filter(|end| self.server_end < *end);
        let Some(end) = awaited.filter(|_| self.began.elapsed() > AWAITED) else { return };
        (self.store.reports.failing)(&format!(
            "segment {} is stored up to {end}, and the WAL of this server ends before, at {}: another server wrote it, this data \
             directory was reset to an earlier state, or it is a standby that has not received it yet: nothing more of it is stored\nHINT: \
             \"archive-agent check\" shows more. If this server is a copy, give it a lineage of its own (archive-agent init \
             --new-lineage).",
            self.segment.name, self.server_end
        ));
    }

    /// Notes whether nothing more is read.
    fn is_unread(&mut self, unread: bool) {
        if !unread {
            self.unread = None;
        } else if self.unread.get_or_insert_with(Instant::now).elapsed() > UNREAD && !self.discards {
            self.discards = true;
            tracing::warn!(
                "WAL from {} on cannot be stored: what the server sends is discarded meanwhile, and streamed again when the store \
                 takes it",
                self.durable
            );
        }
    }

    /// Gives a sign of life, and looks whether the connection is worth keeping.
    async fn look(&mut self) -> anyhow::Result<Option<Ended>> {
        let silent = self.heard.elapsed();
        if self.has_room() && silent > self.rules.silence {
            tracing::warn!("the server has been silent for {}: connecting again", human::span(silent));
            return Ok(Some(Ended::Behind));
        }
        let has_room = self.has_room();
        if has_room && self.discards {
            tracing::info!(from = %self.durable, "streaming WAL again that could not be stored");
            return Ok(Some(Ended::Behind));
        }
        self.looks_behind();
        self.is_unread(!has_room && self.next.is_none());
        if !has_room {
            self.heard = Instant::now();
        }
        // The disk may be slow.
        self.report(silent > self.rules.silence / 2).await?;
        if !has_room {
            self.look_for_end().await;
        }
        let lag = self.server_end.since(self.durable);
        if self.rules.most.is_some_and(|most| lag > most) {
            tracing::warn!(
                "{} of WAL wait to be stored, more than queue_max: the stream ends",
                human::size(lag)
            );
            return Ok(Some(Ended::Behind));
        }
        let pgdata = self.store.archiver.uploader().pgdata().to_owned();
        let directory = pgdata.clone();
        let stops = lag > 0
            && disk::look(&pgdata, move || postmaster::is_stopping(&directory)).await.unwrap_or(false);
        if !stops {
            self.stopping = None;
            return Ok(None);
        }
        if self.stopping.get_or_insert_with(Instant::now).elapsed() < WHILE_STOPPING {
            return Ok(None);
        }
        tracing::warn!(
            "the server is shutting down and waits for the stream, which ends: WAL from {} to {} cannot be stored\nDETAIL: The server \
             keeps that WAL. Streaming continues there when it is started again.",
            self.durable,
            self.server_end
        );
        Ok(Some(Ended::Shutdown))
    }
}
