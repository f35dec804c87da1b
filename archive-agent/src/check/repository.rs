//! The repositories of a cluster: reachable, behaving, and registered for this cluster and no other.

mod probe;
mod registered;
mod soundness;
mod space;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use walpoint_base::Diagnostic;
use walpoint_pg::control::ControlFile;
use walpoint_pg::server::ServerIdentity;
use walpoint_repo::backup::Backups;
use walpoint_repo::catalog::{Catalog, Unreached};
use walpoint_repo::lineage::AckMember;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::Selection;
use walpoint_storage::object::{Level, RepositoryId};
use walpoint_storage::store::Probe;
use walpoint_storage::store::StoreSettings;

pub(crate) use self::probe::judge;
use self::registered::registered;
pub(crate) use self::registered::{Nature, same_facts};
pub(crate) use self::soundness::sound;
pub(crate) use self::space::space;
use super::report::CheckReport;
use crate::key::{LOST_SLOT, replace_slot};
use crate::newer;
use crate::same_place::DistinctPlaces;
use crate::wal::identity::{self, Evidence};
use crate::wal::reach;
use crate::wal::unwritten::unwritten;

/// How long an upload may be overtaken by the next one.
const OVERTAKEN: Duration = Duration::from_secs(2);

/// A repository of the cluster, open, with the cluster's lineage in it.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) repository: Repository,
    /// The life of the cluster that it archives to.
    pub(crate) lineage: Lineage,
    /// Whether an acknowledgement of WAL waits for it.
    pub(crate) acknowledges: bool,
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

/// Opens the selected repositories and looks at what they do; those that are fine.
pub(crate) async fn destinations(
    report: &mut CheckReport,
    selection: &Selection<StoreSettings>,
    nature: Nature,
) -> Vec<Destination> {
    let level = Level::nearest(selection.settings.compression_level);
    let (mut found, mut places) = (Vec::new(), DistinctPlaces::default());
    for (name, settings) in &selection.repositories {
        let what = format!("repository {name}");
        let opened = Repository::open(name, settings).await;
        let opened = opened.map(|repository| repository.compressing_at(level)).map_err(Into::into);
        let Some(repository) = report.take(&what, opened) else { continue };
        let distinct = places.add(name, repository.id()).map_err(Into::into);
        if report.take(&what, distinct).is_none() {
            continue;
        }
        key(report, &what, &repository).await;
        secrets(report, &what, settings);
        let probed = Probe::of(repository.store()).await;
        let probed = probed.with_context(|| format!("could not write to {}", repository.store().name()));
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
    if !selection.chosen && found.len() == selection.repositories.len() {
        acknowledging(report, &found).await;
    }
    found
}

/// The repositories that have to acknowledge, each with the lineage that this server archives to. They are opened, and nothing is tried.
pub(crate) async fn required(
    selection: &Selection<StoreSettings>,
    nature: Nature,
) -> anyhow::Result<Vec<Destination>> {
    let (mut found, mut places) = (Vec::new(), DistinctPlaces::default());
    for (name, settings) in &selection.repositories {
        if !selection.settings.ack_set().contains(name) {
            continue;
        }
        let pgdata = selection.settings.pgdata.as_deref();
        let opened = async {
            let repository = Repository::open(name, settings).await?;
            places.add(name, repository.id())?;
            let lineage = registered(&repository, &selection.cluster, nature, pgdata).await?;
            let directory = settings.directory();
            anyhow::Ok(Destination { repository, lineage, acknowledges: true, directory })
        };
        found.push(opened.await.with_context(|| format!("repository {name}"))?);
    }
    Ok(found)
}

/// Lineages of others whose facts are damaged: this server is archived and backed up all the same.
pub(crate) async fn unreadable(report: &mut CheckReport, destinations: &[Destination]) {
    for Destination { repository, lineage, .. } in destinations {
        let what = format!("repository {}: lineages", repository.name());
        match repository.lineages(&lineage.cluster).await {
            Ok(lineages) => {
                for damaged in lineages.damaged {
                    let found =
                        format!("the metadata of lineage {} is damaged: {}", damaged.id, damaged.what);
                    report.failed(what.clone(), found, damaged.remedy());
                }
            }
            Err(error) => report.error(what, &error.into()),
        }
    }
}

/// Whether this user can list, read and write what the next backup and `expire` have to.
pub(crate) async fn usable(report: &mut CheckReport, destinations: &[Destination]) {
    for Destination { repository, lineage, .. } in destinations {
        let what = format!("repository {}: owner", repository.name());
        match repository.store().unusable(&lineage.cluster).await {
            Ok(None) => {}
            Ok(Some(unusable)) => {
                report.failed(what, unusable.found, &format!("Run as root: {}", unusable.repair));
            }
            Err(error) => report.error(what, &error.into()),
        }
    }
}

/// Whether a restore to the latest moment follows this server.
pub(crate) async fn latest(
    report: &mut CheckReport,
    destinations: &[Destination],
    identity: &ServerIdentity,
) {
    if identity.in_recovery {
        return;
    }
    for Destination { repository, lineage, .. } in destinations {
        let what = format!("repository {}: timeline", repository.name());
        match Catalog::load(repository, &lineage.cluster).await {
            Ok(catalog) => {
                let own = catalog.lineages().iter().find(|known| known.id() == lineage.id);
                if let Some(newer) = own.and_then(|own| own.newer_than(identity.timeline)) {
                    report.warning(what, newer::found(&newer), &newer::advice(&newer, identity.timeline));
                }
            }
            Err(error) => report.error(what, &error.into()),
        }
    }
}

/// Whether the newest WAL of this server can be recovered from the repositories.
pub(crate) async fn reach(
    report: &mut CheckReport,
    destinations: &[Destination],
    identity: &ServerIdentity,
    pgdata: &Path,
) {
    if identity.in_recovery {
        return;
    }
    for destination in destinations {
        let Destination { repository, lineage, .. } = destination;
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
            Ok(Some(unreached)) => {
                let hint = match copied_from(&unreached, destination, destinations).await {
                    Some(source) => format!(
                        "The daemon copies what is missing from repository {source}. If it is still missing after a minute, \
                         start the daemon, or reload it: then it compares the repositories."
                    ),
                    None => "Take a backup now (archive-agent backup): until then, nothing after that can be recovered."
                        .to_owned(),
                };
                report.failed(what, unreached.to_string(), &hint);
            }
            Err(error) => report.error(what, &error),
        }
    }
}

/// The repository from which the daemon copies what another one lacks that does not have to acknowledge, if one has it.
async fn copied_from<'a>(
    unreached: &Unreached,
    destination: &Destination,
    all: &'a [Destination],
) -> Option<&'a str> {
    let missing = unreached.missing.filter(|_| !destination.acknowledges)?;
    for source in all.iter().filter(|source| source.name() != destination.name()) {
        if matches!(source.archive().header(missing).await, Ok(Some(header)) if !header.damaged) {
            return Some(source.name());
        }
    }
    None
}

/// Whether the repositories hold this server's WAL, or another one's under the same names.
pub(crate) async fn identity(
    report: &mut CheckReport,
    destinations: &[Destination],
    pgdata: &Path,
    control: &ControlFile,
) {
    let Some(timeline) = control.newest_timeline() else { return };
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

/// Secrets are nobody else's.
fn secrets(report: &mut CheckReport, what: &str, settings: &StoreSettings) {
    for file in settings.secret_files() {
        let open = std::fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0);
        if open {
            let found = format!("{} is open to every user of this machine", file.display());
            report.warning(format!("{what}: secrets"), found, &format!("chmod o= {}", file.display()));
        }
    }
}

/// How the repositories that the configuration has acknowledge besides are recorded.
pub(crate) const RECORD: &str = "Run \"archive-agent init\" on the server in production, once it has archived a segment on its \
    timeline (select pg_switch_wal() after a transaction): it records the repositories that were added to ack.";

/// What to do where the configuration does not have all repositories acknowledge that a lineage names.
const AS_IT_WAS: &str = "Set ack as it was: readers without this configuration use the lineage to decide where WAL ends. If a \
    repository was lost and recreated, run \"archive-agent init --lost-repo\" with the ID of the lost one. Otherwise begin a new \
    lineage.";

/// Whether the repositories that acknowledge are those that the lineage was registered with: readers go by the lineage.
async fn acknowledging(report: &mut CheckReport, destinations: &[Destination]) {
    let configured: BTreeSet<RepositoryId> =
        destinations.iter().filter(|d| d.acknowledges).map(|d| d.repository.id()).collect();
    let here: BTreeSet<RepositoryId> = destinations.iter().map(|d| d.repository.id()).collect();
    for destination in destinations {
        let what = format!("repository {}: ack", destination.name());
        let read = destination.repository.acknowledging(&destination.lineage).await;
        let Some(registered) = report.take(&what, read.map_err(Into::into)) else { continue };
        let registered = registered.members;
        let members: BTreeSet<RepositoryId> = registered.iter().map(|member| member.repository).collect();
        if members == configured {
            continue;
        }
        let name = |member: &AckMember| format!("{} ({})", member.name, member.repository);
        let names: Vec<String> = registered.iter().map(name).collect();
        report.warning(
            what,
            format!(
                "lineage {} was registered with {} to acknowledge WAL, but ack in the configuration differs",
                destination.lineage.id,
                if names.is_empty() { "no repository".to_owned() } else { names.join(", ") }
            ),
            if !configured.is_subset(&members) && members.is_subset(&here) { RECORD } else { AS_IT_WAS },
        );
    }
}

/// What opened the repository, and whether anything else would.
async fn key(report: &mut CheckReport, what: &str, repository: &Repository) {
    let Some((source, slot)) = repository.opened_by() else { return };
    let what = format!("{what}: key");
    let listed = repository.key_slots().list().await.map_err(anyhow::Error::from);
    let Some(listed) = report.take(&what, listed) else { return };
    let (mut own, mut damaged) = (0, Vec::new());
    for listed in listed {
        match listed.slot {
            Ok(slot) => own += usize::from(slot.repository == repository.id()),
            Err(error) => damaged.push((listed.number, error)),
        }
    }
    let found = format!("the {source} opens slot {slot}");
    match (own, damaged.len()) {
        (0 | 1, 0) => report.ok(&what, format!("{found}, the only one: keep a copy of it elsewhere")),
        (0 | 1, _) => {
            report.ok(&what, format!("{found}, the only one that can be read: keep a copy of it elsewhere"));
        }
        (_, unread) => report.ok(&what, format!("{found} of {}", own + unread)),
    }
    for (number, error) in damaged {
        let error = Diagnostic::new(error.to_string());
        let found = format!("slot {number} cannot be read: {}\nDETAIL: {LOST_SLOT}", error.message());
        report.warning(&what, found, &replace_slot(number));
    }
}
