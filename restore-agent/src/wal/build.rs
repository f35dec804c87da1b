//! A segment that the restore planned to build, because no repository had it under its own name.
//!
//! The plan may be old when PostgreSQL asks: the segment may have come meanwhile, later ones too, or the settings are others. What
//! is built ends at the cut, and recovery with it. So the segment's own name was asked for first, everywhere, and it is built only
//! where recovery stops before the cut, as planned, or where the end of the archive was asked for and is proven to be there still.

use std::collections::BTreeMap;

use walpoint_base::{Lsn, Recovery, SegmentName, TimelineId};
use walpoint_plan::restore::{ForkSegment, ForkSource, Unfollowed};

use crate::settings;
use crate::wal::archive::{ArchiveAnswer, ClusterArchive, FetchResult, Proof, WantedFile};
use crate::wal::note::{Built, TargetNote};
use crate::wal::refusal::{Remedy, Unproven};
use crate::wal::source::listed;
use crate::wal::{creates, prove, spool};

/// What a segment is built from, for people: no file has an incomplete copy's name where slices are what there is.
pub(crate) fn built_from(fork: &ForkSegment) -> String {
    match fork.source {
        ForkSource::Segment(_) => format!("\"{}\"", fork.source_name()),
        ForkSource::Partial(timeline) if timeline == fork.name.timeline => "its incomplete copy".to_owned(),
        ForkSource::Partial(timeline) => {
            format!("the incomplete copy of \"{}\"", SegmentName { timeline, ..fork.name })
        }
    }
}

impl ClusterArchive {
    /// Builds a segment that was `asked` for under its own name and not had. `seen`: as in [`prove::unfinished`].
    pub(crate) async fn build(
        &self,
        wanted: WantedFile<'_>,
        (built, seen): (Built, bool),
        proof: Proof,
        asked: ArchiveAnswer<'_>,
    ) -> FetchResult {
        let segment = built.segment;
        if !self.stops_before(segment.cut) {
            if proof == Proof::NotWanted {
                return FetchResult::Absent(format!(
                    "\"{}\" is built only when PostgreSQL requests it",
                    segment.name
                ));
            }
            if let Err(why) = self.may_end_in(&segment, seen, asked).await {
                return why.into();
            }
        }
        let asked = self.ask(WantedFile { built: Some(built), ..wanted }).await;
        match (asked.landed, asked.unwritten) {
            (Some(landed), _) => {
                if seen {
                    self.note_handed(built);
                }
                FetchResult::Landed(landed)
            }
            (None, Some(why)) => FetchResult::Unwritten(why),
            (None, None) => {
                let why = format!(
                    "it is to be built from {}, up to {}, and no repository has that: {}",
                    built_from(&segment),
                    segment.cut,
                    listed(&asked.failures)
                );
                Unproven::by(&asked.failures, why).into()
            }
        }
    }

    /// What to answer instead of a segment with which recovery would end although, by now, it could follow the timeline that begins
    /// there, and instead of what its parent went on to hold behind that; `None` if it may have it.
    pub(super) async fn withheld(&self, segment: SegmentName, proof: Proof) -> Option<FetchResult> {
        let Unfollowed { timeline, segment: last, from } = self.unfollowed?;
        if segment.timeline != last.timeline || segment < last {
            return None;
        }
        // A standby follows it by itself, and another target was not planned so.
        let alone = self.place().is_some_and(|place| Recovery::of(&place.pgdata) == Recovery::Archive);
        let note = self.note().filter(|note| alone && note.settings == self.targets())?;
        if proof == Proof::NotWanted {
            return Some(FetchResult::Absent(format!(
                "\"{segment}\" is delivered only when PostgreSQL requests it"
            )));
        }
        match prove::left(self, last, from, Some(timeline)).await {
            Err(why) => Some(why.into()),
            // No target stops recovery at the fork, so it ends for want of more.
            Ok(()) if segment > last && note.last.is_none() => Some(FetchResult::Absent(format!(
                "\"{segment}\" is after {from}, where timeline {timeline} begins"
            ))),
            Ok(()) => None,
        }
    }

    /// Whether recovery may end where a segment that is built ends; otherwise why not.
    async fn may_end_in(
        &self,
        segment: &ForkSegment,
        seen: bool,
        asked: ArchiveAnswer<'_>,
    ) -> Result<(), Unproven> {
        if segment.left {
            return prove::left(self, segment.name, segment.cut, None).await;
        }
        // Whatever the others say: one of them has it, and only cannot give it.
        if asked.there {
            return Err(Unproven::by(&asked.failures, listed(&asked.failures)));
        }
        prove::unfinished(self, segment, (&asked.missing, seen), asked.failures).await?;
        if self.ends_on_request() {
            return Ok(());
        }
        let why = format!(
            "only a part of it is in the archive, up to {}, and the target that was restored to lies before that and is no \
             longer set",
            segment.cut
        );
        Err(Unproven::Refused(why, Remedy::RestorePart))
    }

    /// Whether recovery stops before a position, under the settings that the restore wrote.
    fn stops_before(&self, position: Lsn) -> bool {
        let until = self.place().and_then(creates::until);
        until.is_some_and(|until| until <= position)
    }

    /// Whether recovery may end where what there is ends: the restore was for that, or a target is set, without which PostgreSQL
    /// does not end recovery but fails.
    fn ends_on_request(&self) -> bool {
        let Some(note) = self.note() else { return false };
        let ways = ["recovery_target_timeline", "recovery_target_inclusive"];
        note.until.is_none() || self.targets().keys().any(|name| !ways.contains(&name.as_str()))
    }

    /// The youngest timeline that was known when the recovery under way was planned, if that goes to the latest moment.
    pub(crate) fn youngest_planned(&self) -> Option<TimelineId> {
        let place = self.place()?;
        // A standby follows a younger one by itself.
        if Recovery::of(&place.pgdata) != Recovery::Archive {
            return None;
        }
        let note = self.note()?;
        note.youngest.filter(|_| note.settings == self.targets())
    }

    /// The timeline that the recovery under way was told to follow by its number, as `restore` does it. Of a lower number PostgreSQL asks
    /// for the history only to keep a copy (`restoreTimeLineHistoryFiles` in xlogarchive.c), and does without those that are missing: its
    /// way leads along the history of the timeline itself, and the number of its own next one is looked for behind it.
    pub(super) fn goal(&self) -> Option<TimelineId> {
        let place = self.place()?;
        if Recovery::of(&place.pgdata) != Recovery::Archive {
            return None;
        }
        let note = self.note()?;
        (note.settings == self.targets()).then_some(note.timeline)
    }

    /// The note that the restore left, as it is now.
    pub(super) fn note(&self) -> Option<TargetNote> {
        TargetNote::read(&self.place()?.wal.join(spool::DIRECTORY))
    }

    /// The recovery targets that are set now.
    pub(super) fn targets(&self) -> BTreeMap<String, String> {
        let path = self.place().map(|place| place.pgdata.join("postgresql.auto.conf"));
        let text = path.and_then(|path| settings::text(&path).ok());
        settings::targets(&text.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_streamed_is_not_called_by_the_name_of_a_file() {
        let name: SegmentName = "000000020000000000000004".parse().unwrap();
        let from = |source| built_from(&ForkSegment { name, cut: Lsn(0x400_0060), source, left: false });
        assert_eq!(from(ForkSource::Partial(name.timeline)), "its incomplete copy");
        let parents = from(ForkSource::Partial(TimelineId::FIRST));
        assert_eq!(parents, "the incomplete copy of \"000000010000000000000004\"");
        assert_eq!(from(ForkSource::Segment(name.timeline)), "\"000000020000000000000004\"");
    }
}
