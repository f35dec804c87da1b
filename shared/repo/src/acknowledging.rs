//! Which repositories acknowledge a lineage's WAL by now: a repository that was lost and made anew takes the place of the old one.
//!
//! A lineage names them when it is created, by their random ids. `clusters/<name>/<lineage>/ack/<n>` is a numbered sequence of
//! documents that replace that; the last one counts. `init` writes one where a person says that a repository is lost or where the last one
//! is damaged, and `init` and the daemon where the configuration has others acknowledge, beside those or instead of them: then absence is
//! only harder to prove. A damaged one says nothing, and the next one replaces it too. The facts of the lineage stay as they are. A crash
//! leaves the sequence with the next document or without it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::LineageId;
use walpoint_storage::descriptor::now;
use walpoint_storage::document::{self, as_text};
use walpoint_storage::error::{Remedy, RepoError, Result, found};
use walpoint_storage::object::RepositoryId;

use crate::lineage::{AckMember, Lineage};
use crate::repository::Repository;

/// The repositories of a lineage that acknowledge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acknowledging {
    /// Absence is proven only when all of these say so.
    pub members: Vec<AckMember>,
    /// Repositories that acknowledged once and were replaced.
    pub replaced: Vec<RepositoryId>,
    /// The number of the next document.
    next: u64,
}

/// A document of the sequence.
#[derive(Serialize, Deserialize)]
struct Document {
    format: u16,
    #[serde(with = "as_text")]
    lineage: LineageId,
    ack: Vec<AckMember>,
    replaced: Vec<String>,
    created: Timestamp,
}

impl Acknowledging {
    /// What comes of these repositories when a person says that some are `lost`: one of the configuration (`now`) that does not
    /// acknowledge yet takes the place of each, that of the same name or the only one. What is `there` was not lost, whatever is said,
    /// and a name proves nothing: another host has other names. `None` if nothing changes.
    pub fn superseded_by(
        &self,
        now: &[AckMember],
        there: &[RepositoryId],
        lost: &[RepositoryId],
    ) -> Option<Self> {
        let mut next = self.clone();
        for at in 0..next.members.len() {
            let Some(old) = next.members.get(at).cloned() else { break };
            let is_there =
                there.contains(&old.repository) || now.iter().any(|new| new.repository == old.repository);
            if is_there || !lost.contains(&old.repository) {
                continue;
            }
            let is_member =
                |new: &&AckMember| next.members.iter().any(|member| member.repository == new.repository);
            let free: Vec<&AckMember> = now.iter().filter(|new| !is_member(new)).collect();
            let same_name = free.iter().find(|new| new.name == old.name);
            let new = same_name.or(if let [only] = &free[..] { Some(only) } else { None });
            if let (Some(new), Some(member)) = (new.copied().cloned(), next.members.get_mut(at)) {
                next.replaced.push(std::mem::replace(member, new).repository);
            }
        }
        (next.members != self.members).then_some(next)
    }

    /// What comes of these repositories when the configuration has others acknowledge (`now`): those are added, and none is left out.
    /// One that was replaced once is not: no reader waits for its word. `None` if nothing changes, or one of these neither acknowledges
    /// now nor is `there`: that one's own record would not name the others.
    pub fn extended_by(&self, now: &[AckMember], there: &[RepositoryId]) -> Option<Self> {
        let is_there = |id| is_among(now, id) || there.contains(&id);
        if !self.members.iter().all(|member| is_there(member.repository)) {
            return None;
        }
        let is_new = |new: &&AckMember| {
            !is_among(&self.members, new.repository) && !self.replaced.contains(&new.repository)
        };
        let mut next = self.clone();
        next.members.extend(now.iter().filter(is_new).cloned());
        (next.members != self.members).then_some(next)
    }

    /// What a record says again whose last document is damaged, with what other repositories have on record (`others`). Those that
    /// acknowledge are the members of all, without those that one of them names as replaced. Only a member's record is known to name
    /// all: where no record of one is sound, the damaged document may have named any of the repositories that are `there`, so each counts.
    #[must_use]
    pub fn again(&self, others: &[(RepositoryId, Self)], there: &[AckMember]) -> Self {
        let mut again = self.clone();
        for (_, other) in others {
            again.members.extend(other.members.iter().cloned());
            again.replaced.extend(other.replaced.iter().copied());
        }
        if !others.iter().any(|(id, _)| is_among(&again.members, *id)) {
            again.members.extend(there.iter().cloned());
        }
        let mut seen = BTreeSet::new();
        again.replaced.retain(|id| seen.insert(*id));
        // What was replaced is among those that were seen.
        again.members.retain(|member| seen.insert(member.repository));
        again
    }

    /// Counts repositories as replaced that a person says are lost and that are not `there`, as long as another one is left.
    pub fn without(&mut self, lost: &[RepositoryId], there: &[RepositoryId]) {
        for id in lost.iter().filter(|id| !there.contains(id)) {
            let is_left = self.members.iter().any(|member| member.repository != *id);
            if is_left && !self.replaced.contains(id) {
                self.members.retain(|member| member.repository != *id);
                self.replaced.push(*id);
            }
        }
    }

    /// Those that are none of these repositories: recovery waits for their word.
    pub fn elsewhere<'a>(&'a self, there: &'a [RepositoryId]) -> impl Iterator<Item = &'a AckMember> {
        self.members.iter().filter(|member| !there.contains(&member.repository))
    }
}

/// Whether a repository is one of these.
pub fn is_among(members: &[AckMember], id: RepositoryId) -> bool {
    members.iter().any(|member| member.repository == id)
}

/// Whether `members` name all of those that acknowledge `now`.
pub fn names_all(members: &[AckMember], now: &[AckMember]) -> bool {
    now.iter().all(|one| is_among(members, one.repository))
}

/// Puts repositories in the order in which their records are written: those that most of the records name (`named`, with repetitions)
/// come first, and those that join now come last. Where that ends early, the record of each one that joins names the older ones, and
/// theirs name it.
pub fn oldest_first<T>(repositories: &mut [T], named: &[AckMember], id: impl Fn(&T) -> RepositoryId) {
    let times = |id: RepositoryId| named.iter().filter(|one| one.repository == id).count();
    repositories.sort_by_key(|repository| std::cmp::Reverse(times(id(repository))));
}

impl Repository {
    /// The repositories that acknowledge a lineage's WAL by now. A damaged document is an error: those before it may name too few.
    pub async fn acknowledging(&self, lineage: &Lineage) -> Result<Acknowledging> {
        match self.acknowledging_before_damage(lineage).await? {
            (known, None) => Ok(known),
            (_, Some(damage)) => Err(damage),
        }
    }

    /// What the last document says that can be read, and what is wrong with the last one, if that cannot. Another document can be put in
    /// the place of both.
    pub async fn acknowledging_before_damage(
        &self,
        lineage: &Lineage,
    ) -> Result<(Acknowledging, Option<RepoError>)> {
        let prefix = lineage.cluster_paths().acknowledging_all(lineage.id);
        let listed = self.store().list_all(&prefix).await?;
        let numbers = listed.iter().filter_map(|entry| entry.key.below(&prefix)?.parse::<u64>().ok());
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
        let next = numbers.first().map_or(0, |last| last.saturating_add(1));
        let mut damage = None;
        for number in numbers {
            match self.read_acknowledging(lineage, number).await {
                Ok(known) => return Ok((Acknowledging { next, ..known }, damage)),
                Err(RepoError::Corrupt { key, what, .. }) => {
                    let remedy = Some(Remedy::SupersedeAgain);
                    damage.get_or_insert(RepoError::Corrupt { key, what, remedy });
                }
                Err(error) => return Err(error),
            }
        }
        Ok((Acknowledging { members: lineage.ack.clone(), replaced: Vec::new(), next }, damage))
    }

    /// A document of the sequence.
    async fn read_acknowledging(&self, lineage: &Lineage, number: u64) -> Result<Acknowledging> {
        let key = lineage.cluster_paths().acknowledging(lineage.id, number);
        let bytes = found(self.store().get(&key).await)?
            .ok_or_else(|| RepoError::corrupt(&key, "it was listed and is not there"))?;
        let document: Document = document::open(Some(self.sealer()), &key, &bytes)?;
        let replaced = document.replaced.iter().map(|id| id.parse()).collect::<std::result::Result<_, _>>();
        match replaced {
            Ok(replaced) if document.lineage == lineage.id => {
                Ok(Acknowledging { members: document.ack, replaced, next: number.saturating_add(1) })
            }
            _ => Err(RepoError::corrupt(&key, "it is another lineage's, or names no repositories")),
        }
    }

    /// Puts these in the place of what [`Self::acknowledging`] gave. Fails with a conflict if another program does so at the same
    /// moment.
    pub async fn supersede_acknowledging(&self, lineage: &Lineage, by: &Acknowledging) -> Result<()> {
        let key = lineage.cluster_paths().acknowledging(lineage.id, by.next);
        let content = Document {
            format: walpoint_storage::object::FORMAT_VERSION,
            lineage: lineage.id,
            ack: by.members.clone(),
            replaced: by.replaced.iter().map(RepositoryId::to_string).collect(),
            created: now(),
        };
        let document = document::seal(Some(self.sealer()), &key, &content)?;
        self.store().create_document(&document).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, id: u8) -> AckMember {
        AckMember { name: name.to_owned(), repository: RepositoryId([id; 16]) }
    }

    #[test]
    fn a_repository_that_a_person_says_is_lost_has_a_successor_and_a_name_alone_shows_nothing() {
        let id = |id| RepositoryId([id; 16]);
        let old =
            Acknowledging { members: vec![member("a", 1), member("b", 2)], replaced: Vec::new(), next: 0 };
        assert_eq!(old.superseded_by(&[member("a", 1), member("b", 2)], &[], &[]), None);
        let anew = [member("a", 3), member("b", 2)];
        assert_eq!(old.superseded_by(&anew, &[], &[]), None, "another host has other names");
        let new = old.superseded_by(&anew, &[], &[id(1)]).unwrap();
        assert_eq!(new.members, anew);
        assert_eq!(new.replaced, [id(1)]);
        assert_eq!(new.superseded_by(&anew, &[], &[id(1)]), None, "once is enough");
        let renamed = old.superseded_by(&[member("c", 3), member("b", 2)], &[], &[id(1)]).unwrap();
        assert_eq!(renamed.members, [member("c", 3), member("b", 2)]);
        assert_eq!(old.superseded_by(&[member("b", 2)], &[], &[id(1)]), None, "nothing takes its place");
        assert_eq!(
            old.superseded_by(&[member("a", 3)], &[id(1), id(3)], &[id(1)]),
            None,
            "it is there, though it does not acknowledge here"
        );
        let crossed = [member("a", 2), member("b", 1)];
        assert_eq!(old.superseded_by(&crossed, &[], &[id(1), id(2)]), None, "they only changed their names");
        let there = [id(2), id(3)];
        assert_eq!(old.elsewhere(&there).collect::<Vec<_>>(), [&member("a", 1)]);
    }

    #[test]
    fn a_damaged_record_is_written_again_with_what_the_sound_ones_say() {
        let (a, b, c) = (member("a", 1), member("b", 2), member("c", 3));
        let of = |members: &[&AckMember], replaced: &[&AckMember]| Acknowledging {
            members: members.iter().copied().cloned().collect(),
            replaced: replaced.iter().map(|one| one.repository).collect(),
            next: 1,
        };
        let before = of(&[&a], &[]);
        let here = [a.clone(), b.clone(), c.clone()];
        let says = |one: &AckMember, known| (one.repository, known);
        assert_eq!(before.again(&[says(&b, of(&[&a, &b], &[]))], &here), of(&[&a, &b], &[]));
        let replaced = before.again(&[says(&b, of(&[&b], &[&a]))], &here);
        assert_eq!(replaced, of(&[&b], &[&a]), "another one took its place");
        assert_eq!(before.again(&[], &here), of(&[&a, &b, &c], &[]), "it may have named any of them");
        let outside = before.again(&[says(&c, of(&[&a], &[]))], &here);
        assert_eq!(outside, of(&[&a, &b, &c], &[]), "one that never acknowledged may not name all");
        assert_eq!(before.again(&[], &here[..1]), before);
        let mut left = of(&[&a, &b], &[]);
        left.without(&[a.repository, b.repository, c.repository], &[a.repository]);
        assert_eq!(left, of(&[&a], &[&b, &c]), "what is there is not lost");
        left.without(&[a.repository], &[]);
        assert_eq!(left, of(&[&a], &[&b, &c]), "one is left");
    }

    #[test]
    fn the_records_of_old_members_are_written_before_those_of_new_ones() {
        let (old, new, third) = (member("old", 1), member("new", 2), member("third", 3));
        let mut order = [new.clone(), third.clone(), old.clone()];
        // The new one names itself, and the third one was interrupted.
        let named = [old.clone(), old.clone(), new.clone(), old.clone(), third.clone(), third.clone()];
        oldest_first(&mut order, &named, |one| one.repository);
        assert_eq!(order, [old, third, new]);
    }

    #[test]
    fn repositories_are_added_to_those_that_acknowledge_and_none_is_left_out() {
        let (a, b, c) = (member("a", 1), member("b", 2), member("c", 3));
        let old = Acknowledging { members: vec![a.clone()], replaced: vec![c.repository], next: 7 };
        let new = old.extended_by(&[b.clone(), a.clone()], &[]).unwrap();
        assert_eq!((&new.members[..], new.next), (&[a.clone(), b.clone()][..], 7));
        assert_eq!(new.extended_by(&[a.clone(), b.clone()], &[]), None, "once is enough");
        assert_eq!(
            new.extended_by(std::slice::from_ref(&a), &[b.repository]),
            None,
            "fewer are what they were"
        );
        let alone = std::slice::from_ref(&b);
        assert_eq!(old.extended_by(alone, &[b.repository]), None, "what the other one records is not known");
        let moved = old.extended_by(alone, &[a.repository, b.repository]).unwrap();
        assert_eq!(moved.members, new.members, "its word counts still");
        assert_eq!(old.extended_by(&[a.clone(), c], &[]), None, "its word counts no longer");
        assert_eq!(old.extended_by(&[member("other", 1)], &[]), None, "a name is none of its own");
    }
}
