//! Making repositories and registering the cluster in them.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use walpoint_base::{LineageId, Lsn, SegmentName, TimelineId};
use walpoint_pg::control::{ClusterState, ControlFile};
use walpoint_repo::init::Initialised;
use walpoint_repo::lineage::{AckMember, BINDING, LineageUid, ParentLineage, bound_elsewhere};
use walpoint_repo::repository::NewLineage;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;
use walpoint_storage::keys::KeySlots;
use walpoint_storage::object::RepositoryId;
use walpoint_storage::store::StoreSettings;

use super::InitArgs;
use super::config::Plan;
use crate::binding;
use crate::check::report::{Grade, Report};
use crate::check::repository::{judge, same_facts};
use crate::key::args::make_key_file;
use crate::wal::comparison;
use crate::wal::identity::{self, Evidence};
use crate::wal::target::TargetError;
use crate::wal::{check, lineage};

/// The cluster in one repository.
#[derive(Debug, Serialize)]
pub(crate) struct Registered {
    /// What the configuration calls the repository.
    pub(crate) repository: String,
    /// Where it is.
    pub(crate) url: String,
    /// Which one it is.
    pub(crate) id: String,
    /// Whether it was made now.
    pub(crate) repository_created: bool,
    /// The cluster's lineage in it.
    pub(crate) lineage: String,
    /// Whether it was begun now.
    pub(crate) lineage_created: bool,
    /// The slot that the configured secret opens, if the repository is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_slot: Option<u32>,
    /// Where that secret is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) opens_with: Option<String>,
}

/// Makes or joins each repository of the plan, then registers the cluster in all of them.
pub(crate) async fn register(
    report: &mut Report,
    plan: &Plan,
    control: &ControlFile,
    args: &InitArgs,
) -> anyhow::Result<Vec<Registered>> {
    let (mut present, mut away) = (Vec::new(), Vec::new());
    let required = plan.settings.ack_set();
    // A cluster that goes on in a new lineage has its repositories: where one is missing, it is not mounted.
    for (name, settings) in plan.repositories.iter().filter(|_| args.new_lineage) {
        let there = Repository::open(name, settings).await.map_err(hint);
        if let Err(error) = &there
            && !required.contains(name)
        {
            report.warning(
                format!("repository {name}"),
                format!("the lineage is not begun there, as this repository cannot be opened: {error:#}"),
                "when it is there again, run archive-agent init, without --new-lineage: it begins the same lineage there",
            );
            away.push(name);
            continue;
        }
        let there = there.with_context(|| {
            format!(
                "repository {name} ({}): --new-lineage makes no repository, and nothing was changed; if this one is to be new, \
                 run init without --new-lineage for it first",
                settings.url
            )
        })?;
        present.push(there);
    }
    if !args.even_if_bound {
        no_second(&present, plan, control).await?;
    }
    let mut opened = Vec::new();
    for (name, settings) in plan.repositories.iter().filter(|(name, _)| !away.contains(&name)) {
        let made = make(name, settings, args.encrypt).await;
        let made = made.with_context(|| format!("repository {name} ({})", settings.url))?;
        let what = format!("repository {name}");
        judge(report, &what, made.repository.store().name(), settings, &made.probe);
        if report.count(Grade::Failed) > 0 {
            bail!("{}", report.told(Grade::Failed));
        }
        opened.push((made.repository, settings.url.clone(), !made.existed));
    }
    let ack: Vec<AckMember> = opened
        .iter()
        .filter(|(repository, ..)| required.iter().any(|name| name == repository.name()))
        .map(|(repository, ..)| AckMember { name: repository.name().to_owned(), repository: repository.id() })
        .collect();
    let (mut registered, mut lineages, mut split) = (Vec::new(), Vec::new(), None);
    let mut begun = None;
    if args.new_lineage {
        let mut after = 0;
        for (repository, ..) in &opened {
            after = after.max(repository.last_lineage(&plan.cluster, control.system_id).await?);
        }
        let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
        begun = Some(Begun { after, life: LineageUid::random(), began: began(pgdata, control) });
    }
    let here: Vec<&Repository> = opened.iter().map(|(repository, ..)| repository).collect();
    let elsewhere = match begun {
        Some(_) => None,
        None => Elsewhere::of(&here, plan, control).await?,
    };
    let writes = writes(plan.pgdata().map_err(|failure| failure.error)?, control);
    let mut made = Vec::new();
    for (repository, url, repository_created) in &opened {
        let (lineage, lineage_created) =
            lineage(repository, plan, control, &ack, (begun.as_ref(), elsewhere.as_ref()))
                .await
                .with_context(|| format!("repository {}", repository.name()))?;
        made.push((repository, url, repository_created, lineage, lineage_created));
    }
    let lives: Vec<_> =
        made.iter().map(|(repository, .., lineage, _)| (repository.id(), lineage.clone())).collect();
    for (repository, url, repository_created, lineage, lineage_created) in made {
        lineages.push((repository.id(), lineage.id));
        split = split.or(lineage.parent.filter(|_| lineage_created && begun.is_some()));
        if lineage_created && elsewhere.is_some() && !*repository_created {
            report.warning(
                format!("repository {}: lineage", repository.name()),
                format!(
                    "this server archives into lineage {} there from now on, as in the other repositories",
                    lineage.id
                ),
                "TAKE A BACKUP NOW (archive-agent backup): the lineage has none in this repository",
            );
        }
        let shares = |member: &&AckMember| {
            lives.iter().any(|(id, other)| *id == member.repository && lineage.is_same_life(other))
        };
        let now: Vec<AckMember> = ack.iter().filter(shares).cloned().collect();
        let superseding = Superseding { report, there: &here, writes, now: &now };
        if ids(&superseding.done(repository, &lineage).await?) != ids(&ack) {
            report.warning(
                format!("repository {}: lineage", repository.name()),
                format!("{} was begun when other repositories had to acknowledge WAL", lineage.id),
                "readers without this configuration believe an absence proven by fewer repositories",
            );
        }
        registered.push(Registered {
            repository: repository.name().to_owned(),
            url: url.clone(),
            id: repository.id().to_string(),
            repository_created: *repository_created,
            lineage: lineage.id.to_string(),
            lineage_created,
            key_slot: repository.opened_by().map(|(_, slot)| slot),
            opens_with: repository.opened_by().map(|(source, _)| source.to_string()),
        });
    }
    if let Some(parent) = split {
        let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
        binding::write(pgdata, lineages)
            .with_context(|| format!("{} cannot be written", pgdata.join(BINDING).display()))?;
        report.warning(
            "lineage",
            format!("{} archives into a lineage of its own from now on. {}", pgdata.display(), begins(&parent)),
            "TAKE A BACKUP NOW (archive-agent backup); a running daemon uses the new lineage without a restart",
        );
    }
    Ok(registered)
}

/// What a new lineage has in common in all repositories.
struct Begun {
    /// The greatest number that is taken in one of them.
    after: u32,
    life: LineageUid,
    began: Option<Lsn>,
}

/// The lineage that the data directory archives to in another repository: its server has that one in every repository.
struct Elsewhere {
    id: LineageId,
    /// Its facts there, if one of the repositories has them.
    lineage: Option<Lineage>,
    /// What it has in common in all repositories from now on, if none has them.
    life: LineageUid,
}

impl Elsewhere {
    async fn of(
        repositories: &[&Repository],
        plan: &Plan,
        control: &ControlFile,
    ) -> anyhow::Result<Option<Self>> {
        let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
        let bound =
            binding::read_all(pgdata).await.with_context(|| pgdata.join(BINDING).display().to_string())?;
        let Some((_, id)) = bound_elsewhere(&bound, control.system_id) else {
            return Self::of_unbound(repositories, plan, pgdata, control).await;
        };
        let mut lineage = None;
        for repository in repositories.iter().filter(|one| bound.get(&one.id()) == Some(&id)) {
            if lineage.is_none() {
                lineage = repository.read_lineage(&plan.cluster, id).await?;
            }
        }
        Ok(Some(Self { id, lineage, life: LineageUid::random() }))
    }

    /// That of a data directory that is bound to none, where a repository has only lineages that were split off from it: it was
    /// made anew, and a copy was registered there first. `None` where nothing of that kind is in the way.
    async fn of_unbound(
        repositories: &[&Repository],
        plan: &Plan,
        pgdata: &Path,
        control: &ControlFile,
    ) -> anyhow::Result<Option<Self>> {
        let mut first = false;
        for repository in repositories {
            let mut lineages = repository.lineages(&plan.cluster).await?;
            lineages.retain(|lineage| lineage.system_id() == control.system_id);
            first |= !lineages.is_empty() && lineages.iter().all(|lineage| lineage.parent.is_some());
        }
        if !first {
            return Ok(None);
        }
        let (life, mut unknown) = (LineageUid::random(), None);
        for repository in repositories {
            match lineage::of_directory(repository, &plan.cluster, pgdata).await {
                Ok(Some(lineage)) => return Ok(Some(Self { id: lineage.id, lineage: Some(lineage), life })),
                Ok(None) => {}
                Err(error) => match error.downcast_ref::<TargetError>() {
                    // It is none of those that are there.
                    Some(TargetError::SplitBrain(_)) => {}
                    Some(TargetError::UnknownLineage { .. }) => unknown = Some(error),
                    _ => return Err(error),
                },
            }
        }
        match unknown {
            Some(unknown) => Err(unknown),
            None => {
                Ok(Some(Self { id: LineageId { system_id: control.system_id, n: 1 }, lineage: None, life }))
            }
        }
    }

    /// What the lineage is split off from, in a repository that has nothing of what came before.
    fn parent(&self) -> Option<ParentLineage> {
        match &self.lineage {
            Some(lineage) => lineage.parent.map(|parent| ParentLineage { fork: None, ..parent }),
            // Where no repository tells more. Only a data directory that is bound to it archives into it.
            None => self.id.n.checked_sub(1).filter(|n| *n > 0).map(|n| ParentLineage {
                lineage: LineageId { n, ..self.id },
                fork: None,
                began: None,
                life: Some(self.life),
            }),
        }
    }

    /// The lineage in a repository that the data directory is not bound to, and binds it to that; `None` if it is not there.
    async fn find(&self, repository: &Repository, plan: &Plan) -> anyhow::Result<Option<Lineage>> {
        let Some(found) = repository.read_lineage(&plan.cluster, self.id).await? else { return Ok(None) };
        let id = self.id;
        let same = match &self.lineage {
            Some(lineage) => lineage.is_same_life(&found),
            // One that was not split off is the one for data directories that are bound to none.
            None => found.parent.is_none(),
        };
        if !same {
            bail!(
                "the data directory is bound to lineage {id} in another repository, and nothing shows that the lineage {id} in this one is \
                 the same server's: nothing was changed. HINT: If it is, add the line \"{}\" to {BINDING} in the data directory; else \
                 begin a lineage that is this server's in all repositories: archive-agent init --new-lineage --even-if-bound",
                walpoint_repo::lineage::binding([(repository.id(), id)]).trim_end()
            );
        }
        Ok(Some(found))
    }
}

/// Whether the server of a data directory writes WAL of its own, or did last.
fn writes(pgdata: &Path, control: &ControlFile) -> bool {
    let follows = ["standby.signal", "recovery.signal"].iter().any(|signal| pgdata.join(signal).exists());
    !follows && matches!(control.state, ClusterState::InProduction | ClusterState::ShutDown)
}

/// A position up to which the WAL of a data directory may be another server's as well: the end of the newest segment that it
/// has begun. `None` of a server that follows another one still.
fn began(pgdata: &Path, control: &ControlFile) -> Option<Lsn> {
    if !writes(pgdata, control) {
        return None;
    }
    let (wal, size) = (pgdata.join("pg_wal"), control.wal_segment_size);
    let mut newest = None;
    for entry in std::fs::read_dir(&wal).ok()? {
        let Some(Ok(name)) = entry.ok()?.file_name().to_str().map(str::parse::<SegmentName>) else {
            continue;
        };
        let Some(number) = name.number(size).filter(|number| Some(*number) > newest) else { continue };
        if comparison::has_begun(&wal.join(name.to_string()), number, size) {
            newest = Some(number);
        }
    }
    newest.map(|newest| newest.end(size))
}

/// What a new lineage can be restored from until it has a backup of its own.
fn begins(parent: &ParentLineage) -> String {
    let lineage = parent.lineage;
    match parent.fork {
        Some(fork) => format!(
            "It has no backup of its own: a restore begins with a backup of lineage {lineage} from before {} on timeline {}, if \
             there is one",
            fork.lsn, fork.timeline
        ),
        None => format!(
            "Nothing in pg_wal is also in lineage {lineage}, so the new lineage has nothing of it, and nothing can be restored \
             before its first backup"
        ),
    }
}

/// What a lineage is split off from: the one that the data directory archived to so far, up to the newest WAL that both have.
async fn parent(
    repository: &Repository,
    plan: &Plan,
    control: &ControlFile,
    begun: Option<&Begun>,
) -> anyhow::Result<Option<ParentLineage>> {
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let lineage = match lineage::of_directory(repository, &plan.cluster, pgdata).await {
        // Its WAL shows none, or another server's in each: what it has in common with the first one is looked for.
        Err(error) if error.is::<TargetError>() => {
            repository.lineage_for(&plan.cluster, control.system_id).await?
        }
        lineage => lineage?,
    };
    let Some(lineage) = lineage else { return Ok(None) };
    let timeline = newest(control);
    let (archive, wal) = (repository.wal(&lineage), pgdata.join("pg_wal"));
    let fork = match timeline {
        Some(timeline) => identity::fork(&archive, &check::identity(control), &wal, timeline).await?,
        None => None,
    };
    let (began, life) = (begun.and_then(|begun| begun.began), begun.map(|begun| begun.life));
    Ok(Some(ParentLineage { lineage: lineage.id, fork, began, life }))
}

fn newest(control: &ControlFile) -> Option<TimelineId> {
    TimelineId::new(control.checkpoint.timeline.max(control.min_recovery_point_timeline))
}

/// Refuses another new lineage for a data directory that has one already, unless another server's WAL is in one of them.
async fn no_second(repositories: &[Repository], plan: &Plan, control: &ControlFile) -> anyhow::Result<()> {
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let path = pgdata.join(BINDING);
    let mut bound_to = Vec::new();
    for repository in repositories {
        let bound =
            binding::read(pgdata, repository.id()).await.with_context(|| path.display().to_string())?;
        let Some(bound) = bound.filter(|bound| bound.system_id == control.system_id) else { continue };
        let lineage = repository.read_lineage(&plan.cluster, bound).await?;
        let Some((lineage, timeline)) = lineage.zip(newest(control)) else { continue };
        let (archive, wal) = (repository.wal(&lineage), pgdata.join("pg_wal"));
        let compared = identity::compare(&archive, &check::identity(control), &wal, timeline).await?;
        if matches!(compared, Evidence::Other(_)) {
            return Ok(());
        }
        bound_to.push(format!(
            "lineage {bound} in repository {}, made at {}",
            repository.name(),
            lineage.created
        ));
    }
    if bound_to.is_empty() {
        return Ok(());
    }
    bail!(
        "{} binds this data directory already to {}, and no WAL of another server was found there: --new-lineage would begin one \
         more lineage, and nothing was changed. HINT: Waiting WAL is archived there by itself. If the daemon refuses it as another \
         server's, or this directory is a copy that is to be archived by itself, add --even-if-bound.",
        path.display(),
        bound_to.join(" and ")
    )
}

/// Makes or opens a repository.
async fn make(name: &str, settings: &StoreSettings, encrypt: bool) -> anyhow::Result<Initialised> {
    if !encrypt {
        return Repository::init(name, settings, None).await.map_err(hint);
    }
    if let Some(path) = &settings.key_file {
        match KeySlots::at(settings).await {
            // A new key would not open it.
            Ok(_) => {}
            Err(RepoError::NoRepository { .. }) => drop(make_key_file(path)?),
            Err(error) => return Err(hint(error)),
        }
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Repository::init_encrypted(name, settings, &format!("made by init on {host}")).await.map_err(hint)
}

/// How a repository that was lost and made anew takes its place among those that acknowledge.
struct Superseding<'a> {
    report: &'a mut Report,
    /// The repositories that are not lost.
    there: &'a [&'a Repository],
    /// Whether the server here is the one whose WAL is acknowledged. A standby's host has names of its own for the repositories.
    writes: bool,
    /// Those of the configuration that acknowledge.
    now: &'a [AckMember],
}

impl Superseding<'_> {
    /// The repositories that acknowledge the WAL of a lineage after that.
    async fn done(self, repository: &Repository, lineage: &Lineage) -> anyhow::Result<Vec<AckMember>> {
        let known = repository.acknowledging(lineage).await?;
        let there: Vec<RepositoryId> = self.there.iter().map(|repository| repository.id()).collect();
        let new = known.superseded_by(self.now, &there).filter(|_| self.writes);
        let Some(new) = new else { return Ok(known.members) };
        repository.supersede_acknowledging(lineage, &new).await?;
        let made_anew =
            self.now.iter().filter(|member| !known.members.contains(member) && new.members.contains(member));
        let names: Vec<&str> = made_anew.map(|member| member.name.as_str()).collect();
        self.report.warning(
            format!("repository {}: ack", repository.name()),
            format!(
                "{} is another repository than the one that had to acknowledge WAL of lineage {}, and takes its place",
                names.join(", "),
                lineage.id
            ),
            "take a backup: what only the old one held is gone",
        );
        Ok(new.members)
    }
}

fn ids(ack: &[AckMember]) -> Vec<String> {
    let mut ids: Vec<String> = ack.iter().map(|member| member.repository.to_string()).collect();
    ids.sort();
    ids
}

/// S3 answers 403 for an object that is missing to whoever may not list the bucket; then nothing can ever be proven absent.
fn hint(error: RepoError) -> anyhow::Error {
    let denied = matches!(error, RepoError::Denied { .. });
    let error = anyhow::Error::from(error);
    match denied {
        false => error,
        true => error.context(
            "the store denies access where it should say that there is no such object: if the credentials are right, they \
             may not list the bucket (s3:ListBucket), and without that recovery could not tell the end of WAL from a failure",
        ),
    }
}

/// The cluster's lineage in a repository, and whether it was begun now.
async fn lineage(
    repository: &Repository,
    plan: &Plan,
    control: &ControlFile,
    ack: &[AckMember],
    (begun, elsewhere): (Option<&Begun>, Option<&Elsewhere>),
) -> anyhow::Result<(Lineage, bool)> {
    let cluster = &plan.cluster;
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let bound = binding::read(pgdata, repository.id())
        .await
        .with_context(|| pgdata.join(BINDING).display().to_string())?;
    let elsewhere = elsewhere.filter(|_| bound.is_none_or(|bound| bound.system_id != control.system_id));
    let bind = |lineage: &Lineage| {
        binding::add(pgdata, repository.id(), lineage.id)
            .with_context(|| format!("{} cannot be written", pgdata.join(BINDING).display()))
    };
    let existing = match elsewhere {
        Some(elsewhere) => {
            let found = elsewhere.find(repository, plan).await?;
            found.as_ref().map(bind).transpose()?;
            found
        }
        None => repository.lineage_of(cluster, control.system_id, bound).await?,
    };
    if let Some(lineage) = existing.filter(|_| begun.is_none()) {
        same_facts(&lineage, control.into())?;
        return Ok((lineage, false));
    }
    let others = repository.lineages(cluster).await?;
    let related = elsewhere.is_some() && others.iter().any(|other| other.system_id() == control.system_id);
    if !others.is_empty() && begun.is_none() && !related {
        let others: Vec<String> = others.iter().map(|lineage| lineage.id.to_string()).collect();
        bail!(
            "there is another cluster named {cluster} with the lineages {}, and this one has the system identifier {}: choose \
             another name with --cluster; or, if this is the same cluster after pg_upgrade or a rebuild, add --new-lineage",
            others.join(", "),
            control.system_id
        );
    }
    let facts = NewLineage {
        system_id: control.system_id,
        major: control.major,
        segment_size: control.wal_segment_size,
        wal_block_size: control.wal_block_size,
        block_size: control.block_size,
        relation_segment_blocks: control.relation_segment_blocks,
        ack: ack.to_vec(),
    };
    if let Some(elsewhere) = elsewhere {
        let created =
            repository.create_lineage_as(cluster, facts, elsewhere.parent(), elsewhere.id.n).await?;
        bind(&created)?;
        return Ok((created, true));
    }
    let parent = parent(repository, plan, control, begun).await?;
    match repository.split_lineage(cluster, facts, parent, begun.map_or(0, |begun| begun.after)).await {
        Ok(lineage) => {
            // What it was bound to is not there: it was that of a cluster with another name.
            if bound.is_some() && begun.is_none() {
                bind(&lineage)?;
            }
            Ok((lineage, true))
        }
        // Somebody registered the same cluster at the same moment.
        Err(error @ RepoError::Conflict { .. }) => {
            match repository.lineage_for(cluster, control.system_id).await? {
                Some(lineage) => same_facts(&lineage, control.into()).map(|()| (lineage, false)),
                None => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}
