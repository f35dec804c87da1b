//! `verify`: proves that what is kept is there, and is what was written.
//!
//! | module | owns |
//! |---|---|
//! | `light` | everything that the manifests and the promised windows refer to exists, with its size |
//! | `chain` | whether neighboring segments continue each other |
//! | `blocks` | every block of every backup: frame check, hash, page checksum |
//! | `wal` | every segment that is needed: hashes, and records across segments |
//! | `others` | restore points, PostgreSQL's own files, segments that nothing needs, index objects |
//! | `sample` | a share of the objects, or as many as a time allows, going on where the last run stopped |
//! | `report` | findings: what is wrong, what it affects, what to do |
//!
//! Changes nothing but what it announces: packs that are damaged are condemned, so that the next backup stores their blocks
//! anew. What cannot be read because the store does not answer is an error and no finding. Decoding PostgreSQL's formats is
//! the caller's ([`ContentCheck`]). Memory: some units of a few megabytes, or two segments of WAL, at a time.

mod blocks;
mod chain;
mod light;
mod others;
mod report;
mod sample;
#[cfg(test)]
pub(crate) mod tests;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use walpoint_base::{BackupId, ClusterName, SegmentName};

pub use self::report::{Verified, VerifyFinding};
use crate::Repository;
use crate::backup::{BackupFacts, Backups, Condemned, CondemnedPacks, CondemnedReason, TablePath};
use crate::error::Result;
use crate::expire::Outlook;

/// How much is read.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Depth {
    /// Only what exists, and how long it is.
    Light,
    /// Every byte.
    Full,
    /// That share of all objects, 0 to 1.
    Sample(f64),
    /// Objects for so long.
    Budget(Duration),
}

/// What is asked of a run.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Only this backup, and the WAL that makes it consistent.
    pub backup: Option<BackupId>,
    /// How much is read.
    pub depth: Depth,
    /// On which machine this runs, for what is announced.
    pub host: String,
    /// The version of Walpoint.
    pub agent: String,
}

/// What a page or a segment says to who knows PostgreSQL's formats.
pub trait ContentCheck: Send + Sync {
    /// Verifies the pages of a file, `bytes` being those from `offset` on, as for a backup with these facts. Calls `bad` for
    /// each wrong one with its block in the file and the checksums stored and computed.
    fn pages(
        &self,
        facts: &BackupFacts,
        path: &TablePath,
        offset: u64,
        bytes: &[u8],
        bad: &mut dyn FnMut(u64, u16, u16),
    );

    /// Begins to read records over consecutive segments.
    fn wal(&self) -> Box<dyn WalCheck>;
}

/// Records over consecutive segments.
pub trait WalCheck: Send {
    /// Reads the next segment; the error says what is wrong with it. After an error it is of no use.
    fn segment(&mut self, name: SegmentName, content: &[u8]) -> Result<(), String>;
}

/// Packs by who wrote them and number: their length, and which of the backups use them.
type PackMap = BTreeMap<(BackupId, u32), (u32, Vec<u16>)>;

/// What the parts of a run share.
struct Run<'a> {
    repository: &'a Repository,
    cluster: &'a ClusterName,
    backups: Backups,
    options: &'a VerifyOptions,
    check: Arc<dyn ContentCheck>,
    /// The backups that are looked at, oldest first.
    ids: Vec<BackupId>,
    packs: PackMap,
    /// Packs that are damaged or missing.
    damaged: BTreeSet<(BackupId, u32)>,
    report: Verified,
}

/// Verifies a cluster in one repository. `decisions` are those of retention: they say which WAL is promised.
pub async fn verify(
    repository: &Repository,
    cluster: &ClusterName,
    outlook: &Outlook,
    check: Arc<dyn ContentCheck>,
    options: &VerifyOptions,
) -> Result<Verified> {
    let began = std::time::Instant::now();
    let mut run = Run {
        repository,
        cluster,
        backups: Backups::of(repository, cluster),
        options,
        check,
        ids: Vec::new(),
        packs: PackMap::new(),
        damaged: BTreeSet::new(),
        report: Verified::new(repository, cluster, options),
    };
    let needed = run.light(outlook).await?;
    match options.depth {
        Depth::Light => {}
        Depth::Full => {
            run.blocks().await?;
            run.wal(&needed).await?;
            if options.backup.is_none() {
                run.others(&needed).await?;
            }
        }
        Depth::Sample(_) | Depth::Budget(_) => run.sample(&needed).await?,
    }
    run.condemn().await?;
    run.report.seconds = began.elapsed().as_secs_f64();
    Ok(run.report)
}

impl Run<'_> {
    /// The ids of the backups that use a pack.
    fn users(&self, owner: BackupId, pack: u32) -> Vec<String> {
        let users = self.packs.get(&(owner, pack)).map(|(_, users)| users.as_slice()).unwrap_or_default();
        let ids = users.iter().filter_map(|at| self.ids.get(usize::from(*at)));
        ids.map(BackupId::to_string).collect()
    }

    /// A pack is missing, or not what was written.
    fn bad_pack(&mut self, owner: BackupId, pack: u32, kind: &'static str, what: String) {
        if !self.damaged.insert((owner, pack)) {
            return;
        }
        let key = crate::layout::ClusterPaths::new(self.cluster).pack(owner, pack);
        let backups = self.users(owner, pack);
        self.report.finding(VerifyFinding {
            kind,
            object: key.to_string(),
            what,
            moments: Some(format!(
                "those that {} the only way to; others can be restored",
                if backups.len() == 1 { "this backup is" } else { "these backups are" }
            )),
            backups,
            remedy: "take a backup: it stores these blocks anew; until then restore from another backup or another \
                     repository"
                .to_owned(),
        });
    }

    /// Announces packs that are damaged, those that were not announced as damaged before: that they are to be deleted may be
    /// taken back.
    async fn condemn(&mut self) -> Result<()> {
        let known = self.backups.condemned().await?;
        let known = known.iter().filter(|one| one.condemned.reason == CondemnedReason::Damaged);
        let known: Vec<&CondemnedPacks> = known.flat_map(|one| &one.condemned.packs).collect();
        let new = self.damaged.iter().filter(|(owner, pack)| {
            !known.iter().any(|packs| packs.names(*owner, crate::backup::PackNo(*pack)))
        });
        let packs: Vec<CondemnedPacks> =
            new.map(|(backup, first)| CondemnedPacks { backup: *backup, first: *first, count: 1 }).collect();
        if packs.is_empty() {
            return Ok(());
        }
        let condemned = Condemned {
            written: Timestamp::now(),
            host: self.options.host.clone(),
            agent: self.options.agent.clone(),
            reason: CondemnedReason::Damaged,
            backups: Vec::new(),
            packs,
            wal: Vec::new(),
            requests: Vec::new(),
        };
        match self.backups.condemn(&condemned).await {
            Ok(_) => {}
            // Whoever may only read can verify too.
            Err(error @ crate::RepoError::Denied { .. }) => {
                self.report.notes.push(format!("damaged packs could not be condemned: {error}"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
