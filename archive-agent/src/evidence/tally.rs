//! What records add up to. Pure: records in their order in, counts and proofs out.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::BackupId;
use walpoint_repo::evidence::{Kind, Objective, Outcome, Record};

use super::period::Period;

/// What the records of a chain add up to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    period: Period,
    kinds: BTreeMap<Kind, KindCounts>,
    rto: ObjectiveCounts,
    rpo: ObjectiveCounts,
    proven: BTreeMap<BackupId, Proof>,
    taken: BTreeSet<BackupId>,
    expired: BTreeSet<BackupId>,
}

/// How many records of a kind ended how.
#[derive(Debug, Clone, Copy, Default)]
struct KindCounts {
    success: u64,
    partial: u64,
    failed: u64,
}

/// What proved a backup.
#[derive(Debug, Clone, Copy)]
struct Proof {
    kind: Kind,
    number: u64,
    time: Timestamp,
}

/// Measurements against objectives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct ObjectiveCounts {
    /// The number of records with a measurement.
    pub(super) measured_count: u64,
    /// The number of those that have an objective.
    pub(super) target_count: u64,
    /// The number of those that met it.
    pub(super) met_count: u64,
}

/// What the records of a period, and the proofs up to its end, add up to.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct EvidenceSummary {
    /// The number of records in the period.
    pub(super) record_count: u64,
    /// Those records by their kind; kinds without a record are left out.
    pub(super) kinds: Vec<KindSummary>,
    /// Recovery times against their objectives, in the period.
    pub(super) rto: ObjectiveCounts,
    /// Lost data against its objectives, in the period.
    pub(super) rpo: ObjectiveCounts,
    /// The backups that a verification, a drill, a restore or an extract has ever proven before the end of the period, oldest first.
    pub(super) proven_backups: Vec<ProvenBackup>,
    /// The backups that were recorded and not marked for deletion before the end of the period, and that nothing has proven, oldest
    /// first.
    pub(super) unproven_backups: Vec<BackupId>,
}

/// The records of one kind.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EvidenceKindSummary")]
pub(super) struct KindSummary {
    /// The kind.
    pub(super) kind: Kind,
    /// The number of its records.
    pub(super) record_count: u64,
    /// The number of those that succeeded.
    pub(super) success_count: u64,
    /// The number of those that were done in part.
    pub(super) partial_count: u64,
    /// The number of those that failed.
    pub(super) failed_count: u64,
}

/// A backup and the last record that proved it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ProvenBackup {
    /// The backup.
    pub(super) backup: BackupId,
    /// What proved it last.
    pub(super) kind: Kind,
    /// The number of that record.
    pub(super) number: u64,
    /// When that was recorded.
    pub(super) time: Timestamp,
}

impl Tally {
    /// Of a period, without a record yet.
    pub(super) fn of(period: Period) -> Self {
        Self { period, ..Self::default() }
    }

    /// Adds the next record.
    pub(super) fn add(&mut self, record: &Record) {
        let said = &record.said;
        if self.period.has(said.time) {
            let counts = self.kinds.entry(said.kind).or_default();
            match said.outcome {
                Outcome::Success => counts.success += 1,
                Outcome::Partial => counts.partial += 1,
                Outcome::Failed => counts.failed += 1,
            }
            self.rto.add(said.rto.as_ref());
            self.rpo.add(said.rpo.as_ref());
        }
        // What was proven before the period began still is.
        if self.period.to.is_some_and(|to| to <= said.time) || said.outcome == Outcome::Failed {
            return;
        }
        if said.kind.proves_backups() {
            let proof = Proof { kind: said.kind, number: record.number, time: said.time };
            self.proven.extend(said.backups.iter().map(|backup| (*backup, proof)));
        }
        match said.kind {
            Kind::Backup => self.taken.extend(&said.backups),
            Kind::Expiry => self.expired.extend(&said.backups),
            _ => {}
        }
    }

    /// What they add up to.
    pub(super) fn summary(&self) -> EvidenceSummary {
        let kinds = self.kinds.iter().map(|(kind, &KindCounts { success, partial, failed })| KindSummary {
            kind: *kind,
            record_count: success + partial + failed,
            success_count: success,
            partial_count: partial,
            failed_count: failed,
        });
        let kinds: Vec<KindSummary> = kinds.collect();
        let proven = self.proven.iter().map(|(backup, &Proof { kind, number, time })| ProvenBackup {
            backup: *backup,
            kind,
            number,
            time,
        });
        let unproven =
            self.taken.iter().filter(|id| !self.proven.contains_key(id) && !self.expired.contains(id));
        EvidenceSummary {
            record_count: kinds.iter().map(|kind| kind.record_count).sum(),
            kinds,
            rto: self.rto,
            rpo: self.rpo,
            proven_backups: proven.collect(),
            unproven_backups: unproven.copied().collect(),
        }
    }
}

impl ObjectiveCounts {
    fn add(&mut self, objective: Option<&Objective>) {
        let Some(Objective { met, .. }) = objective else { return };
        self.measured_count += 1;
        self.target_count += u64::from(met.is_some());
        self.met_count += u64::from(*met == Some(true));
    }
}

impl KindSummary {
    /// The share that succeeded, in percent: all of them only if none did not.
    pub(super) fn success_percent(&self) -> u64 {
        (self.success_count * 100).checked_div(self.record_count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use walpoint_repo::evidence::Draft;

    use super::*;

    const IDS: [&str; 3] = [
        "20261121T101500Z-00000001-0000000002000028-9f3a0c11",
        "20261122T101500Z-00000001-0000000002000028-9f3a0c11",
        "20261123T101500Z-00000001-0000000002000028-9f3a0c11",
    ];

    fn record(number: u64, kind: Kind, outcome: Outcome, backups: &[&str]) -> Record {
        let mut said = Draft::new(kind, outcome, "a@b".to_owned(), "p".to_owned());
        said.time = format!("2026-11-{:02}T00:00:00Z", number + 9).parse().unwrap();
        said.backups = backups.iter().map(|id| id.parse().unwrap()).collect();
        let cluster = "main".parse().unwrap();
        Record { number, previous_hash: None, cluster, repository_id: String::new(), said }
    }

    fn ids(summary: &EvidenceSummary) -> (Vec<String>, Vec<String>) {
        let proven = summary.proven_backups.iter().map(|one| one.backup.to_string());
        (proven.collect(), summary.unproven_backups.iter().map(ToString::to_string).collect())
    }

    fn tally(period: Period) -> EvidenceSummary {
        let mut tally = Tally::of(period);
        let mut drill = record(6, Kind::Drill, Outcome::Success, &[]);
        drill.said.rto = Some(Objective::of(Some(60.0), 61.0));
        drill.said.rpo = Some(Objective::of(None, 0.0));
        for record in [
            record(1, Kind::Backup, Outcome::Success, &IDS[..1]),
            record(2, Kind::Backup, Outcome::Partial, &IDS[1..2]),
            record(3, Kind::Verification, Outcome::Failed, &IDS[1..2]),
            record(4, Kind::Verification, Outcome::Partial, &IDS[..1]),
            record(5, Kind::Backup, Outcome::Success, &IDS[2..]),
            drill,
            record(7, Kind::Expiry, Outcome::Success, &IDS[2..]),
            record(8, Kind::Backup, Outcome::Failed, &[]),
        ] {
            tally.add(&record);
        }
        tally.summary()
    }

    #[test]
    fn records_are_counted_and_only_what_did_not_fail_proves() {
        let summary = tally(Period::default());
        assert_eq!(summary.record_count, 8);
        let backups = &summary.kinds[0];
        assert_eq!((backups.kind, backups.record_count, backups.success_percent()), (Kind::Backup, 4, 50));
        assert_eq!((backups.success_count, backups.partial_count, backups.failed_count), (2, 1, 1));
        assert_eq!(ids(&summary), (vec![IDS[0].to_owned()], vec![IDS[1].to_owned()]));
        assert_eq!(summary.proven_backups[0].number, 4);
        assert_eq!(summary.rto, ObjectiveCounts { measured_count: 1, target_count: 1, met_count: 0 });
        assert_eq!(summary.rpo, ObjectiveCounts { measured_count: 1, target_count: 0, met_count: 0 });
    }

    #[test]
    fn counts_are_of_the_period_and_proofs_of_all_time_before_its_end() {
        let at = |text: &str| Some(text.parse().unwrap());
        let late = tally(Period { from: at("2026-11-15T00:00:00Z"), to: None });
        assert_eq!((late.record_count, late.kinds.len()), (3, 3));
        assert_eq!(ids(&late).0, [IDS[0]], "it was proven before");
        let early = tally(Period { from: None, to: at("2026-11-13T00:00:00Z") });
        assert_eq!(early.record_count, 3);
        assert_eq!(ids(&early), (vec![], vec![IDS[0].to_owned(), IDS[1].to_owned()]));
    }
}
