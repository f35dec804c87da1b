//! The answers to a planner's questions about a lineage: each is read when it is asked for, and kept.
//!
//! What cannot be read is an error only if a restore needs it; else it limits what is offered, and is remembered as a problem.

use std::sync::Arc;

use walpoint_base::{Lsn, SegmentName, SegmentNo, TimelineId};
use walpoint_plan::restore::{Answer, Asking, Extent, Facts, Path, Question, SegmentDecoder};
use walpoint_plan::runs::Runs;
use walpoint_storage::error::{RepoError, Result};

use super::inventory::TimelineWal;
use super::lineage::LineageCatalog;
use super::search::Search;

impl LineageCatalog {
    /// Runs a pure planner, answering what it asks, until it has what it needs. Without a decoder, questions about where
    /// recovery stops fail, and the ends of windows are known less exactly: what was streamed goes as far as its slices are sound.
    pub async fn ask<T>(
        &mut self,
        decoder: Option<&Arc<dyn SegmentDecoder>>,
        planner: impl Fn(&Facts) -> Asking<T>,
    ) -> Result<T> {
        if decoder.is_some() && std::mem::take(&mut self.undecoded) {
            self.facts.forget_ends();
        }
        loop {
            let question = match planner(&self.facts) {
                Ok(result) => return Ok(result),
                Err(question) => question,
            };
            let answer = self.answer(&question, decoder).await?;
            self.facts.answer(question, answer);
        }
    }

    async fn answer(
        &mut self,
        question: &Question,
        decoder: Option<&Arc<dyn SegmentDecoder>>,
    ) -> Result<Answer> {
        Ok(match question {
            Question::Wal(timeline) => {
                self.know_announcements().await;
                let expected = self.expected(*timeline);
                let wal = TimelineWal::load_near(&self.archive, *timeline, expected).await?;
                self.take_wal(*timeline, wal)
            }
            Question::Backup(id) => {
                let standing = self.backups.standing(*id).await;
                Answer::Backup(self.backup(standing).await?)
            }
            Question::Stop(question) => {
                let Some(decoder) = decoder else {
                    let what = "WAL would have to be decoded, and this program cannot".to_owned();
                    return Err(RepoError::Internal(what));
                };
                let mut search = Search::new(&self.archive, &mut self.wal, Some(decoder));
                Answer::Stop(search.stop(&self.facts, question).await?)
            }
            Question::Extent(question) => {
                let mut search = Search::new(&self.archive, &mut self.wal, decoder);
                match search.extent(&self.facts, question).await {
                    Ok(extent) => Answer::Extent(extent),
                    // What cannot be read limits what is offered, it does not keep anybody from the rest.
                    Err(error @ RepoError::Corrupt { .. }) => {
                        self.add_problem(error.to_string());
                        Answer::Extent(Extent::default())
                    }
                    Err(error) => return Err(error),
                }
            }
            Question::Passed(question) => {
                let mut search = Search::new(&self.archive, &mut self.wal, decoder);
                match search.passed(&self.facts, question).await {
                    Ok(time) => Answer::Passed(time),
                    // Recovery from the backup does not read that WAL: what cannot be read there is no condition of a restore.
                    Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => {
                        self.add_problem(error.to_string());
                        Answer::Passed(None)
                    }
                    Err(error) => return Err(error),
                }
            }
            Question::Removal(question) => {
                let search = Search::new(&self.archive, &mut self.wal, decoder);
                Answer::Removal(search.removal(&self.facts, question).await)
            }
            Question::Partial(name) if self.has_incomplete(*name) == Some(false) => Answer::Partial(None),
            Question::Partial(name) => self.partial(*name, decoder).await?,
            Question::Minimal(path) => {
                let mut search = Search::new(&self.archive, &mut self.wal, decoder);
                Answer::Minimal(search.minimal(&self.facts, *path).await?)
            }
            Question::Breaks(path) => Answer::Breaks(self.break_positions(*path).await?),
            Question::Begin { of, on } => Answer::Begin(self.begin_on(*of, *on).await?),
            Question::Points => Answer::Points(self.archive.points().await?.points),
            Question::PointsNamed(name) => Answer::PointsNamed(self.points_named(name).await?),
        })
    }

    /// How far an incomplete copy of a segment goes.
    async fn partial(
        &mut self,
        name: SegmentName,
        decoder: Option<&Arc<dyn SegmentDecoder>>,
    ) -> Result<Answer> {
        let read = match decoder {
            Some(_) => Search::new(&self.archive, &mut self.wal, decoder).partial(name).await,
            None => self.archive.streamed_until(name).await,
        };
        self.undecoded |= decoder.is_none();
        let mut streamed = !matches!(read, Ok(None)) && self.archive.is_streamed(name).await?;
        let answer = match read.map(|until| until.filter(|_| streamed || decoder.is_some())) {
            Ok(until) => match self.archive.damaged_copy_beyond(name, until).await? {
                Some(damaged) => {
                    streamed |= until.is_none() && self.archive.is_streamed(name).await?;
                    Answer::DamagedPartial(until, damaged)
                }
                None => Answer::Partial(until),
            },
            // Nothing can be recovered from it, and it shows that the segment was begun.
            Err(error @ RepoError::Corrupt { .. }) => {
                let copies = self.archive.contradicting_copies(name).await?;
                if !copies.is_empty() {
                    self.facts.contradicting.insert(name, copies);
                }
                Answer::DamagedPartial(None, error.to_string())
            }
            Err(error) => return Err(error),
        };
        if streamed {
            self.facts.sliced.insert(name);
        }
        if let Answer::DamagedPartial(_, damaged) = &answer {
            self.add_problem(damaged.clone());
        }
        Ok(answer)
    }

    /// Where on the path to a timeline segments begin that do not continue the ones before them.
    async fn break_positions(&mut self, path: TimelineId) -> Result<Vec<Lsn>> {
        let ranges = Path::to(&self.facts, path).map(|path| path.present());
        let ranges = ranges.and_then(|present| present.ok()).unwrap_or_default();
        let size = self.lineage().segment_size;
        let broken = self.broken_in(&ranges).await?;
        Ok(broken.iter().filter_map(|b| Some(b.segment.number(size)?.start(size))).collect())
    }

    /// What a timeline's WAL means to a planner.
    pub(super) fn take_wal(&mut self, timeline: TimelineId, mut wal: TimelineWal) -> Answer {
        if !self.believes_found {
            wal.take_out(&self.found_damaged());
        }
        let runs = wal.runs().clone();
        self.facts.lose(timeline, wal.lost().clone());
        let mut begun = Runs::default();
        wal.incomplete().for_each(|number| begun.insert(number, 0));
        self.facts.begin_segments(timeline, begun);
        self.wal.insert(timeline, wal);
        Answer::Wal(runs)
    }

    fn tell_wal(&mut self, timeline: TimelineId) {
        let Some(wal) = self.wal.get(&timeline) else { return };
        self.facts.lose(timeline, wal.lost().clone());
        self.facts.answer(Question::Wal(timeline), Answer::Wal(wal.runs().clone()));
    }

    /// Takes a segment out of what is known to be there.
    pub(super) fn lose(&mut self, timeline: TimelineId, number: SegmentNo) {
        let Some(wal) = self.wal.get_mut(&timeline) else { return };
        wal.lose(number);
        self.tell_wal(timeline);
    }

    /// Adds a segment to what is known to be there.
    pub(super) fn find(&mut self, timeline: TimelineId, number: SegmentNo, stored: u64) {
        let Some(wal) = self.wal.get_mut(&timeline) else { return };
        wal.find(number, stored);
        self.tell_wal(timeline);
    }

    /// Whether there is an incomplete copy of a segment, if that was seen.
    fn has_incomplete(&self, name: SegmentName) -> Option<bool> {
        self.wal.get(&name.timeline)?.has_incomplete(name.number(self.facts.segment_size)?)
    }
}
