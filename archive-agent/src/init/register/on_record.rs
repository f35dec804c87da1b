//! Which repositories acknowledge by the records that are there before a registration changes anything.

use walpoint_repo::lineage::AckMember;
use walpoint_repo::{Acknowledging, Lineage, Repository, oldest_first};
use walpoint_storage::RepoError;
use walpoint_storage::object::RepositoryId;

use super::Joined;

/// Those that a lineage has on record. What a damaged document says besides is not known: the daemon refuses to rely on that.
pub(super) async fn members(repository: &Repository, lineage: &Lineage) -> Result<Vec<AckMember>, RepoError> {
    Ok(repository.acknowledging_before_damage(lineage).await?.0.members)
}

/// Those that all of these lineages, which are one server's, have on record.
pub(super) async fn members_of_all(found: &[(Lineage, Repository)]) -> Result<Vec<AckMember>, RepoError> {
    let mut all: Vec<AckMember> = Vec::new();
    for (lineage, repository) in found {
        for member in members(repository, lineage).await? {
            if !walpoint_repo::is_among(&all, member.repository) {
                all.push(member);
            }
        }
    }
    Ok(all)
}

/// What the other repositories with a lineage have on record, but for what is damaged; and all repositories with the lineage. One that
/// does not answer is an error: it may name more than the others.
pub(super) async fn beside(
    lineage: &Lineage,
    joined: &[Joined<'_>],
) -> Result<(Vec<(RepositoryId, Acknowledging)>, Vec<AckMember>), RepoError> {
    let (mut others, mut here) = (Vec::new(), Vec::new());
    for other in joined.iter().filter(|other| lineage.is_same_life(&other.lineage)) {
        let repository = &other.opened.repository;
        here.push(AckMember { name: repository.name().to_owned(), repository: repository.id() });
        if std::ptr::eq(&other.lineage, lineage) {
            continue;
        }
        match repository.acknowledging(&other.lineage).await {
            Ok(known) => others.push((repository.id(), known)),
            Err(RepoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((others, here))
}

/// Those of these repositories (`here`) that may acknowledge alone: what they have on record names them themselves.
pub(super) fn alone(others: &[(RepositoryId, Acknowledging)], here: &[AckMember]) -> Vec<AckMember> {
    let names_itself = |id: RepositoryId| {
        others.iter().any(|(of, known)| *of == id && walpoint_repo::is_among(&known.members, id))
    };
    here.iter().filter(|member| names_itself(member.repository)).cloned().collect()
}

/// In the order in which they record others: those on record come first.
pub(super) async fn in_order<'a, 'o>(joined: &'a [Joined<'o>]) -> Result<Vec<&'a Joined<'o>>, RepoError> {
    let mut named = Vec::new();
    for Joined { opened, lineage, .. } in joined {
        named.extend(members(&opened.repository, lineage).await?);
    }
    let mut order: Vec<&Joined<'_>> = joined.iter().collect();
    oldest_first(&mut order, &named, |one| one.opened.repository.id());
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::Bed;

    #[tokio::test]
    async fn a_lineage_that_exists_elsewhere_takes_over_who_is_on_record() {
        let (main, far) = (Bed::named("main").await, Bed::named("far").await);
        let [(of_main, main_id), (of_far, far_id)] = [&main, &far].map(|bed| {
            let repository = bed.archive.repository();
            let member = AckMember { name: repository.name().to_owned(), repository: repository.id() };
            ((bed.archive.lineage().clone(), repository.clone()), member)
        });
        let both = [of_main, of_far];
        assert!(members_of_all(&both).await.unwrap().is_empty());
        for ((lineage, repository), members) in
            both.iter().zip([vec![main_id.clone()], vec![main_id.clone(), far_id.clone()]])
        {
            let known = repository.acknowledging(lineage).await.unwrap();
            let next = known.extended_by(&members, &[]).unwrap();
            repository.supersede_acknowledging(lineage, &next).await.unwrap();
        }
        assert_eq!(members_of_all(&both[..1]).await.unwrap(), vec![main_id.clone()]);
        main.damage_record(1);
        assert_eq!(members_of_all(&both).await.unwrap(), [main_id, far_id]);
    }
}
