//! The repositories of a cluster: reachable, behaving, and registered for this cluster and no other.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use walpoint_base::{ClusterName, PgMajor, SegmentSize, SystemId, TimelineId};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::server::Identity;
use walpoint_plan::retention::{Candidate, Policy, Soundness};
use walpoint_repo::backup::{Backups, Summary};
use walpoint_repo::catalog::Catalog;
use walpoint_repo::expire::outlook;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::Selection;
use walpoint_runtime::progress::human_bytes;
use walpoint_storage::object::{Level, RepositoryId};
use walpoint_storage::store::StoreSettings;
use walpoint_storage::store::settings::ConditionalWrites;
use walpoint_storage::store::{Finding, Probe};

use super::report::Report;
use crate::wal::identity::{self, Evidence};
use crate::wal::lineage;
use crate::wal::reach;
use crate::wal::unwritten::unwritten;

/// `expire` refuses to work when the clocks differ by more.
const CLOCK_LIMIT_SECONDS: i64 = 300;
/// A difference that is worth a word.
const CLOCK_WARNING_SECONDS: i64 = 60;

/// How long an upload may be overtaken by the next one.
const OVERTAKEN: Duration = Duration::from_secs(2);

/// A repository of the cluster, open, with the cluster's lineage in it.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    /// The repository.
    pub(crate) repository: Repository,
    /// The life of the cluster that it archives to.
    pub(crate) lineage: Lineage,
    /// Whether an acknowledgement of WAL waits for it.
    pub(crate) acknowledges: bool,
    /// The directory, if it is one.
    pub(crate) directory: Option<PathBuf>,
}

impl Destination {
    /// What the configuration calls the repository.
    pub(crate) fn name(&self) -> &str {
        self.repository.name()
    }

    /// The cluster's WAL in it.
    pub(crate) fn archive(&self) -> WalArchive {
        self.repository.wal(&self.lineage)
    }

    /// The cluster's backups in it.
    pub(crate) fn backups(&self) -> Backups {
        Backups::of(&self.repository, &self.lineage.cluster)
    }
}

/// What never changes in a cluster's life, as `pg_control` says it or the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nature {
    system_id: SystemId,
    major: PgMajor,
    wal_segment_size: SegmentSize,
    wal_block_size: u32,
    block_size: u32,
    relation_segment_blocks: u32,
}

impl From<&ControlFile> for Nature {
    fn from(control: &ControlFile) -> Self {
        Self {
            system_id: control.system_id,
            major: control.major,
            wal_segment_size: control.wal_segment_size,
            wal_block_size: control.wal_block_size,
            block_size: control.block_size,
            relation_segment_blocks: control.relation_segment_blocks,
        }
    }
}

impl From<&Identity> for Nature {
    fn from(identity: &Identity) -> Self {
        Self {
            system_id: identity.system_id,
            major: identity.major,
            wal_segment_size: identity.segment_size,
            wal_block_size: identity.wal_block_size,
            block_size: identity.block_size,
            relation_segment_blocks: identity.relation_segment_blocks,
        }
    }
}

/// Opens the selected repositories and looks at what they do; those that are fine.
pub(crate) async fn destinations(
    report: &mut Report,
    selection: &Selection<StoreSettings>,
    nature: Nature,
) -> Vec<Destination> {
    let level = Level::nearest(selection.settings.compression_level);
    let mut found = Vec::new();
    for (name, settings) in &selection.repositories {
        let what = format!("repository {name}");
        let opened = Repository::open(name, settings).await;
        let opened = opened.map(|repository| repository.compressing_at(level)).map_err(Into::into);
        let Some(repository) = report.take(&what, opened) else { continue };
        key(report, &what, &repository).await;
        secrets(report, &what, settings);
        let probed = Probe::of(repository.store()).await;
        let probed = probed.with_context(|| format!("{} cannot be written to", repository.store().name()));
        let Some(probe) = report.take(&what, probed) else { continue };
        let behaves = judge(report, &what, repository.store().name(), settings, &probe);
        let what = format!("{what}: lineage");
        let pgdata = selection.settings.pgdata.as_deref();
        let lineage = registered(&repository, &selection.cluster, nature, pgdata).await;
        let Some(lineage) = report.take(&what, lineage) else { continue };
        report.ok(what, format!("{} of cluster {}", lineage.id, selection.cluster));
        if behaves {
            let acknowledges = selection.settings.ack_set().contains(name);
            found.push(Destination { repository, lineage, acknowledges, directory: settings.directory() });
        }
    }
    if found.len() == selection.repositories.len() {
        acknowledging(report, &found).await;
    }
    found
}

/// Whether a restore to the latest moment follows this server.
pub(crate) async fn latest(report: &mut Report, destinations: &[Destination], identity: &Identity) {
    if identity.in_recovery {
        return;
    }
    for Destination { repository, lineage, .. } in destinations {
        let what = format!("repository {}: timeline", repository.name());
        match Catalog::load(repository, &lineage.cluster).await {
            Ok(catalog) => {
                let own = catalog.lineages().iter().find(|known| known.id() == lineage.id);
                if let Some(newer) = own.and_then(|own| own.newer_than(identity.timeline)) {
                    report.warning(what, newer.to_string(), &newer.advice(identity.timeline));
                }
            }
            Err(error) => report.error(what, &error.into()),
        }
    }
}

/// Whether the newest WAL of this server can be recovered from the repositories.
pub(crate) async fn reach(
    report: &mut Report,
    destinations: &[Destination],
    identity: &Identity,
    pgdata: &Path,
) {
    if identity.in_recovery {
        return;
    }
    for Destination { repository, lineage, .. } in destinations {
        let what = format!("repository {}: recovery", repository.name());
        let (of, wal) = ((&lineage.cluster, lineage.id), pgdata.join("pg_wal"));
        let look = || reach::unreached(repository, of, identity.timeline, &wal);
        let mut found = look().await;
        if matches!(found, Ok(Some(_))) {
            // An upload may be overtaken by the next one.
            tokio::time::sleep(OVERTAKEN).await;
            found = look().await;
        }
        match found {
            Ok(None) => {}
            Ok(Some(unreached)) => report.failed(
                what,
                unreached.to_string(),
                "take a backup now (archive-agent backup): nothing behind that can be recovered before",
            ),
            Err(error) => report.error(what, &error),
        }
    }
}

/// Whether the repositories hold this server's WAL, or another one's under the same names.
pub(crate) async fn identity(
    report: &mut Report,
    destinations: &[Destination],
    pgdata: &Path,
    control: &ControlFile,
) {
    let timeline = TimelineId::new(control.checkpoint.timeline.max(control.min_recovery_point_timeline));
    let Some(timeline) = timeline else { return };
    let (cluster, wal) = (crate::wal::check::identity(control), pgdata.join("pg_wal"));
    for destination in destinations {
        let what = format!("repository {}: identity", destination.name());
        let archive = destination.archive();
        if crate::wal::control::writes(pgdata, control, timeline)
            && let Ok(Some(split)) = unwritten(&archive, &wal, timeline, cluster.segment_size).await
        {
            report.failed(what, split.found(), &split.advice());
            continue;
        }
        match identity::compare(&archive, &cluster, &wal, timeline).await {
            Ok(Evidence::Other(split)) => report.failed(what, split.found(), &split.advice()),
            Ok(Evidence::Same(timeline, lsn)) => {
                report.ok(
                    what,
                    format!("it holds this server's WAL, compared up to {lsn} on timeline {timeline}"),
                );
            }
            Ok(Evidence::Nothing) => {}
            Err(error) => report.error(what, &error.into()),
        }
    }
}

/// Whether what is known to be damaged leaves a backup that can be restored.
pub(crate) async fn sound(report: &mut Report, destinations: &[Destination]) {
    for Destination { repository, lineage, .. } in destinations {
        let what = format!("repository {}: backups", repository.name());
        let outlook = outlook(repository, &lineage.cluster, &Policy::default(), Timestamp::now()).await;
        let Some(outlook) = report.take(&what, outlook.map_err(Into::into)) else { continue };
        let backups: Vec<&Candidate> = outlook.decisions.iter().map(|decision| &decision.backup).collect();
        judge_backups(report, what, &backups);
    }
}

/// Puts into words what is known to be wrong with backups, the oldest of which comes first.
fn judge_backups(report: &mut Report, what: String, backups: &[&Candidate]) {
    let broken = |backup: &Candidate| backup.soundness() == Soundness::Broken;
    let advice = "take a backup (archive-agent backup): it stores anew what is damaged; archive-agent verify says what that is";
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

/// Secrets are nobody else's.
fn secrets(report: &mut Report, what: &str, settings: &StoreSettings) {
    for file in settings.secret_files() {
        let open = std::fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0);
        if open {
            let found = format!("{} is open to every user of this machine", file.display());
            report.warning(format!("{what}: secrets"), found, &format!("chmod o= {}", file.display()));
        }
    }
}

/// Whether the repositories that acknowledge are those that the lineage was registered with: readers go by the lineage.
async fn acknowledging(report: &mut Report, destinations: &[Destination]) {
    let configured: BTreeSet<RepositoryId> =
        destinations.iter().filter(|d| d.acknowledges).map(|d| d.repository.id()).collect();
    for destination in destinations {
        let what = format!("repository {}: ack", destination.name());
        let read = destination.repository.acknowledging(&destination.lineage).await;
        let Some(registered) = report.take(&what, read.map_err(Into::into)) else { continue };
        let registered = registered.members;
        if registered.iter().map(|member| member.repository).collect::<BTreeSet<_>>() == configured {
            continue;
        }
        let names: Vec<&str> = registered.iter().map(|member| member.name.as_str()).collect();
        report.warning(
            what,
            format!(
                "lineage {} was registered with {} to acknowledge WAL, and the configuration says otherwise",
                destination.lineage.id,
                if names.is_empty() { "no repository".to_owned() } else { names.join(", ") }
            ),
            "readers without this configuration go by the lineage when they decide where WAL ends: set ack as it was; if a \
             repository was lost and made anew, run archive-agent init; else begin a new lineage",
        );
    }
}

/// What opened the repository, and whether anything else would.
async fn key(report: &mut Report, what: &str, repository: &Repository) {
    let Some((source, slot)) = repository.opened_by() else { return };
    let what = format!("{what}: key");
    let listed = repository.key_slots().list().await.map_err(anyhow::Error::from);
    let Some(listed) = report.take(&what, listed) else { return };
    let sound =
        listed.iter().filter(|listed| listed.slot.as_ref().is_ok_and(|s| s.repository == repository.id()));
    let found = format!("the {source} opens slot {slot}");
    match sound.count() {
        0 | 1 => report.ok(what, format!("{found}, the only one: keep a copy of it elsewhere")),
        slots => report.ok(what, format!("{found} of {slots}")),
    }
}

/// Puts into words what a probe found; whether the store may be written to.
pub(crate) fn judge(
    report: &mut Report,
    what: &str,
    store: &str,
    settings: &StoreSettings,
    probe: &Probe,
) -> bool {
    let before = report.lines().len();
    let mut behaves = true;
    for (name, finding) in probe.findings() {
        let Finding::Bad(found) = finding else { continue };
        let what = format!("{what}: {name}");
        let look_first = settings.conditional_writes == ConditionalWrites::LookFirst;
        match name {
            "never replaces" if look_first => report.warning(
                what,
                found,
                "conditional_writes = \"look-first\" accepts this: never let two hosts archive the same cluster",
            ),
            "never replaces" => {
                behaves = false;
                report.failed(
                    what,
                    found,
                    "use another store, or, knowing the risk, set conditional_writes = \"look-first\"",
                );
            }
            "absence" => report.failed(
                what,
                found,
                "let the credentials list the bucket (s3:ListBucket): otherwise recovery cannot tell the end of WAL from a \
                 failure, and stops",
            ),
            "deleting" => report.warning(
                what,
                found,
                "what is no longer needed stays: let the credentials of whoever runs expire delete objects",
            ),
            _ => {
                behaves = false;
                report.failed(what, found, "the store does not keep what it is given; use another one");
            }
        }
    }
    clock(report, what, probe);
    if report.lines().len() == before {
        report.ok(what, format!("{store}: creates, reads, lists and deletes, and never replaces"));
    }
    behaves
}

fn clock(report: &mut Report, what: &str, probe: &Probe) {
    let Some(ahead) = probe.clock_ahead else { return };
    let seconds = ahead.as_secs();
    let what = format!("{what}: clock");
    let found =
        format!("the store's clock is {} s {}", seconds.abs(), if seconds > 0 { "ahead" } else { "behind" });
    match seconds.abs() {
        CLOCK_LIMIT_SECONDS.. => {
            report.failed(what, found, "set the clocks: expire refuses to delete anything until they agree");
        }
        CLOCK_WARNING_SECONDS.. => report.warning(what, found, "set the clocks"),
        _ => {}
    }
}

/// The lineage that this cluster archives to.
async fn registered(
    repository: &Repository,
    cluster: &ClusterName,
    nature: Nature,
    pgdata: Option<&Path>,
) -> anyhow::Result<Lineage> {
    let lineage = match pgdata.filter(|pgdata| pgdata.join(CONTROL_FILE).exists()) {
        Some(pgdata) => lineage::of_directory(repository, cluster, pgdata).await?,
        None => repository.lineage_for(cluster, nature.system_id).await?,
    };
    if let Some(lineage) = lineage.filter(|lineage| lineage.system_id() == nature.system_id) {
        same_facts(&lineage, nature)?;
        return Ok(lineage);
    }
    let others = repository.lineages(cluster).await?;
    if others.is_empty() {
        bail!("cluster {cluster} is not registered in this repository; run archive-agent init");
    }
    let ids: Vec<String> = others.iter().map(|lineage| lineage.id.to_string()).collect();
    bail!(
        "cluster {cluster} is registered with the lineages {}, and this one has the system identifier {}: it \
         belongs to another cluster, or came from pg_upgrade or initdb since. If it is the same cluster's new life, run \
         archive-agent init --new-lineage",
        ids.join(", "),
        nature.system_id
    )
}

/// What never changes in a cluster's life has to be as it was registered.
pub(crate) fn same_facts(lineage: &Lineage, nature: Nature) -> anyhow::Result<()> {
    let same = lineage.major == nature.major
        && lineage.segment_size == nature.wal_segment_size
        && lineage.wal_block_size == nature.wal_block_size
        && lineage.block_size == nature.block_size
        && lineage.relation_segment_blocks == nature.relation_segment_blocks;
    if !same {
        bail!(
            "lineage {} was registered as PostgreSQL {} with segments of {:?} and blocks of {} bytes, and the cluster says \
             PostgreSQL {}, {:?}, {} bytes: run archive-agent init --new-lineage if this is the same cluster",
            lineage.id,
            lineage.major,
            lineage.segment_size,
            lineage.block_size,
            nature.major,
            nature.wal_segment_size,
            nature.block_size
        );
    }
    Ok(())
}

/// Whether a local repository has room for the next backup of a cluster of that many bytes: one that stores everything if
/// there is none to build on or `full` asks for it. How well the cluster compresses, and how much changes between backups, is
/// known from the newest ones, and guessed before there are any.
pub(crate) async fn space(report: &mut Report, destination: &Destination, bytes: u64, full: bool) {
    let Some(directory) = &destination.directory else { return };
    let what = format!("repository {}: space", destination.name());
    let free = match free_bytes(directory) {
        Ok(free) => free,
        Err(error) => return report.error(what, &error),
    };
    let newest = newest(destination).await;
    let totals = newest.as_ref().map(|summary| &summary.totals);
    // Stored bytes in a thousand bytes that the newest one stored itself.
    let stored = totals.filter(|totals| totals.new_bytes > 0);
    let ratio = stored.map(|totals| totals.stored.saturating_mul(1000) / totals.new_bytes);
    let whole = ratio.map_or(bytes / 4, |ratio| scaled(bytes, ratio));
    let (kind, needed, from) = match (&newest, ratio) {
        (Some(parent), Some(ratio)) if !full => {
            let grown = scaled(bytes.saturating_sub(parent.totals.bytes), ratio);
            match parent.parents.is_empty() {
                true => ("the next", grown.saturating_add(whole / 10), "a tenth of the full one before it"),
                false => ("the next", grown.saturating_add(parent.totals.stored), "as the one before it"),
            }
        }
        (_, Some(_)) => ("a full", whole, "as the last one was compressed"),
        (_, None) => ("a full", whole, "at a quarter of the cluster's size"),
    };
    let needed = needed.min(whole);
    let found = format!(
        "{} free in {}, {kind} backup takes about {} ({from})",
        human_bytes(free),
        directory.display(),
        human_bytes(needed)
    );
    match free {
        _ if free < needed => report.failed(what, found, "make room: a full disk would stop archiving too"),
        _ if free < needed.saturating_mul(2) => report.warning(what, found, "make room"),
        _ => report.ok(what, found),
    }
}

/// What the filesystem has left for this user.
pub(crate) fn free_bytes(directory: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(directory)
        .with_context(|| format!("the free space of {} cannot be read", directory.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What the newest finished backup says.
async fn newest(destination: &Destination) -> Option<Summary> {
    let backups = destination.backups();
    let listed = backups.list().await.ok()?;
    let finished = |state| matches!(state, walpoint_repo::backup::ListedState::Finished(_));
    let newest = listed.iter().rev().find(|backup| finished(backup.state))?;
    backups.summary(newest.id).await.ok()
}

fn scaled(bytes: u64, thousandths: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(thousandths) / 1000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use walpoint_base::{BackupId, Lsn};
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
            stop: Lsn(0x300_0000),
            stop_timeline: TimelineId::FIRST,
            label: String::new(),
            damage: Damage { packs, ..Damage::default() },
        }
    }

    fn judged(packs: &[u64]) -> Report {
        let backups: Vec<Candidate> = (0u32..).zip(packs).map(|(n, packs)| backup(n, *packs)).collect();
        let mut report = Report::default();
        judge_backups(&mut report, "backups".to_owned(), &backups.iter().collect::<Vec<_>>());
        report
    }

    /// What the repository knows to be damaged is no silent success.
    #[test]
    fn backups_that_are_known_to_be_damaged_are_told() {
        for sound in [&[][..], &[0], &[0, 0], &[3, 0]] {
            assert_eq!(judged(sound).lines(), [], "{sound:?}");
        }
        for (packs, grade) in [(&[0, 2][..], Grade::Warning), (&[2], Grade::Failed), (&[1, 2], Grade::Failed)]
        {
            let report = judged(packs);
            assert_eq!(report.count(grade), 1, "{packs:?}");
            assert!(report.lines()[0].found.contains("2 damaged or missing packs"), "{report:?}");
        }
    }
}
