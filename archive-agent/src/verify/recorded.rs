//! What a verification puts on record as evidence, and which backups it proves.

use std::collections::BTreeSet;

use walpoint_base::BackupId;
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
    let candidates = outlook.decisions.iter().map(|decision| (decision.backup.id, decision.stays()));
    let said = said(proven(candidates, options, verified), options, verified);
    recording::append(repository, selection, &said).await;
}

/// The backups of which every byte was read and found sound, and so was their WAL. Where not all findings are known, none.
fn proven(
    candidates: impl Iterator<Item = (BackupId, bool)>,
    options: &VerifyOptions,
    verified: &Verified,
) -> Vec<BackupId> {
    let all_known = verified.findings.len() as u64 == verified.finding_count;
    if options.depth != Depth::Full || !all_known {
        return Vec::new();
    }
    let affected: BTreeSet<&str> =
        verified.findings.iter().flat_map(|finding| finding.backups.iter().map(String::as_str)).collect();
    let meant = |id: &BackupId, stays: bool| options.backup.map_or(stays, |backup| backup == *id);
    candidates
        .filter(|(id, stays)| meant(id, *stays) && !affected.contains(id.to_string().as_str()))
        .map(|(id, _)| id)
        .collect()
}

fn said(backups: Vec<BackupId>, options: &VerifyOptions, verified: &Verified) -> Draft {
    let outcome = match (verified.finding_count, backups.is_empty()) {
        (0, _) => Outcome::Success,
        (_, false) => Outcome::Partial,
        (_, true) => Outcome::Failed,
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

    fn record(options: &VerifyOptions, verified: &Verified) -> (Outcome, Vec<String>) {
        let candidates = [(IDS[0], true), (IDS[1], true), (IDS[2], false)];
        let candidates = candidates.into_iter().map(|(id, stays)| (id.parse().unwrap(), stays));
        let said = said(proven(candidates, options, verified), options, verified);
        (said.outcome, said.backups.iter().map(ToString::to_string).collect())
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
