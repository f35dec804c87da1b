//! From which repository recovery has its WAL.
//!
//! Two repositories may hold two servers' WAL of one timeline, each with names and positions that fit the other's. So recovery has
//! all of it from one, as long as that has it, and before it changes to another one, the two are compared around the segment that is
//! wanted ([`agreement`]), or by what was given last. What is not known is not compared. A change costs a few
//! ranged requests; without a change none is made. Repositories that were found to agree are asked in the order of the
//! configuration again, which is how a person wants them asked.
//!
//! A process that fetches one file finds in `walpoint-origin` what an earlier one gave. That may lie some way back, where one was
//! killed, so what the server has in `pg_wal` before the segment counts first ([`own`]).
//!
//! That counts too where nothing was given yet, and where segments came by streaming since: a standby may follow a copy that diverged while
//! the archive continues production's WAL, under the same names.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::{SegmentName, SegmentNo, SegmentSize};
use walpoint_repo::agreement::{self, Agreement, Around};
use walpoint_repo::wal::WalArchive;
use walpoint_repo::wal::header::WalHeader;
use walpoint_storage::object::{ContentHash, RepositoryId};

use crate::wal::origin::{OriginKeeper, ServedSegment};
use crate::wal::own::{self, Offered, Own};
use crate::wal::refusal::LastingError;

/// So many of the segments that were given are remembered, and all that were not passed yet: what was fetched ahead is judged once more
/// when it is handed over, however far ahead that was.
const REMEMBERED: usize = 256;

/// How long two repositories may take to be compared. A standby waits little longer.
const CONTENT: Duration = Duration::from_millis(1500);

/// What can be done for a server whose WAL is not the archive's.
const WAYS_OUT: &str = "If this server belongs to a lineage of its own, as a standby of a copy does, copy walpoint.lineage \
                        from its primary's data directory into this one. If its primary archives nothing here, remove \
                        restore_command. If this directory has gone its own way, create it anew (restore-agent restore \
                        --standby, or pg_basebackup) or rewind it (pg_rewind).";

/// A segment that was given.
#[derive(Clone, Copy, Debug)]
struct Given {
    repository: RepositoryId,
    hash: ContentHash,
    content_len: u64,
    /// Not known of what an earlier process gave.
    chain: Option<ChainFacts>,
    /// Whether the hash has a key of that repository's own, if that is known.
    keyed: Option<bool>,
}

/// What was given, and from where.
#[derive(Debug, Default)]
pub(crate) struct Served {
    state: Mutex<State>,
    begun: OnceLock<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The repository that gave the last one, or that the plan was made from.
    home: Option<RepositoryId>,
    recent: BTreeMap<SegmentName, Given>,
    /// The newest segment of which the first repository was found to have the content of the second.
    agreed: HashMap<(RepositoryId, RepositoryId), SegmentName>,
    /// The segment that this process handed to the server last. Of one that handed over none nothing is known.
    handed: Option<SegmentName>,
}

impl State {
    /// Remembers a segment that was given, in the place of one that the server has passed.
    fn remember(&mut self, name: SegmentName, given: Given) {
        self.recent.insert(name, given);
        let Some(handed) = self.handed.filter(|_| self.recent.len() > REMEMBERED) else { return };
        // On whatever timeline: one that was left lies behind all others.
        let is_passed = |name: &&SegmentName| (name.log, name.segment) < (handed.log, handed.segment);
        let passed =
            self.recent.keys().filter(is_passed).min_by_key(|name| (name.log, name.segment)).copied();
        if let Some(passed) = passed {
            self.recent.remove(&passed);
        }
    }
}

impl Served {
    /// Takes over what the recovery began with.
    pub(crate) fn begin(&self, origin: &OriginKeeper) {
        self.begun.get_or_init(|| {
            let Some((repository, segment)) = origin.served() else { return };
            let mut state = self.state();
            state.home = Some(repository);
            if let Some(ServedSegment { name, hash, content_len, keyed }) = segment {
                state.recent.insert(name, Given { repository, hash, content_len, chain: None, keyed });
            }
        });
    }

    /// The repository that is asked first; `None`: in the order of the configuration.
    pub(crate) fn first(&self) -> Option<RepositoryId> {
        let state = self.state();
        state.home.filter(|home| !state.agreed.keys().any(|(one, _)| one == home))
    }

    /// Fails with a [`LastingError`] if a segment of `wal` is another server's than what was given before, or than what the server has.
    /// `own`: where the server keeps its WAL; `opened`: the archive in another repository, if it is at hand, and what the configuration
    /// calls it.
    pub(crate) async fn admit(
        &self,
        wal: &WalArchive,
        (name, header): (SegmentName, &WalHeader),
        own: Option<&Path>,
        opened: impl Fn(RepositoryId) -> (String, Option<WalArchive>),
    ) -> anyhow::Result<()> {
        if header.damaged {
            return Ok(());
        }
        self.continues_given(wal, (name, header), own, opened).await?;
        let offered = Offered { name, hash: header.hash, chain: &header.chain };
        self.continues_own(wal, offered, own).await
    }

    /// Fails if a segment is another server's than what the server has in `pg_wal` since it was handed a segment last.
    async fn continues_own(
        &self,
        wal: &WalArchive,
        offered: Offered<'_>,
        own: Option<&Path>,
    ) -> anyhow::Result<()> {
        let Some(directory) = own else { return Ok(()) };
        let (name, size) = (offered.name, wal.lineage().segment_size);
        let handed = self.state().handed;
        let handed = handed.filter(|handed| handed.timeline == name.timeline && *handed < name);
        let after = handed.and_then(|handed| handed.number(size));
        match own::shown(directory, wal, offered, after).await? {
            Some(Own::Different(what)) => Err(LastingError(format!(
                "it holds another server's WAL than {}: {what}\nHINT: {WAYS_OUT}",
                directory.display()
            ))
            .into()),
            Some(Own::Same(_)) | None => Ok(()),
        }
    }

    /// As [`Self::admit`], for a segment that a repository gave ahead of the request and that is about to be handed over.
    pub(crate) async fn admit_again(
        &self,
        name: SegmentName,
        own: Option<&Path>,
        opened: impl Fn(RepositoryId) -> Option<WalArchive>,
    ) -> anyhow::Result<()> {
        let given = self.state().recent.get(&name).copied();
        let Some(Given { repository, hash, chain: Some(chain), .. }) = given else { return Ok(()) };
        let Some(wal) = opened(repository) else {
            anyhow::bail!("the repository that gave \"{name}\" is not open");
        };
        self.continues_own(&wal, Offered { name, hash, chain: &chain }, own).await
    }

    /// A segment is handed to the server.
    pub(crate) fn hand_over(&self, name: SegmentName) {
        self.state().handed = Some(name);
    }

    /// Forgets everything: the data directory belongs to another lineage.
    pub(crate) fn forget(&self) {
        *self.state() = State::default();
    }

    /// Fails if a segment is another server's than what was given before.
    async fn continues_given(
        &self,
        wal: &WalArchive,
        (name, header): (SegmentName, &WalHeader),
        own: Option<&Path>,
        opened: impl Fn(RepositoryId) -> (String, Option<WalArchive>),
    ) -> anyhow::Result<()> {
        let (id, size) = (wal.repository().id(), wal.lineage().segment_size);
        let Some(known) = self.known(id, name, size) else { return Ok(()) };
        for (other, given) in known.neighbors {
            let (before, after) = if other < name {
                (given.chain, Some(header.chain))
            } else {
                (Some(header.chain), given.chain)
            };
            if let (Some(before), Some(after)) = (before, after)
                && matches!(ChainEnd::UNKNOWN.after(&before).link(&after), Link::Broken(_))
            {
                let what = format!("\"{name}\" and \"{other}\" do not continue each other");
                return Err(another(&what, &opened(given.repository).0));
            }
        }
        if known.continued {
            return Ok(());
        }
        let (home, archive) = opened(known.home);
        if let Some(archive) = archive.filter(|_| known.home != id) {
            let compared = agreement::around(&archive, wal, name, header);
            // What cannot be found out in time shows nothing.
            if let Ok(Ok(Around { agreement, compared })) = tokio::time::timeout(CONTENT, compared).await {
                if let Agreement::Different(what) = agreement {
                    return Err(another(&what, &home));
                }
                if let Some(compared) = compared {
                    self.state().agreed.insert((id, known.home), compared);
                    return Ok(());
                }
            }
        }
        if let Some(directory) = own {
            let offered = Offered { name, hash: header.hash, chain: &header.chain };
            match own::shown(directory, wal, offered, None).await? {
                Some(Own::Different(what)) => return Err(another(&what, &home)),
                Some(Own::Same(before)) => {
                    self.state().agreed.insert((id, known.home), before);
                    return Ok(());
                }
                None => {}
            }
        }
        let Some((last, given)) = known.last else { return Ok(()) };
        let (other, archive) = opened(given.repository);
        match same(wal, archive.as_ref(), last, &given).await {
            Some(false) => Err(another(&format!("\"{last}\" has other content"), &other)),
            Some(true) => {
                self.state().agreed.insert((id, given.repository), last);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What is known around a segment that a repository has; `None` if nothing was given yet.
    fn known(&self, id: RepositoryId, name: SegmentName, size: SegmentSize) -> Option<Known> {
        let state = self.state();
        let home = state.home?;
        let number = name.number(size)?;
        let neighbor = |number: SegmentNo| {
            let name = number.name(name.timeline, size);
            state.recent.get(&name).map(|given| (name, *given))
        };
        let before = number.0.checked_sub(1).map(SegmentNo).and_then(neighbor);
        let elsewhere = |(_, given): &(SegmentName, Given)| given.repository != id;
        // Of what an earlier process gave, all may lie behind it: the server was started anew, or was fetched ahead for.
        let mut around =
            state.recent.range(..name).next_back().into_iter().chain(state.recent.range(name..).next());
        let last = around.next().map(|(name, given)| (*name, *given)).filter(elsewhere);
        let continues = before.is_some_and(|(_, given)| given.repository == id);
        let agreed = last.and_then(|(_, given)| state.agreed.get(&(id, given.repository)).copied());
        let is_home = home == id;
        let agrees = is_home || state.agreed.contains_key(&(id, home));
        let back_home = is_home && last.is_none_or(|(last, _)| agreed >= Some(last));
        Some(Known {
            home,
            neighbors: [before, neighbor(number.next())].into_iter().flatten().filter(elsewhere).collect(),
            continued: back_home || continues && agrees,
            last,
        })
    }

    /// Remembers that a repository gave a segment.
    pub(crate) fn note(
        &self,
        wal: &WalArchive,
        name: SegmentName,
        header: &WalHeader,
        origin: &OriginKeeper,
    ) {
        let repository = wal.repository().id();
        let given = Given {
            repository,
            hash: header.hash,
            content_len: header.content_len,
            chain: Some(header.chain),
            keyed: Some(wal.repository().sealer().is_encrypted()),
        };
        if header.damaged {
            return;
        }
        let mut state = self.state();
        state.remember(name, given);
        let newest = state.recent.keys().next_back().is_some_and(|newest| *newest == name);
        if !newest {
            return;
        }
        state.home = Some(repository);
        drop(state);
        origin.note_served(
            repository,
            ServedSegment { name, hash: header.hash, content_len: header.content_len, keyed: given.keyed },
        );
    }

    /// The state. A panic elsewhere leaves it usable: each change is a single assignment or insertion.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was given around a segment.
struct Known {
    /// The repository that gave the last one.
    home: RepositoryId,
    /// The segments before and behind it, where another repository gave them. Not across timelines: the older one may go on behind
    /// the fork, and is fetched ahead there.
    neighbors: Vec<(SegmentName, Given)>,
    /// Nothing needs to be compared: the repository gave what comes before, or agrees with the one that did.
    continued: bool,
    /// The newest one before it, or the first one of all, where another repository gave that.
    last: Option<(SegmentName, Given)>,
}

/// Whether a repository has the content of a segment that another one gave; `None` if that cannot be found out now.
async fn same(
    wal: &WalArchive,
    other: Option<&WalArchive>,
    name: SegmentName,
    given: &Given,
) -> Option<bool> {
    let header = wal.header(name).await.ok().flatten().filter(|header| !header.damaged)?;
    if header.hash == given.hash {
        return Some(true);
    }
    if header.content_len != given.content_len || given.chain.is_some_and(|chain| chain != header.chain) {
        return Some(false);
    }
    // Hashes of an encrypted repository have a key of their own.
    let keyed = |wal: &WalArchive| wal.repository().sealer().is_encrypted();
    if !keyed(wal) && other.map(keyed).or(given.keyed) == Some(false) {
        return Some(false);
    }
    let compared = tokio::time::timeout(CONTENT, wal.same_segment(other?, name)).await;
    compared.ok()?.ok()?
}

fn another(what: &str, other: &str) -> anyhow::Error {
    LastingError(format!(
        "it holds another server's WAL than repository {other}, from which this recovery was given what comes before: \
         {what}\nHINT: Leave only the repository of the server that you mean in the configuration."
    ))
    .into()
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::*;

    #[test]
    fn what_was_fetched_ahead_is_remembered_until_it_was_passed() {
        let name = |number: u64| SegmentNo(number).name(TimelineId::FIRST, SegmentSize::DEFAULT);
        let given = Given {
            repository: RepositoryId([1; 16]),
            hash: ContentHash([7; 32]),
            content_len: 9,
            chain: None,
            keyed: None,
        };
        let mut state = State::default();
        let ahead = 2 * REMEMBERED as u64;
        (1..=ahead).for_each(|number| state.remember(name(number), given));
        assert_eq!(state.recent.len(), 2 * REMEMBERED, "none was handed over");
        for number in ahead + 1..=2 * ahead {
            state.handed = Some(name(number - ahead));
            state.remember(name(number), given);
            assert!(
                (number - ahead..=number).all(|number| state.recent.contains_key(&name(number))),
                "{number}"
            );
        }
        assert_eq!(state.recent.len(), 2 * REMEMBERED + 1, "one goes for each that comes");
    }
}
