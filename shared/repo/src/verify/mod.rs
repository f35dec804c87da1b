//! `verify`: proves that what is kept is there, and is what was written.
//!
//! | module | owns |
//! |---|---|
//! | `light` | everything that the manifests and the promised windows refer to exists, with its size |
//! | `key_slots` | whether the key slots can be read |
//! | `needed` | which WAL is needed, now as well as when the run began |
//! | `parts` | whether the parts of large segments are there |
//! | `chain` | whether neighboring segments continue each other |
//! | `blocks` | every block of every backup: frame check, hash, page checksum |
//! | `rest` | what no backup needs of packs |
//! | `wal` | every segment that is needed: hashes, and records across segments |
//! | `others` | restore points, PostgreSQL's own files, segments that nothing needs, index objects |
//! | `sample` | a share of the objects, or as many as a time allows, going on where the last run stopped |
//! | `announce` | saying what is damaged to all who read the repository, and taking it back |
//! | `report` | findings: what is wrong, what it affects, what to do |
//!
//! Changes nothing but what it announces: what is damaged is announced, so that the next backup stores those blocks anew, and no
//! backup that needs it takes the place of a sound one. What cannot be read because the store does not answer is an error and no finding. Decoding PostgreSQL's formats is
//! the caller's ([`ContentCheck`]). Memory: some units of a few megabytes, or two segments of WAL, at a time.

mod announce;
mod blocks;
mod chain;
mod key_slots;
pub(crate) mod light;
mod needed;
mod others;
mod parts;
mod report;
mod rest;
mod sample;
#[cfg(test)]
pub(crate) mod tests;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use walpoint_base::{BackupId, ClusterName, LineageId, SegmentName, TimelineId};
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::retention::{Candidate, Policy};
use walpoint_storage::error::Result;
use walpoint_storage::layout::ClusterPaths;

pub use self::report::{Cure, FindingKind, ReportedDepth, Verified, VerifyFinding};
use crate::Repository;
use crate::backup::{AnnouncementReason, BackupDescription, Backups, NumberedAnnouncement, TablePath};
use crate::expire::Outlook;

/// How much is read.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub enum Depth {
    /// Only what exists, and how long it is.
    Light,
    /// Every byte.
    #[default]
    Full,
    /// That share of all objects, 0 to 1.
    Sample(f64),
    /// Objects for so long.
    Budget(Duration),
}

/// What is asked of a run.
#[derive(Clone, Default, Debug)]
pub struct VerifyOptions {
    /// Only this backup, and the WAL that makes it consistent.
    pub backup: Option<BackupId>,
    /// How much is read.
    pub depth: Depth,
    /// How long a segment is waited for that one behind it has overtaken: they are archived side by side.
    pub overtaken: Duration,
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
        facts: &BackupDescription,
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

/// A segment: whose it is, the timeline in its name, its number.
type Segment = (LineageId, TimelineId, u64);

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
    /// The backups of each lineage that one names.
    lineages: BTreeMap<LineageId, Vec<BackupId>>,
    /// What retention knows of them: those of whom all is known.
    finished: Vec<Candidate>,
    /// Packs that are damaged or missing.
    damaged: BTreeSet<(BackupId, u32)>,
    /// Segments that are damaged.
    damaged_wal: BTreeSet<Segment>,
    /// Those of them of which only an announcement tells: this run did not read them.
    told_again: BTreeSet<Segment>,
    /// Backups whose own list of files is damaged.
    damaged_manifests: BTreeSet<BackupId>,
    /// Segments that were read and are sound, of those that were announced as damaged before.
    sound_wal: BTreeSet<Segment>,
    /// What was announced as damaged before the run.
    announced: Vec<NumberedAnnouncement>,
    /// Backups that were deleted since the run began.
    gone: BTreeSet<BackupId>,
    /// What stays: the policy of the decisions.
    policy: &'a Policy,
    /// The timelines of each lineage.
    graphs: BTreeMap<LineageId, TimelineGraph>,
    /// What was decided since the run began.
    latest: Option<needed::Latest>,
    /// Whether something was left out of what was to be read, because what leads there is damaged.
    left_out: bool,
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
    let mut run = Run::new(repository, cluster, outlook, check, options);
    run.announced = run.backups.announcements().await?.read;
    run.announced.retain(|one| one.announcement.reason == AnnouncementReason::Damaged);
    let needed = run.light(outlook).await?;
    match options.depth {
        Depth::Light => {}
        Depth::Full => {
            let covered = run.blocks().await?;
            run.wal(&needed).await?;
            if options.backup.is_none() {
                run.rest(&covered).await?;
                run.others(&needed).await?;
            }
        }
        Depth::Sample(_) | Depth::Budget(_) => run.sample(&needed).await?,
    }
    if options.depth != Depth::Full {
        run.known(&needed);
    }
    if run.announce(&needed).await && options.depth == Depth::Full && options.backup.is_none() {
        run.absolve(&outlook.damaged_announcements).await;
    }
    run.report.seconds = began.elapsed().as_secs_f64();
    Ok(run.report)
}

impl<'a> Run<'a> {
    fn new(
        repository: &'a Repository,
        cluster: &'a ClusterName,
        outlook: &'a Outlook,
        check: Arc<dyn ContentCheck>,
        options: &'a VerifyOptions,
    ) -> Self {
        Self {
            repository,
            cluster,
            backups: Backups::of(repository, cluster),
            options,
            check,
            ids: Vec::new(),
            packs: PackMap::new(),
            lineages: BTreeMap::new(),
            finished: outlook.decisions.iter().map(|decision| decision.backup.clone()).collect(),
            damaged: BTreeSet::new(),
            damaged_wal: BTreeSet::new(),
            told_again: BTreeSet::new(),
            damaged_manifests: BTreeSet::new(),
            sound_wal: BTreeSet::new(),
            announced: Vec::new(),
            gone: BTreeSet::new(),
            policy: &outlook.policy,
            graphs: BTreeMap::new(),
            latest: None,
            left_out: false,
            report: Verified::new(repository, cluster, options),
        }
    }
}

impl Run<'_> {
    /// The ids of the backups that use a pack.
    fn users(&self, owner: BackupId, pack: u32) -> Vec<String> {
        let users = self.packs.get(&(owner, pack)).map(|(_, users)| users.as_slice()).unwrap_or_default();
        let ids = users.iter().filter_map(|at| self.ids.get(usize::from(*at)));
        ids.map(BackupId::to_string).collect()
    }

    /// A pack is missing, or not what was written.
    fn bad_pack(&mut self, owner: BackupId, pack: u32, kind: FindingKind, what: String) {
        if !self.damaged.insert((owner, pack)) {
            return;
        }
        let key = ClusterPaths::new(self.cluster).pack(owner, pack);
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
            remedy: "Take a backup: it stores these blocks again. Until then, restore from another backup \
                or another repository."
                .into(),
        });
    }
}
