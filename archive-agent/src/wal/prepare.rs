//! A file of `pg_wal` made ready to be stored: read, checked and sealed from the same bytes, in one pass, a piece at a time.
//!
//! What always holds: the bytes that were sealed are the bytes that were checked, and they are one state of the file. In
//! memory is what was sealed. Segments too large for one object are surveyed instead: their parts are sealed from a second
//! reading, and stored only if that finds the same.

use std::ops::ControlFlow;
use std::sync::Arc;

use walpoint_base::chain::{ChainEnd, ChainFacts};
use walpoint_base::facts::HistoryHash;
use walpoint_base::{SegmentFacts, SegmentName, TimelineHistory, WalFileName};
use walpoint_pg::wal::{WalError, WalIdentity};
use walpoint_repo::wal::{SealedName, SealedSegment, SegmentSealer, WalArchive, WalContent, WalFlags};
use walpoint_storage::RepoError;

use super::check::{self, CheckError, SegmentVerdict};
use super::memory::WalMemory;
use super::read::OpenFile;

/// A file is read again when it turns out to be damaged, or to belong elsewhere than under its name. More often it only is
/// if somebody writes to it.
const PASSES: usize = 4;

/// A file that may be stored.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// A segment, sealed for each archive in their order; nothing for files of other kinds.
    pub(crate) sealed: Vec<SealedSegment>,
    /// What there is to be stored of a file of another kind, and of a segment in parts.
    pub(crate) content: WalContent,
    /// What a segment, or a `.partial` file, shows of its neighbors.
    pub(crate) chain: Option<ChainFacts>,
}

/// Why a file is not ready to be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// It may not be stored.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// It could not be sealed.
    #[error(transparent)]
    Seal(#[from] RepoError),
    /// It compresses less than was expected, and others use the memory.
    #[error("there is not enough memory for it")]
    NoMemory,
}

impl From<WalError> for PrepareError {
    fn from(error: WalError) -> Self {
        Self::Check(error.into())
    }
}

/// What is accepted of a segment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    /// Also one that fails its checks, flagged.
    pub(crate) accept_damaged: bool,
    /// Only one whose records reach its end or a switch: its server finished it, so whatever is missing was lost.
    pub(crate) whole_only: bool,
}

/// Prepares a file for these archives; for none, it is only checked. What is sealed is held in `memory`. Blocks, and keeps a
/// core busy.
pub(crate) fn prepare(
    file: &OpenFile,
    name: WalFileName,
    cluster: &WalIdentity,
    rules: Rules,
    archives: &[WalArchive],
    memory: &mut WalMemory,
) -> Result<Prepared, PrepareError> {
    let content = file.content().map_err(CheckError::from)?;
    match name {
        WalFileName::Segment(segment) => {
            let job = Job { file, name: segment, cluster, archives, rules };
            let sealed = job.run(&mut vec![0; SegmentSealer::PIECE], memory)?;
            let sound = sealed.first().filter(|sealed| !sealed.is_damaged() && sealed.facts().whole);
            let chain = sound.map(|sealed| sealed.facts().chain);
            Ok(Prepared { sealed, content, chain })
        }
        WalFileName::Partial(segment) => {
            check::check_other(file, name, cluster)?;
            let facts = check::facts_of_partial(file, segment)?;
            let content = match facts.as_ref().and_then(check::valid_length) {
                Some(valid) => content.with_zeros_from(valid),
                None => content,
            };
            // Where it ends, nothing continues it.
            let chain = facts.map(|facts| ChainFacts { end: ChainEnd::UNKNOWN, ..facts.chain });
            Ok(Prepared { sealed: Vec::new(), content, chain })
        }
        _ => {
            let held = check::check_other(file, name, cluster)?;
            Ok(Prepared { sealed: Vec::new(), content: held.map_or(content, WalContent::from), chain: None })
        }
    }
}

struct Job<'a> {
    file: &'a OpenFile,
    name: SegmentName,
    cluster: &'a WalIdentity,
    archives: &'a [WalArchive],
    rules: Rules,
}

impl Job<'_> {
    fn run(&self, buffer: &mut [u8], memory: &mut WalMemory) -> Result<Vec<SealedSegment>, PrepareError> {
        let (mut place, mut read_again) = (SealedName::Whole, false);
        for _ in 0..PASSES {
            // Read anew for each pass: PostgreSQL may have got it from an archive meanwhile.
            let directory = self.file.path().parent();
            let history = directory.and_then(|directory| check::history_in(directory, self.name.timeline));
            let hash = history.as_ref().map_or(HistoryHash::NONE, |(_, hash)| *hash);
            let (verdict, sealer) =
                self.pass(place, history.as_ref().map(|(history, _)| history), buffer, memory)?;
            let verdict = match verdict {
                Ok(facts) if self.rules.whole_only && !facts.whole => {
                    Err(CheckError::TailLost { path: self.file.path().to_owned(), end: facts.end })
                }
                verdict => verdict.map_err(CheckError::from),
            };
            let (facts, flags) = match verdict {
                Ok(facts) => (facts, WalFlags { damaged: false, history: hash }),
                Err(error) if error.is_damage() && !read_again => {
                    // Past what the kernel holds in memory: a page damaged there is not a damaged file.
                    self.file.drop_cached();
                    read_again = true;
                    continue;
                }
                Err(error) if error.is_damage() && self.rules.accept_damaged => {
                    tracing::warn!(file = %self.name, "{error}");
                    let facts = check::facts_of_damaged(self.file, self.name, self.cluster, error)?;
                    (facts, WalFlags { damaged: true, history: hash })
                }
                Err(CheckError::Wal(error @ WalError::WrongTimeline { .. })) if history.is_some() => {
                    let name = WalFileName::History(self.name.timeline);
                    let history = self.file.path().with_file_name(name.to_string());
                    return Err(CheckError::ByHistory { error, history }.into());
                }
                Err(error) => return Err(error.into()),
            };
            let belongs = SealedName::of(&facts, flags);
            if belongs == place {
                return Ok(sealer.finish(&Arc::new(facts), flags)?);
            }
            place = belongs;
        }
        self.file.unchanged().map_err(CheckError::from)?;
        let what = format!("{} was read {PASSES} times and was never the same", self.file.path().display());
        Err(RepoError::Internal(what).into())
    }

    /// Reads the segment once: what it is, and the sealer that was given the same bytes, all of them if it is good or
    /// accepted as it is.
    #[allow(clippy::type_complexity, reason = "two results of one reading")]
    fn pass(
        &self,
        place: SealedName,
        history: Option<&TimelineHistory>,
        buffer: &mut [u8],
        memory: &mut WalMemory,
    ) -> Result<(Result<SegmentFacts, WalError>, SegmentSealer), PrepareError> {
        let mut sealer = SegmentSealer::new(self.archives, self.name, self.cluster.segment_size, place)?;
        let mut verdict = SegmentVerdict::new(self.name, self.file.identity.size, history);
        let mut sealed = Ok(());
        let read = self.file.read(buffer, |piece| {
            verdict.add(piece);
            if verdict.is_bad() && !self.rules.accept_damaged {
                return ControlFlow::Break(());
            }
            // Before it is taken: a piece that does not compress stays as long as it is.
            let most = sealer.held() + (piece.len() * self.archives.len()) as u64;
            sealed = if memory.hold(most) {
                sealer.add(piece).map_err(Into::into)
            } else {
                Err(PrepareError::NoMemory)
            };
            if sealed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        read.map_err(CheckError::from)?;
        sealed?;
        Ok((verdict.pronounce(self.cluster), sealer))
    }
}
