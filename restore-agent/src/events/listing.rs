//! The sink of the WAL that is read: which events are shown, and in which order.
//!
//! An event without a time of its own, as a gap, counts as of the time of the last transaction before it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use walpoint_base::{Lsn, PgTimestamp, SegmentName, TimelineId};
use walpoint_pg::wal::SegmentEnd;
use walpoint_pg::wal::events::{EventReader, TransactionEvent, WalEvent};
use walpoint_repo::scan::{Moments, ScanGap, ScanRange, WalSink};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::output;

use super::document::{self, EventsDocument, Head, Summary};
use super::shown::{ShownTransaction, StopOptions};
use super::source::Source;
use super::text;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) moments: Moments,
    /// How many of the largest transactions.
    pub(super) largest: Option<usize>,
    pub(super) json: bool,
}

/// What is shown.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    Transaction(Box<ShownTransaction>),
    Other(WalEvent, TimelineId),
    Gap(ScanGap),
}

/// A transaction among the largest: by its rows, then the earlier one.
#[derive(Debug)]
struct Ranked((u64, Reverse<Lsn>), Box<ShownTransaction>);

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Listing {
    reader: EventReader,
    wanted: Wanted,
    options: StopOptions,
    /// What is read, once that was printed.
    head: Option<Head>,
    timeline: TimelineId,
    /// The time of the last transaction.
    last: Option<PgTimestamp>,
    /// The largest so far, the smallest of them on top.
    ranked: BinaryHeap<Reverse<Ranked>>,
    summary: Summary,
    /// Whether an event was printed.
    printed: bool,
    /// What is to be printed next: no more than of a piece of WAL.
    text: String,
    /// Where the output failed, nothing more is read.
    failure: Option<Failure>,
}

impl Listing {
    pub(super) fn new(wanted: Wanted, options: StopOptions) -> Self {
        Self {
            reader: EventReader::new(),
            wanted,
            options,
            head: None,
            timeline: TimelineId::FIRST,
            last: None,
            ranked: BinaryHeap::new(),
            summary: Summary::default(),
            printed: false,
            text: String::new(),
            failure: None,
        }
    }

    /// Prints what is read.
    pub(super) fn begin(&mut self, source: &Source, range: &ScanRange) -> Result<(), Failure> {
        self.summary.segment_count = range.count();
        let head = Head::new(source, range);
        output::text(&match self.wanted.json {
            true => EventsDocument::around_events(&head, &self.summary)?.0,
            false => text::head(&head, range.count()),
        })?;
        self.head = Some(head);
        Ok(())
    }

    /// Prints what was kept, and the end.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        let mut largest: Vec<Ranked> =
            std::mem::take(&mut self.ranked).into_iter().map(|one| one.0).collect();
        largest.sort_by(|one, other| other.cmp(one));
        for Ranked(_, transaction) in largest {
            self.print(&Shown::Transaction(transaction));
        }
        self.flush();
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.summary.unended_transaction_count = self.reader.without_end();
        self.summary.unattributed_file_count = self.reader.unattributed_files();
        self.summary.until_lsn = Some(self.reader.position()).filter(|lsn| *lsn > Lsn::INVALID);
        output::text(&match self.head.filter(|_| self.wanted.json) {
            Some(head) => EventsDocument::around_events(&head, &self.summary)?.1,
            None => text::summary(&self.summary),
        })
    }

    fn see(&mut self, event: WalEvent) {
        match event {
            WalEvent::Transaction(event) => self.transaction(*event),
            event => {
                let time = match &event {
                    WalEvent::Prepared { time, .. } | WalEvent::RestorePoint { time, .. } => Some(*time),
                    WalEvent::Promotion { time, .. } => *time,
                    _ => None,
                };
                if self.wanted.largest.is_none() && self.counts(time.or(self.last)) {
                    self.print(&Shown::Other(event, self.timeline));
                }
            }
        }
    }

    fn transaction(&mut self, event: TransactionEvent) {
        self.last = Some(event.time);
        if !self.counts(self.last) {
            return;
        }
        let counted = match event.committed {
            true => &mut self.summary.committed_count,
            false => &mut self.summary.aborted_count,
        };
        *counted += 1;
        if event.is_empty() {
            return;
        }
        self.summary.changing_count += 1;
        let lsn = event.lsn;
        let shown = Box::new(ShownTransaction::of(event, self.timeline, &self.options));
        let Some(most) = self.wanted.largest else {
            self.print(&Shown::Transaction(shown));
            return;
        };
        self.ranked.push(Reverse(Ranked((shown.size, Reverse(lsn)), shown)));
        if self.ranked.len() > most {
            self.ranked.pop();
        }
    }

    /// Whether what happened at that time is asked for. Before the first transaction the time is not known.
    fn counts(&self, time: Option<PgTimestamp>) -> bool {
        let Moments { from, to } = self.wanted.moments;
        match time {
            Some(time) => from.is_none_or(|from| from <= time) && to.is_none_or(|to| time <= to),
            None => from.is_none(),
        }
    }

    fn print(&mut self, shown: &Shown) {
        if self.failure.is_some() {
            return;
        }
        let printed = match self.wanted.json {
            true => document::line(shown, self.printed),
            false => Ok(text::event(shown)),
        };
        self.printed = true;
        match printed {
            Ok(text) => self.text.push_str(&text),
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn flush(&mut self) {
        if !self.text.is_empty() && self.failure.is_none() {
            self.failure = output::text(&self.text).err();
        }
        self.text.clear();
    }
}

impl WalSink for Listing {
    fn begin(&mut self, name: SegmentName, length: u64) {
        self.timeline = name.timeline;
        self.reader.begin(name, length);
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let fed = self.reader.feed(bytes);
        for event in self.reader.take() {
            self.see(event);
        }
        self.flush();
        fed.map_err(|error| error.to_string())
    }

    fn end(&mut self) -> Result<bool, String> {
        let end = self.reader.end().map_err(|error| error.to_string())?;
        self.summary.read_segment_count += 1;
        Ok(!matches!(end, SegmentEnd::Ended(_)))
    }

    fn gap(&mut self, gap: ScanGap) {
        self.reader.gap();
        self.summary.gap_count += 1;
        self.print(&Shown::Gap(gap));
        self.flush();
    }

    fn position(&self) -> Lsn {
        self.reader.position()
    }

    fn is_done(&self) -> bool {
        self.failure.is_some()
    }
}
