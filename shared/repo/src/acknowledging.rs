//! Which repositories acknowledge a lineage's WAL by now: a repository that was lost and made anew takes the place of the old one.
//!
//! A lineage names them when it is created, by their random ids. `clusters/<name>/<lineage>/ack/<n>` is a numbered sequence of
//! documents that replace that; the last one counts. `init` writes one where the repository of a name is another one than before.
//! The facts of the lineage stay as they are. A crash leaves the sequence with the next document or without it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::LineageId;
use walpoint_storage::descriptor::now;
use walpoint_storage::document::{self, as_text};
use walpoint_storage::error::{RepoError, Result, found};
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
    /// What comes of these repositories when those of the configuration are `now`: one of the same name and another id takes the
    /// place of the one that was lost. One of those that are `there`, under whatever name and whether or not they acknowledge here,
    /// was not lost. `None` if nothing changes.
    pub fn superseded_by(&self, now: &[AckMember], there: &[RepositoryId]) -> Option<Self> {
        let mut next = self.clone();
        for member in &mut next.members {
            let is = |other: &&AckMember| other.repository == member.repository;
            let Some(new) = now.iter().find(|new| new.name == member.name && !is(new)) else { continue };
            if !now.iter().any(|other| is(&other)) && !there.contains(&member.repository) {
                next.replaced.push(std::mem::replace(&mut member.repository, new.repository));
            }
        }
        let mut seen = Vec::new();
        next.members.retain(|member| {
            let new = !seen.contains(&member.repository);
            seen.push(member.repository);
            new
        });
        (next.members != self.members).then_some(next)
    }
}

impl Repository {
    /// The repositories that acknowledge a lineage's WAL by now.
    pub async fn acknowledging(&self, lineage: &Lineage) -> Result<Acknowledging> {
        let (paths, prefix) =
            (lineage.cluster_paths(), lineage.cluster_paths().acknowledging_all(lineage.id));
        let listed = self.store().list_all(&prefix).await?;
        let numbers = listed.iter().filter_map(|entry| entry.key.below(&prefix)?.parse::<u64>().ok());
        let Some(last) = numbers.max() else {
            return Ok(Acknowledging { members: lineage.ack.clone(), replaced: Vec::new(), next: 0 });
        };
        let key = paths.acknowledging(lineage.id, last);
        let bytes = found(self.store().get(&key).await)?
            .ok_or_else(|| RepoError::corrupt(&key, "it was listed and is not there"))?;
        let document: Document = document::open(Some(self.sealer()), &key, &bytes)?;
        let replaced = document.replaced.iter().map(|id| id.parse()).collect::<std::result::Result<_, _>>();
        match replaced {
            Ok(replaced) if document.lineage == lineage.id => {
                Ok(Acknowledging { members: document.ack, replaced, next: last.saturating_add(1) })
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
    fn a_repository_that_was_made_anew_takes_its_place() {
        let old =
            Acknowledging { members: vec![member("a", 1), member("b", 2)], replaced: Vec::new(), next: 0 };
        assert_eq!(old.superseded_by(&[member("a", 1), member("b", 2)], &[]), None);
        let new = old.superseded_by(&[member("a", 3), member("b", 2)], &[]).unwrap();
        assert_eq!(new.members, [member("a", 3), member("b", 2)]);
        assert_eq!(new.replaced, [RepositoryId([1; 16])]);
        assert_eq!(old.superseded_by(&[member("b", 2)], &[]), None, "one that is only not configured counts");
        let there = [RepositoryId([1; 16]), RepositoryId([3; 16])];
        assert_eq!(
            old.superseded_by(&[member("a", 3)], &there),
            None,
            "one that does not acknowledge here counts"
        );
        assert_eq!(
            old.superseded_by(&[member("a", 2), member("b", 1)], &[]),
            None,
            "they only changed their names"
        );
    }
}
