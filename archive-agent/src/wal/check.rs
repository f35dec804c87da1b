//! Whether a file may be archived under its name: this cluster's, of the right timeline, and sound.
//!
//! What is refused here stays in `pg_wal` until somebody acts, so only what is proven wrong is refused.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use walpoint_base::chain::ChainFacts;
use walpoint_base::crossing::CrossingFacts;
use walpoint_base::facts::{HistoryHash, SegmentMarks};
use walpoint_base::{Lsn, SegmentFacts, SegmentName, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::control::ControlFile;
use walpoint_pg::wal::{Differs, Inspector, LONG_HEADER, LongHeader, WalError, WalIdentity, major_of_magic};

use walpoint_repo::wal::{SealedName, history_hash};

use super::read::{OpenFile, ReadError};

/// Why a file may not be stored. The text is for PostgreSQL's log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// It cannot be read, or has an impossible length.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is not a good segment of this cluster.
    #[error("{0}{advice}", advice = advice(.0))]
    Wal(#[from] WalError),
    /// By the history beside it, its pages are of the wrong timeline.
    #[error(
        "{error}\nDETAIL: Which timeline belongs there is defined by {history:?}.\nHINT: If that history is damaged or \
         another server's, put the right one in its place."
    )]
    ByHistory {
        /// What is wrong with it.
        error: WalError,
        history: PathBuf,
    },
    /// The server finished it, and what it holds ends early.
    #[error(
        "{path:?} is damaged: its records end at {end}, and the server that writes this timeline finished it, so the rest was \
         lost on disk\nHINT: Check the storage for failures, take a base backup, then run \"archive-agent \
         push --accept-damaged\"."
    )]
    TailLost {
        /// Which file.
        path: PathBuf,
        /// Where its last record ends.
        end: Lsn,
    },
    /// Another file that is not what its name says.
    #[error("the content of {path:?} does not match its name: {what}")]
    Text {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// What to do about a segment that is refused, behind what is wrong with it.
fn advice(error: &WalError) -> &'static str {
    match error {
        WalError::Damaged { .. } => {
            "\nHINT: \"archive-agent push --accept-damaged\" archives it as it is, flagged."
        }
        WalError::Foreign { cause: Differs::Upgraded | Differs::SegmentSize, .. } => {
            "\nHINT: \"archive-agent init\" registers it."
        }
        _ => "",
    }
}

impl CheckError {
    /// Whether the content itself is wrong, so that reading the file once more may help.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Wal(error) => error.is_damage(),
            Self::TailLost { .. } => true,
            Self::Read(_) | Self::Text { .. } | Self::ByHistory { .. } => false,
        }
    }
}

/// What makes a segment this cluster's.
pub(crate) fn identity(control: &ControlFile) -> WalIdentity {
    WalIdentity { system_id: control.system_id, major: control.major, segment_size: control.wal_segment_size }
}

/// What a segment is, as far as its content was given.
pub(crate) struct SegmentVerdict<'h> {
    name: SegmentName,
    inspector: Result<Inspector<'h>, WalError>,
    /// The first bytes: whose it is.
    beginning: Vec<u8>,
}

impl<'h> SegmentVerdict<'h> {
    /// For a segment of that name and length. `history`: of the timeline in the name, if there is one.
    pub(crate) fn new(name: SegmentName, length: u64, history: Option<&'h TimelineHistory>) -> Self {
        Self { name, inspector: Ok(Inspector::new(name, length, history)), beginning: Vec::new() }
    }

    /// Takes the next bytes.
    pub(crate) fn add(&mut self, piece: &[u8]) {
        if self.beginning.is_empty() {
            self.beginning = piece.get(..LONG_HEADER).unwrap_or(piece).to_vec();
        }
        if let Ok(inspector) = &mut self.inspector
            && let Err(error) = inspector.feed(piece)
        {
            self.inspector = Err(error);
        }
    }

    /// Whether it is known already that it is no good segment.
    pub(crate) fn is_bad(&self) -> bool {
        self.inspector.is_err()
    }

    /// What it says about itself, if it is a good segment of this cluster.
    pub(crate) fn pronounce(self, cluster: &WalIdentity) -> Result<SegmentFacts, WalError> {
        match self.inspector.and_then(Inspector::finish) {
            Ok(facts) => cluster.check(&facts).map(|()| facts),
            Err(error) => {
                // Whose it is matters more than what is wrong with it.
                match what_the_header_says(self.name, &self.beginning) {
                    Some(header) => cluster.check(&header).and(Err(error)),
                    None => Err(error),
                }
            }
        }
    }
}

/// The facts of a damaged segment that is to be stored all the same. `error`: what is wrong with it.
pub(crate) fn facts_of_damaged(
    file: &OpenFile,
    name: SegmentName,
    cluster: &WalIdentity,
    error: CheckError,
) -> Result<SegmentFacts, CheckError> {
    let mut beginning = [0; LONG_HEADER];
    let length = file.beginning(&mut beginning)?;
    let facts = what_the_header_says(name, beginning.get(..length).unwrap_or_default());
    let facts = facts.ok_or(error)?;
    cluster.check(&facts)?;
    Ok(facts)
}

/// Checks a file that is no segment; its content, if it is small enough to be held. Blocks.
pub(crate) fn check_other(
    file: &OpenFile,
    name: WalFileName,
    cluster: &WalIdentity,
) -> Result<Option<Vec<u8>>, CheckError> {
    if let WalFileName::Segment(segment) | WalFileName::Partial(segment) = name {
        // It ends anywhere, even in the middle of a record; its first page says whose it is.
        let mut beginning = [0; LONG_HEADER];
        let length = file.beginning(&mut beginning)?;
        let facts = what_the_header_says(segment, beginning.get(..length).unwrap_or_default());
        let facts = facts.ok_or_else(|| text(file, "it does not start with the header of this segment"))?;
        cluster.check(&facts)?;
        return Ok(None);
    }
    let mut content = Vec::new();
    file.read(&mut vec![0; 64 << 10], |piece| {
        content.extend_from_slice(piece);
        ControlFlow::Continue(())
    })?;
    match name {
        WalFileName::History(timeline) => {
            TimelineHistory::parse(timeline, &content).map_err(|error| text(file, &error.to_string()))?;
            Ok(Some(content))
        }
        _ if content.starts_with(b"START WAL LOCATION: ") => Ok(Some(content)),
        _ => Err(text(file, "it does not start with \"START WAL LOCATION: \"")),
    }
}

/// What a `.partial` file says about itself; `None` if that cannot be told. Blocks.
pub(crate) fn facts_of_partial(
    file: &OpenFile,
    name: SegmentName,
) -> Result<Option<SegmentFacts>, CheckError> {
    let mut verdict = SegmentVerdict::new(name, file.identity.size, None);
    file.read(&mut vec![0; 64 << 10], |piece| {
        verdict.add(piece);
        if verdict.is_bad() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(verdict.inspector.and_then(Inspector::finish).ok())
}

/// How many bytes of a `.partial` file count: behind its last record lies what a recycled file held before, another in every
/// copy. `None` if all of them do.
pub(crate) fn valid_length(facts: &SegmentFacts) -> Option<u64> {
    (!facts.whole).then(|| SealedName::Ended(facts.end).valid(facts.name, facts.size))
}

fn text(file: &OpenFile, what: &str) -> CheckError {
    CheckError::Text { path: file.path().to_owned(), what: what.to_owned() }
}

/// The history of a timeline and what it is remembered by, if its file is in that directory. Without it the pages' timelines
/// are checked among themselves.
pub(crate) fn history_in(directory: &Path, timeline: TimelineId) -> Option<(TimelineHistory, HistoryHash)> {
    let content = std::fs::read(directory.join(WalFileName::History(timeline).to_string())).ok()?;
    TimelineHistory::parse(timeline, &content).ok().map(|history| (history, history_hash(&content)))
}

/// The facts of a segment whose records cannot be trusted: whose it is, and nothing about its transactions.
fn what_the_header_says(name: SegmentName, content: &[u8]) -> Option<SegmentFacts> {
    let header = LongHeader::parse(content)?;
    let size = walpoint_base::SegmentSize::new(u64::from(header.segment_size))?;
    let number = name.number(size).filter(|number| number.start(size) == header.page.address)?;
    Some(SegmentFacts {
        name,
        system_id: header.system_id,
        major: major_of_magic(header.page.magic)?,
        size,
        block_size: header.block_size,
        first_page_timeline: TimelineId::new(header.page.timeline)?,
        content_len: size.bytes(),
        first_record: None,
        last_record: None,
        end: number.end(size),
        whole: true,
        switched: false,
        records: 0,
        transactions: None,
        crossing: CrossingFacts::UNKNOWN,
        chain: ChainFacts::default(),
        marks: SegmentMarks::ALL,
        restore_points: Vec::new(),
        further_points: 0,
    })
}
