//! Histories that no repository can give any more, and recoveries that do without them.
//!
//! Where the history of a timeline further on the path is sound, its lines are given: PostgreSQL copied them into it.
//!
//! A younger timeline's history that is damaged or lost does not keep recovery from what was written before and beside it: the plan of
//! such a restore names the timeline ([`super::note`]). PostgreSQL asks for the history all the same when recovery ends, because it looks
//! for the first number of a timeline that is free. That it is in use is known; what is in the history is not.
//!
//! So does the plan of a restore that stays on its backup's timeline, where the history of that one is lost: PostgreSQL gets the answer
//! that there is none.

use walpoint_base::{Recovery, TimelineHistory, TimelineId, WalDirectory, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use crate::wal::archive::{ClusterArchive, Missing, Proof};
use crate::wal::source::{Failed, listed};

impl ClusterArchive {
    /// What can be given in place of a history that no repository has, or, if it is `there`, can give; and what a person should know
    /// about it. `silent`: names of repositories that did not answer.
    pub(super) async fn history_instead(
        &self,
        timeline: TimelineId,
        silent: &[&str],
        there: bool,
        proof: Proof,
    ) -> Option<(Vec<u8>, String)> {
        let name = WalFileName::History(timeline);
        if let Some((repository, content)) = from_younger(&self.answering(silent), timeline).await {
            let state = if there { "damaged" } else { "gone" };
            let note = format!(
                "\"{name}\" is {state}\nDETAIL: The history of a younger timeline in repository {repository} has its lines."
            );
            return Some((content, note));
        }
        let content = self.in_place_of(timeline).filter(|_| proof == Proof::Wanted)?;
        let note = format!(
            "\"{name}\" is damaged or lost, and this restore was planned without timeline {timeline}: PostgreSQL gets a file in its \
             place, so that it does not take that number for its own timeline"
        );
        Some((content, note))
    }

    /// Why recovery does without a file that no repository can give, if it does: a history of a lower number than that of the timeline
    /// that it was told to follow, or that of a timeline that it does not leave.
    pub(super) fn not_needed(&self, name: WalFileName, failures: &[Failed]) -> Option<String> {
        let WalFileName::History(timeline) = name else { return None };
        let why = listed(failures);
        if self.stays_on(timeline) {
            return Some(format!(
                "\"{name}\" is not handed over: {why}\nDETAIL: Recovery stays on timeline {timeline} and does without it."
            ));
        }
        let goal = self.goal().filter(|goal| *goal > timeline)?;
        Some(format!(
            "\"{name}\" is not handed over: {why}\nDETAIL: Recovery to timeline {goal} does without it."
        ))
    }

    /// Whether the recovery under way begins and ends on this timeline, and was planned without its history. PostgreSQL asks for it when
    /// recovery begins and when it ends (`readTimeLineHistory`, `writeTimeLineHistory` in timeline.c), and takes "missing" for "no
    /// ancestors". The last time the signal file may be gone already.
    pub(super) fn stays_on(&self, timeline: TimelineId) -> bool {
        let by_itself = |place: &WalDirectory| Recovery::of(&place.pgdata) != Recovery::Standby;
        self.place().is_some_and(by_itself)
            && self.note().is_some_and(|note| {
                note.timeline == timeline
                    && note.without.contains(&timeline)
                    && note.settings == self.targets()
            })
    }

    /// Whether the recovery under way was planned without a timeline whose history is damaged or lost.
    pub(super) fn is_without(&self, timeline: TimelineId) -> bool {
        self.in_place_of(timeline).is_some()
    }

    /// The answer to the question for such a history. At the end of recovery PostgreSQL looks no further than whether the file is
    /// there (`findNewestTimeLine`), and takes the number after it.
    fn in_place_of(&self, timeline: TimelineId) -> Option<Vec<u8>> {
        let place = self.place()?;
        // A standby would follow the timeline, and remember what it was given.
        if Recovery::of(&place.pgdata) != Recovery::Archive {
            return None;
        }
        let note = self.note()?;
        // To its own timeline's there is no answer but "missing".
        if note.timeline == timeline || !note.without.contains(&timeline) || note.settings != self.targets() {
            return None;
        }
        let (parent, switch) = (note.timeline, note.until.unwrap_or_default());
        let line = format!("{parent}\t{switch}\tits own history is damaged or lost\n");
        Some(line.into_bytes())
    }
}

/// The history of a timeline in one repository; of one that is damaged there, what a younger timeline's has of it.
pub(super) async fn history_or_younger(
    archive: &ClusterArchive,
    wal: &WalArchive,
    timeline: TimelineId,
) -> anyhow::Result<Option<TimelineHistory>> {
    match archive.history_in(wal, timeline).await {
        Err(error) if is_damaged(&error) => match wal.history_from_younger(timeline).await? {
            Some(content) => Ok(TimelineHistory::parse(timeline, &content).ok()),
            None if archive.stays_on(timeline) => Ok(None),
            None => Err(error),
        },
        history => history,
    }
}

pub(super) fn is_damaged(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RepoError::Corrupt { .. }))
}

/// The history of a timeline that none of these repositories can give, if a younger timeline's begins with it, and a
/// repository that has that. Which it is counts only for its own timeline; what cannot be read says nothing.
async fn from_younger(answering: &[Missing<'_>], timeline: TimelineId) -> Option<(String, Vec<u8>)> {
    let mut told = Vec::new();
    for source in answering {
        match source.wal.history_from_younger(timeline).await {
            Ok(content) => told.extend(content.map(|content| (source.name.to_owned(), content))),
            Err(error) => {
                tracing::debug!("the histories in repository {} cannot be read: {error}", source.name)
            }
        }
    }
    agreed(timeline, told)
}

/// What repositories tell of a history, unless they tell different things: then a younger timeline of one of them comes from another
/// server's timeline of that number.
fn agreed(timeline: TimelineId, told: Vec<(String, Vec<u8>)>) -> Option<(String, Vec<u8>)> {
    let switches = |content: &[u8]| {
        let history = TimelineHistory::parse(timeline, content).ok()?;
        Some(history.entries().iter().map(|entry| (entry.parent, entry.switch)).collect::<Vec<_>>())
    };
    let mut all = told.iter().map(|(_, content)| switches(content));
    let first = all.next()?;
    if all.any(|other| other != first) {
        return None;
    }
    told.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_that_tell_different_things_of_a_lost_history_tell_nothing() {
        let two = TimelineId::new(2).unwrap();
        let told = |all: &[&str]| {
            let told = all.iter().map(|content| ("main".to_owned(), content.as_bytes().to_vec()));
            agreed(two, told.collect()).map(|(_, content)| String::from_utf8(content).unwrap())
        };
        let (one, other) = ("1\t0/400000\tx\n", "1\t0/500000\tx\n");
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[one]).as_deref(), Some(one));
        assert_eq!(told(&[one, "1\t0/400000\tanother reason\n"]).as_deref(), Some(one));
        assert_eq!(told(&[one, other]), None);
    }
}
