//! Whether there is a backup, and what is known to be damaged leaves one that can be restored.

use jiff::Timestamp;
use walpoint_plan::retention::{Candidate, Policy, Soundness};
use walpoint_repo::expire::outlook;

use super::Destination;
use crate::check::report::CheckReport;

/// Whether there is a backup, and what is known to be damaged leaves one that can be restored.
pub(crate) async fn sound(report: &mut CheckReport, destinations: &[Destination]) {
    for Destination { repository, lineage, .. } in destinations {
        let what = format!("repository {}: backups", repository.name());
        let outlook = outlook(repository, &lineage.cluster, &Policy::default(), Timestamp::now()).await;
        let Some(outlook) = report.take(&what, outlook.map_err(Into::into)) else { continue };
        let backups: Vec<&Candidate> = outlook.decisions.iter().map(|decision| &decision.backup).collect();
        judge_backups(report, what, &backups);
    }
}

/// Puts into words what is known to be wrong with backups, the oldest of which comes first.
fn judge_backups(report: &mut CheckReport, what: String, backups: &[&Candidate]) {
    if backups.is_empty() {
        let advice = "Take one (archive-agent backup): nothing can be restored without it.";
        return report.warning(what, "there is no base backup", advice);
    }
    let broken = |backup: &Candidate| backup.soundness() == Soundness::Broken;
    let advice = "Take a backup (archive-agent backup): it stores the damaged objects again; \
        \"archive-agent verify\" lists them.";
    match backups.last().filter(|newest| broken(newest)) {
        Some(newest) if backups.iter().all(|backup| broken(backup)) => report.failed(
            what,
            format!("none can be restored whole: the newest one, {}, has {}", newest.id, newest.damage),
            advice,
        ),
        Some(newest) => report.warning(
            what,
            format!("the newest one, {}, cannot be restored whole: it has {}", newest.id, newest.damage),
            advice,
        ),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::{BackupId, Lsn, TimelineId};
    use walpoint_plan::retention::Damage;

    use super::*;
    use crate::check::report::Grade;

    fn backup(n: u32, packs: u64) -> Candidate {
        let id = BackupId::new(Timestamp::UNIX_EPOCH, TimelineId::FIRST, Lsn(0x200_0028), n);
        Candidate {
            id,
            lineage: "7412345678901234567-1".parse().unwrap(),
            ended: Timestamp::UNIX_EPOCH,
            complete_by: Timestamp::UNIX_EPOCH,
            latest_commit: None,
            stop: Lsn(0x300_0000),
            stop_timeline: TimelineId::FIRST,
            label: String::new(),
            damage: Damage { packs, ..Damage::default() },
        }
    }

    fn judged(packs: &[u64]) -> CheckReport {
        let backups: Vec<Candidate> = (0u32..).zip(packs).map(|(n, packs)| backup(n, *packs)).collect();
        let mut report = CheckReport::default();
        judge_backups(&mut report, "backups".to_owned(), &backups.iter().collect::<Vec<_>>());
        report
    }

    /// What the repository knows to be damaged is no silent success.
    #[test]
    fn backups_that_are_known_to_be_damaged_are_told() {
        for sound in [&[0][..], &[0, 0], &[3, 0]] {
            assert_eq!(judged(sound).lines(), [], "{sound:?}");
        }
        assert_eq!(judged(&[]).count(Grade::Warning), 1, "nothing can be restored");
        for (packs, grade) in [(&[0, 2][..], Grade::Warning), (&[2], Grade::Failed), (&[1, 2], Grade::Failed)]
        {
            let report = judged(packs);
            assert_eq!(report.count(grade), 1, "{packs:?}");
            assert!(report.lines()[0].found.contains("2 damaged or missing packs"), "{report:?}");
        }
    }
}
