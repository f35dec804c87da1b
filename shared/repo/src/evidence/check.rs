//! Whether the chain is what was written: numbers without a gap, each record undamaged and in its place, each with the hash of the one
//! before it, and the end where it was noted.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_storage::error::{RepoError, Result, error_chain};

use super::{Evidence, Head, ReadRecord, RecordHash};

/// What is wrong with the chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What it is.
    pub kind: FaultKind,
    /// The first record that it is about.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Facts, as a sentence without its full stop.
    pub what: String,
}

/// What can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "EvidenceFaultKind")]
pub enum FaultKind {
    /// Records are missing before others.
    Missing,
    /// A record cannot be read: its bytes are not the ones that were written.
    Damaged,
    /// A record is another one than its place says.
    Misplaced,
    /// A record does not continue the one before it: one of the two was edited or exchanged.
    Broken,
    /// Records are missing at the end.
    Cut,
    /// A record has another hash than was noted.
    Changed,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChainReport {
    /// How many records are there.
    pub records: u64,
    /// The last one that can be read, if it is the last one that is there.
    pub head: Option<Head>,
    /// What is wrong, in the order of the numbers.
    pub faults: Vec<Fault>,
}

/// Checks records as they come.
#[derive(Debug, Default)]
pub struct ChainCheck {
    cluster: String,
    repository: String,
    report: ChainReport,
    /// The number of the record before.
    last: u64,
    /// Its hash, if it is known.
    previous: Option<RecordHash>,
    /// The hashes that were noted, by number, and where.
    noted: BTreeMap<u64, Vec<(RecordHash, &'static str)>>,
}

impl Evidence {
    /// Reads every record. `heads` were noted elsewhere, each with the name of that place; the repository's own copy of the end is one
    /// more.
    pub async fn verify(&self, heads: &[Head]) -> Result<ChainReport> {
        self.verify_with(heads, drop).await
    }

    /// The same, and shows each record that can be read.
    pub async fn verify_with(&self, heads: &[Head], mut see: impl FnMut(ReadRecord)) -> Result<ChainReport> {
        let mut check = self.check(heads).await?;
        let mut records = Box::pin(self.records().await?);
        while let Some((number, read)) = records.next().await {
            if let Some(read) = check.see(number, read)? {
                see(read);
            }
        }
        Ok(check.finish())
    }

    /// A check that has seen no record yet. The copy of the end is read before the records are listed: meanwhile there may be more.
    async fn check(&self, heads: &[Head]) -> Result<ChainCheck> {
        let mut noted: BTreeMap<u64, Vec<(RecordHash, &'static str)>> = BTreeMap::new();
        for head in heads {
            noted.entry(head.number).or_default().push((head.hash, "the given head"));
        }
        if let Some(copy) = self.head_copy().await? {
            noted.entry(copy.number).or_default().push((copy.hash, "evidence/head in the repository"));
        }
        Ok(ChainCheck {
            cluster: self.cluster.to_string(),
            repository: self.repository.to_string(),
            noted,
            ..ChainCheck::default()
        })
    }
}

impl ChainCheck {
    /// Looks at the next record, and hands it back if it can be read. An error says that nothing is known about it.
    fn see(&mut self, number: u64, read: Result<ReadRecord>) -> Result<Option<ReadRecord>> {
        if number > self.last + 1 {
            self.missing(self.last + 1, number - 1);
        }
        let known = match read {
            Ok(read) => {
                self.record(number, &read);
                Some(read)
            }
            Err(RepoError::NotFound { .. }) => {
                self.missing(number, number);
                None
            }
            Err(error @ RepoError::Corrupt { .. }) => {
                self.report.records += 1;
                self.fault(FaultKind::Damaged, (number, number), error_chain(&error));
                None
            }
            Err(error) => return Err(error),
        };
        (self.last, self.previous) = (number, known.as_ref().map(|read| read.hash));
        Ok(known)
    }

    fn record(&mut self, number: u64, ReadRecord { record, hash, .. }: &ReadRecord) {
        self.report.records += 1;
        let one = (number, number);
        if record.number != number {
            self.fault(FaultKind::Misplaced, one, format!("it says that it is record {}", record.number));
        } else if record.cluster.as_str() != self.cluster || record.repository_id != self.repository {
            let what =
                format!("it belongs to cluster {} in repository {}", record.cluster, record.repository_id);
            self.fault(FaultKind::Misplaced, one, what);
        }
        match (record.previous_hash, self.previous) {
            (Some(named), Some(before)) if named != before => {
                let what = format!(
                    "it continues a record {} with the hash {named}, and the one that is there has {before}: record {} or {number} \
                     was edited or exchanged",
                    self.last, self.last
                );
                self.fault(FaultKind::Broken, (self.last, number), what);
            }
            (None, _) if number > 1 => {
                let what = format!("it does not name the hash of record {}", number - 1);
                self.fault(FaultKind::Broken, one, what);
            }
            (Some(_), _) if number == 1 => {
                self.fault(FaultKind::Broken, one, "it continues a record, and is the first one".to_owned());
            }
            _ => {}
        }
        for (noted, place) in self.noted.remove(&number).unwrap_or_default() {
            if noted != *hash {
                let what = format!("{place} names the hash {noted}, and it has {hash}");
                self.fault(FaultKind::Changed, one, what);
            }
        }
    }

    fn missing(&mut self, first: u64, last: u64) {
        self.fault(FaultKind::Missing, (first, last), "not there, although a later record is".to_owned());
        self.previous = None;
    }

    fn fault(&mut self, kind: FaultKind, (first, last): (u64, u64), what: String) {
        self.report.faults.push(Fault { kind, first, last, what });
    }

    fn finish(mut self) -> ChainReport {
        for (number, places) in self.noted.split_off(&(self.last + 1)) {
            let places: Vec<&str> = places.iter().map(|(_, place)| *place).collect();
            let what = format!("not there, although {} names record {number}", places.join(" and "));
            self.fault(FaultKind::Cut, (self.last + 1, number), what);
        }
        let number = self.last;
        self.report.head = self.previous.map(|hash| Head { hash, number });
        self.report
    }
}
