//! What a verification puts on record as evidence, and which backups it proves.

use std::collections::BTreeSet;

use walpoint_base::BackupId;
use walpoint_plan::retention::Damage;
use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_repo::expire::Outlook;
use walpoint_repo::verify::{Depth, Verified, VerifyOptions};
use walpoint_runtime::args::Selection;
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;
use walpoint_words::recording;

use crate::evidence::draft;

/// Records what was found.
pub(super) async fn verified(
    repository: &Repository,
    selection: &Selection<StoreSettings>,
    outlook: &Outlook,
    options: &VerifyOptions,
    verified: &Verified,
) {
    let subjects: Vec<Subject> = outlook
        .decisions
        .iter()
        .filter(|decision| options.backup.map_or(decision.stays(), |backup| backup == decision.backup.id))
        .map(|decision| Subject { id: decision.backup.id, flaw: flaw(decision.backup.damage) })
        .collect();
    recording::append(repository, selection, &said(&subjects, options, verified)).await;
}

/// A backup that was verified.
struct Subject {
    id: BackupId,
    /// What is known to be wrong with it although every byte of it is what was stored.
    flaw: Option<Damage>,
}

/// What a verification does not find, because it was so when the backup was taken, or because it is not the backup's own.
fn flaw(damage: Damage) -> Option<Damage> {
    let lasting = Damage { pages: damage.pages, history: damage.history, ..Damage::default() };
    (lasting != Damage::default()).then_some(lasting)
}

/// The backups of which every byte was read and found sound, and so was their WAL. Where not all findings are known, none.
fn proven(subjects: &[Subject], options: &VerifyOptions, verified: &Verified) -> Vec<BackupId> {
    let all_known = verified.findings.len() as u64 == verified.finding_count;
    if options.depth != Depth::Full || !all_known {
        return Vec::new();
    }
    let affected: BTreeSet<&str> =
        verified.findings.iter().flat_map(|finding| finding.backups.iter().map(String::as_str)).collect();
    subjects
        .iter()
        .filter(|subject| subject.flaw.is_none() && !affected.contains(subject.id.to_string().as_str()))
        .map(|subject| subject.id)
        .collect()
}

fn said(subjects: &[Subject], options: &VerifyOptions, verified: &Verified) -> Draft {
    let backups = proven(subjects, options, verified);
    let flaws = subjects.iter().filter_map(|subject| subject.flaw.as_ref().map(|flaw| (subject.id, flaw)));
    let flaws: Vec<String> = flaws.map(|(id, flaw)| format!("backup {id}: {flaw}")).collect();
    let outcome = match (verified.finding_count, flaws.is_empty(), backups.is_empty()) {
        (0, true, _) => Outcome::Success,
        (0, false, _) | (_, _, false) => Outcome::Partial,
        (_, _, true) => Outcome::Failed,
    };
    let scenario = match options.depth {
        Depth::Full if options.backup.is_some() => {
            "every byte of one backup and the WAL that makes it consistent"
        }
        Depth::Full => "every byte",
        Depth::Light => "which objects exist, and how long they are",
        Depth::Sample(_) => "a sample of the objects",
        Depth::Budget(_) => "as many objects as the time allowed",
    };
    let issues = verified.findings.iter().map(|finding| format!("{}: {}", finding.object, finding.what));
    let issues = flaws.into_iter().chain(issues);
    Draft {
        seconds: Some(verified.seconds),
        scenario: Some(scenario.to_owned()),
        note: Some(format!(
            "{}, {}, {}; {} verified; {}",
            human::count(verified.backup_count, "backup"),
            human::count(verified.pack_count, "pack"),
            human::count(verified.segment_count, "segment"),
            human::size(verified.verified_bytes),
            human::count(verified.finding_count, "problem")
        )),
        ..draft(Kind::Verification, outcome).about(backups).with_issues(issues)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use walpoint_repo::verify::{Cure, FindingKind, ReportedDepth, VerifyFinding};

    use super::*;

    const IDS: [&str; 3] = [
        "20261121T101500Z-00000001-0000000002000028-9f3a0c11",
        "20261122T101500Z-00000001-0000000002000028-9f3a0c11",
        "20261123T101500Z-00000001-0000000002000028-9f3a0c11",
    ];

    fn found(affected: &[&str], finding_count: u64) -> Verified {
        let finding = |id: &&str| VerifyFinding {
            kind: FindingKind::Damaged,
            object: "o".to_owned(),
            what: "w".to_owned(),
            backups: vec![(*id).to_owned()],
            moments: None,
            remedy: Cure::Resupply,
        };
        Verified {
            cluster: "main".parse().unwrap(),
            repository: "main".to_owned(),
            depth: ReportedDepth::Everything,
            start_time: Timestamp::UNIX_EPOCH,
            backup_count: 3,
            pack_count: 0,
            segment_count: 0,
            read_object_count: 0,
            verified_bytes: 0,
            known_damaged_page_count: 0,
            finding_count,
            findings: affected.iter().map(finding).collect(),
            notes: Vec::new(),
            seconds: 1.0,
        }
    }

    fn options(depth: Depth, backup: Option<&str>) -> VerifyOptions {
        let backup = backup.map(|id| id.parse().unwrap());
        VerifyOptions { backup, depth, ..VerifyOptions::default() }
    }

    fn record_with(flaw: Damage, options: &VerifyOptions, verified: &Verified) -> Draft {
        let meant = |id: &BackupId| options.backup.map_or(id.to_string() != IDS[2], |backup| backup == *id);
        let ids = IDS.iter().map(|id| id.parse().unwrap()).filter(meant);
        let flaws = [super::flaw(flaw), None];
        let subjects: Vec<Subject> = ids.zip(flaws).map(|(id, flaw)| Subject { id, flaw }).collect();
        said(&subjects, options, verified)
    }

    fn record(options: &VerifyOptions, verified: &Verified) -> (Outcome, Vec<String>) {
        let said = record_with(Damage::default(), options, verified);
        (said.outcome, said.backups.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_backup_with_damaged_pages_or_without_its_history_is_not_proven() {
        let full = options(Depth::Full, None);
        for (damage, what) in [
            (Damage { pages: 3, ..Damage::default() }, "3 damaged pages"),
            (Damage { history: true, ..Damage::default() }, "no history of its timeline that can be read"),
        ] {
            let said = record_with(damage, &full, &found(&[], 0));
            let proven: Vec<String> = said.backups.iter().map(ToString::to_string).collect();
            assert_eq!((said.outcome, proven), (Outcome::Partial, vec![IDS[1].to_owned()]));
            assert_eq!(said.issues, [format!("backup {}: {what}", IDS[0])]);
            let one = record_with(damage, &options(Depth::Full, Some(IDS[0])), &found(&[], 0));
            assert_eq!((one.outcome, one.backups.len()), (Outcome::Partial, 0));
        }
        // Packs that were damaged and are sound again are what this verification has just read.
        let packs = Damage { packs: 1, ..Damage::default() };
        assert_eq!(record_with(packs, &full, &found(&[], 0)).backups.len(), 2);
    }

    #[test]
    fn only_what_was_read_completely_and_is_sound_is_proven() {
        let full = options(Depth::Full, None);
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<String>>();
        assert_eq!(record(&full, &found(&[], 0)), (Outcome::Success, ids(&IDS[..2])));
        assert_eq!(record(&full, &found(&IDS[..1], 1)), (Outcome::Partial, ids(&IDS[1..2])));
        assert_eq!(record(&full, &found(&IDS[..2], 2)), (Outcome::Failed, ids(&[])));
        assert_eq!(record(&full, &found(&IDS[..1], 2)), (Outcome::Failed, ids(&[])), "one is not known");
        let one = options(Depth::Full, Some(IDS[2]));
        assert_eq!(record(&one, &found(&[], 0)), (Outcome::Success, ids(&IDS[2..])));
        for depth in [Depth::Light, Depth::Sample(1.0), Depth::Budget(Duration::from_secs(1))] {
            assert_eq!(record(&options(depth, None), &found(&[], 0)), (Outcome::Success, ids(&[])));
        }
    }
}
