//! Making repositories and registering the cluster in them.

mod behind_fork;
mod elsewhere;
mod numbered;
mod on_record;
mod others;
mod split_off;
mod superseding;

use anyhow::{Context, bail};
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::LineageId;
use walpoint_pg::control::ControlFile;
use walpoint_repo::init::Initialised;
use walpoint_repo::lineage::{AckMember, BINDING, LineageUid};
use walpoint_repo::repository::NewLineage;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;
use walpoint_storage::keys::KeySlots;
use walpoint_storage::object::RepositoryId;
use walpoint_storage::store::StoreSettings;

use self::elsewhere::Elsewhere;
use self::numbered::last_lineage;
use self::others::Others;
use self::split_off::{CommonBeginning, began, begins, no_second, parent, writes};
use self::superseding::{Superseding, archives, never_acknowledged, others_acknowledge};
use super::InitArgs;
use super::config::ConfigurationPlan;
use crate::binding;
use crate::check::report::{CheckReport, Grade};
use crate::check::repository::{judge, same_facts};
use crate::key::args::make_key_file;
use crate::same_place::DistinctPlaces;
use crate::wal::target::TargetError;

/// The cluster in one repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RegisteredCluster {
    /// The repository's name in the configuration.
    pub(crate) repository: String,
    /// The repository's URL.
    pub(crate) url: String,
    /// The repository's id.
    pub(crate) repository_id: String,
    /// Whether this run created the repository.
    pub(crate) repository_created: bool,
    /// The cluster's lineage in it.
    pub(crate) lineage: LineageId,
    /// Whether this run created the lineage.
    pub(crate) lineage_created: bool,
    /// The key slot that the configured secret opens. Absent if the repository is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_slot: Option<u32>,
    /// Where that secret is. Absent if the repository is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret_source: Option<String>,
}

/// A repository of the plan, open.
struct Opened {
    repository: Repository,
    url: String,
    /// Whether it was made now.
    created: bool,
}

/// The cluster's lineage in one of them.
struct Joined<'a> {
    opened: &'a Opened,
    lineage: Lineage,
    /// Whether it was begun now.
    created: bool,
}

/// Makes or joins each repository of the plan, then registers the cluster in all of them. With it, why what was asked for was not done
/// besides.
pub(crate) async fn register(
    report: &mut CheckReport,
    plan: &ConfigurationPlan,
    control: &ControlFile,
    args: &InitArgs,
) -> anyhow::Result<(Vec<RegisteredCluster>, Option<String>)> {
    let Present { there, away } = match args.new_lineage {
        true => present(report, plan).await?,
        false => Present::default(),
    };
    if args.new_lineage && !args.even_if_bound {
        no_second(&there, plan, control).await?;
    }
    let others = Others::open(plan).await;
    let opened = open(report, plan, args.encrypt, (&away, &others)).await?;
    let mut registration = Registration::new((plan, control), &opened, &others, args).await?;
    let joined = registration.join_all(report, &opened).await?;
    let registered = registration.registered(report, &joined).await?;
    registration.bind(report, &joined)?;
    crate::wal::claim::prepare(&plan.pgdata().map_err(|failure| failure.error)?.join("pg_wal")).await;
    if registration.begun.is_some() {
        behind_fork::archive(report, plan, control, &joined).await?;
    }
    Ok(registered)
}

/// The repositories of a cluster that continues in a new lineage.
#[derive(Default)]
struct Present<'a> {
    there: Vec<Repository>,
    /// The names of those where the lineage is not begun now.
    away: Vec<&'a String>,
}

/// A cluster that continues in a new lineage has its repositories: where one is missing, it is not mounted.
async fn present<'a>(report: &mut CheckReport, plan: &'a ConfigurationPlan) -> anyhow::Result<Present<'a>> {
    let mut found = Present::default();
    for (name, settings) in &plan.repositories {
        let there = Repository::open(name, settings).await.map_err(hint);
        if let Err(error) = &there
            && !plan.settings.ack_set().contains(name)
        {
            report.warning(
                format!("repository {name}"),
                format!("the lineage is not begun there, as this repository cannot be opened: {}", walpoint_words::format_chain(error)),
                "When it is there again, run \"archive-agent init\" without --new-lineage: it begins the same lineage there.",
            );
            found.away.push(name);
            continue;
        }
        let there = there.with_context(|| {
            format!(
                "repository {name} ({}): --new-lineage creates no repository, and nothing was changed\nHINT: If this one is \
                 to be new, run \"archive-agent init\" without --new-lineage for it first.",
                settings.url
            )
        })?;
        found.there.push(there);
    }
    Ok(found)
}

/// Makes or opens the repositories of the plan, but for those that are away.
async fn open(
    report: &mut CheckReport,
    plan: &ConfigurationPlan,
    encrypt: bool,
    (away, others): (&[&String], &Others),
) -> anyhow::Result<Vec<Opened>> {
    let (mut opened, mut places) = (Vec::new(), DistinctPlaces::default());
    for (name, settings) in plan.repositories.iter().filter(|(name, _)| !away.contains(&name)) {
        let made = make(name, settings, encrypt).await;
        let Initialised { repository, probe, existed } =
            made.with_context(|| format!("repository {name} ({})", settings.url))?;
        places.add(name, repository.id())?;
        judge(report, &format!("repository {name}"), repository.store().name(), settings, &probe);
        if report.count(Grade::Failed) > 0 {
            return Err(report.failure("").into());
        }
        opened.push(Opened { repository, url: settings.url.clone(), created: !existed });
    }
    // One that does not answer shows nothing.
    for other in &others.there {
        places.add(other.name(), other.id())?;
    }
    Ok(opened)
}

/// What a cluster is registered with in each of its repositories.
struct Registration<'a> {
    plan: &'a ConfigurationPlan,
    control: &'a ControlFile,
    /// The other repositories of the cluster.
    others: &'a Others,
    /// The repositories of the configuration that acknowledge.
    ack: Vec<AckMember>,
    /// Those that are on record where the server has its lineage already. A lineage that is made for it in another repository begins
    /// with them: those of the configuration join on record where the others are.
    recorded: Vec<AckMember>,
    /// The lineage that is begun in all repositories.
    begun: Option<CommonBeginning>,
    /// The one that the server has in other repositories, unless one is begun.
    elsewhere: Option<Elsewhere>,
    /// What is made now gets a number behind this one.
    after: u32,
    /// The repositories that the person says are lost.
    lost: &'a [RepositoryId],
}

impl<'a> Registration<'a> {
    async fn new(
        (plan, control): (&'a ConfigurationPlan, &'a ControlFile),
        opened: &[Opened],
        others: &'a Others,
        args: &'a InitArgs,
    ) -> anyhow::Result<Self> {
        let here: Vec<&Repository> =
            opened.iter().map(|opened| &opened.repository).chain(&others.there).collect();
        let required = plan.settings.ack_set();
        let ack = here.iter().filter(|here| required.iter().any(|name| name == here.name()));
        let ack = ack.map(|here| AckMember { name: here.name().to_owned(), repository: here.id() }).collect();
        let (mut begun, mut elsewhere, mut after, mut found) = (None, None, 0, Vec::new());
        if args.new_lineage {
            after = last_lineage(opened, plan, control).await?;
            let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
            begun = Some(CommonBeginning { life: LineageUid::random(), began: began(pgdata, control) });
        } else {
            elsewhere = Elsewhere::of(&here, plan, control).await?;
            if elsewhere.is_none() {
                elsewhere = Elsewhere::by_wal(&others.there, plan, control).await?;
            }
            // What is made now has the number that the server has in the other repositories.
            for repository in here.into_iter().filter(|_| elsewhere.is_none()) {
                let first = repository.lineage_for(&plan.cluster, control.system_id).await?;
                after = after.max(first.as_ref().map_or(0, |first| first.id.n.saturating_sub(1)));
                found.extend(first.map(|first| (first, repository.clone())));
            }
        }
        let recorded = match &elsewhere {
            Some(elsewhere) => elsewhere.members.clone(),
            None => on_record::members_of_all(&found).await?,
        };
        Ok(Self { plan, control, others, ack, recorded, begun, elsewhere, after, lost: &args.lost_repo })
    }

    /// Joins the cluster's lineage in a repository, or begins it there.
    async fn join<'o>(&self, report: &mut CheckReport, opened: &'o Opened) -> anyhow::Result<Joined<'o>> {
        let repository = &opened.repository;
        let joined = self.lineage(report, repository).await;
        let (lineage, created) = joined.with_context(|| format!("repository {}", repository.name()))?;
        Ok(Joined { opened, lineage, created })
    }

    /// The cluster's lineage in a repository, and whether it was begun now.
    async fn lineage(
        &self,
        report: &mut CheckReport,
        repository: &Repository,
    ) -> anyhow::Result<(Lineage, bool)> {
        let (plan, control, after) = (self.plan, self.control, self.after);
        let (begun, elsewhere) = (self.begun.as_ref(), self.elsewhere.as_ref());
        let cluster = &plan.cluster;
        let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
        let bound = binding::read(pgdata, cluster, repository.id())
            .await
            .with_context(|| pgdata.join(BINDING).display().to_string())?;
        let bound = match bound.filter(|bound| bound.system_id == control.system_id) {
            Some(bound) => repository.read_lineage(cluster, bound).await?,
            None => None,
        };
        // A lineage that is gone from here is made anew as the server has it elsewhere: it has one number in all repositories.
        let elsewhere = elsewhere.filter(|_| bound.is_none());
        let bind = |lineage: &Lineage| {
            binding::add(pgdata, cluster, repository.id(), lineage.id)
                .with_context(|| format!("{} cannot be written", pgdata.join(BINDING).display()))
        };
        let existing = match (bound, elsewhere) {
            (Some(bound), _) => Some(bound),
            (None, Some(elsewhere)) => {
                let found = elsewhere.find(repository, plan).await?;
                found.as_ref().map(bind).transpose()?;
                found
            }
            (None, None) if begun.is_some() => None,
            (None, None) => unbound(report, repository, plan, control).await?,
        };
        if let Some(lineage) = existing.filter(|_| begun.is_none()) {
            same_facts(&lineage, control.into())?;
            return Ok((lineage, false));
        }
        if begun.is_none() {
            self.is_free(repository).await?;
            self.others.are_known(repository, plan)?;
        }
        let facts = NewLineage {
            system_id: control.system_id,
            major: control.major,
            segment_size: control.wal_segment_size,
            wal_block_size: control.wal_block_size,
            block_size: control.block_size,
            relation_segment_blocks: control.relation_segment_blocks,
            ack: if self.recorded.is_empty() { self.ack.clone() } else { self.recorded.clone() },
        };
        if let Some(elsewhere) = elsewhere {
            let parent = elsewhere.parent(repository).await?;
            let created = repository.create_lineage_as(cluster, facts, parent, elsewhere.id.n).await?;
            bind(&created)?;
            return Ok((created, true));
        }
        let parent = parent(repository, plan, control, begun).await?;
        if begun.is_some() {
            let n = after.saturating_add(1);
            return Ok((repository.create_lineage_as(cluster, facts, parent, n).await?, true));
        }
        match repository.split_lineage(cluster, facts, parent, after).await {
            Ok(lineage) => Ok((lineage, true)),
            // The same cluster was registered at the same moment.
            Err(error @ RepoError::Conflict { .. }) => {
                match repository.lineage_for(cluster, control.system_id).await? {
                    Some(lineage) => same_facts(&lineage, control.into()).map(|()| (lineage, false)),
                    None => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses a repository in which another cluster has the name.
    async fn is_free(&self, repository: &Repository) -> anyhow::Result<()> {
        let (cluster, own) = (&self.plan.cluster, self.control.system_id);
        let others = repository.lineages(cluster).await?;
        let related = self.elsewhere.is_some() && others.ids().any(|other| other.system_id == own);
        if others.ids().next().is_some() && !related {
            let others: Vec<String> = others.ids().map(|id| id.to_string()).collect();
            bail!(
                "there is another cluster named {cluster} with the lineages {}, and this one has the system identifier \
                 {own}\nHINT: Choose another name with --cluster, or, if this is the same cluster after pg_upgrade or a rebuild, \
                 add --new-lineage.",
                others.join(", ")
            );
        }
        Ok(())
    }

    /// Sees to it that those acknowledge in each repository that have to, and reports what it has; and why a repository that was named
    /// as lost still has to acknowledge.
    async fn registered(
        &self,
        report: &mut CheckReport,
        joined: &[Joined<'_>],
    ) -> anyhow::Result<(Vec<RegisteredCluster>, Option<String>)> {
        let pgdata = self.plan.pgdata().map_err(|failure| failure.error)?;
        let here = joined.iter().map(|joined| &joined.opened.repository);
        let there: Vec<RepositoryId> = here.chain(&self.others.there).map(Repository::id).collect();
        let lineages = joined.iter().map(|joined| (&joined.opened.repository, &joined.lineage));
        let archives = writes(pgdata, self.control)
            && archives(&pgdata.join("pg_wal"), lineages, self.control.newest_timeline()).await?;
        let (mut registered, mut refused) = (Vec::new(), None);
        // Those that are named as lost and acknowledge nowhere, nor did.
        let mut unknown = self.lost.to_vec();
        for Joined { opened, lineage, created } in on_record::in_order(joined).await? {
            let repository = &opened.repository;
            if *created && self.elsewhere.is_some() && !opened.created {
                report.warning(
                    format!("repository {}: lineage", repository.name()),
                    format!(
                        "this server archives into lineage {} there from now on, as in the other repositories",
                        lineage.id
                    ),
                    "TAKE A BACKUP NOW (archive-agent backup): the lineage has none in this repository.",
                );
            }
            let now = self.acknowledging_with(lineage, joined);
            let (others, here) = on_record::beside(lineage, joined).await?;
            let alone = on_record::alone(&others, &here);
            let (lost, others, here, alone) = (self.lost, &others[..], &here[..], &alone[..]);
            let superseding = Superseding { there: &there, lost, archives, now: &now, alone, others, here };
            let superseded = superseding.done(report, repository, lineage).await?;
            others_acknowledge(report, repository, lineage, (&superseded, &self.ack));
            let members = superseded.members.iter().map(|member| member.repository);
            let known: Vec<RepositoryId> = members.chain(superseded.replaced).collect();
            unknown.retain(|lost| superseded.is_whole && !known.contains(lost));
            refused = refused.or(superseded.refused);
            registered.push(RegisteredCluster {
                repository: repository.name().to_owned(),
                url: opened.url.clone(),
                repository_id: repository.id().to_string(),
                repository_created: opened.created,
                lineage: lineage.id,
                lineage_created: *created,
                key_slot: repository.opened_by().map(|(_, slot)| slot),
                secret_source: repository.opened_by().map(|(source, _)| source.to_string()),
            });
        }
        let place = |one: &RegisteredCluster| {
            joined.iter().position(|j| j.opened.repository.name() == one.repository)
        };
        registered.sort_by_key(place);
        let refused = refused.or_else(|| never_acknowledged(&unknown, &self.plan.cluster));
        Ok((registered, refused))
    }

    /// The repositories that acknowledge and hold the same lineage, not another one of its number.
    fn acknowledging_with(&self, lineage: &Lineage, joined: &[Joined<'_>]) -> Vec<AckMember> {
        let shares = |member: &&AckMember| {
            let mut same = joined.iter().filter(|other| lineage.is_same_life(&other.lineage));
            same.any(|other| other.opened.repository.id() == member.repository)
        };
        self.ack.iter().filter(shares).cloned().collect()
    }

    /// Binds the data directory to the lineage that was split off for it, if one was. The last step: by now every repository has
    /// that lineage.
    fn bind(&self, report: &mut CheckReport, joined: &[Joined<'_>]) -> anyhow::Result<()> {
        let mut begun = joined.iter().filter(|joined| joined.created && self.begun.is_some());
        let Some(parent) = begun.find_map(|joined| joined.lineage.parent) else { return Ok(()) };
        let mut ids = joined.iter().map(|joined| joined.lineage.id);
        let first = ids.next();
        if ids.any(|id| Some(id) != first) {
            bail!(
                "the new lineage has not the same number in all repositories: the data directory is not bound to it"
            );
        }
        let pgdata = self.plan.pgdata().map_err(|failure| failure.error)?;
        let lineages = joined.iter().map(|joined| (joined.opened.repository.id(), joined.lineage.id));
        binding::write(pgdata, &self.plan.cluster, &lineages.collect::<Vec<_>>())
            .with_context(|| format!("{} cannot be written", pgdata.join(BINDING).display()))?;
        report.warning(
            "lineage",
            format!("{} archives into a lineage of its own from now on. {}", pgdata.display(), begins(&parent)),
            "TAKE A BACKUP NOW (archive-agent backup). A running daemon uses the new lineage without a restart.",
        );
        Ok(())
    }
}

/// Makes or opens a repository.
async fn make(name: &str, settings: &StoreSettings, encrypt: bool) -> anyhow::Result<Initialised> {
    if !encrypt {
        return Repository::init(name, settings, None).await.map_err(hint);
    }
    if let Some(path) = &settings.encryption.key_file {
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

/// S3 answers 403 for an object that is missing to whoever may not list the bucket; then nothing can ever be proven absent.
fn hint(error: RepoError) -> anyhow::Error {
    let denied = matches!(error, RepoError::Denied { .. });
    let error = anyhow::Error::from(error);
    match denied {
        false => error,
        true => error.context(
            "the store denies access where it should answer that there is no such object\nHINT: If the credentials are right, \
             let them list the bucket (s3:ListBucket): without that recovery could not distinguish the end of WAL from a \
             failure.",
        ),
    }
}

/// The lineage of a data directory that is bound to none. Where others were split off it is bound if its WAL shows which one is its own;
/// else it is told that it is not.
async fn unbound(
    report: &mut CheckReport,
    repository: &Repository,
    plan: &ConfigurationPlan,
    control: &ControlFile,
) -> anyhow::Result<Option<Lineage>> {
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let first = repository.lineage_for(&plan.cluster, control.system_id).await?;
    let lineages = repository.lineages(&plan.cluster).await?.of(control.system_id);
    // One whose facts are damaged may have been split off.
    let alone = lineages.damaged.is_empty() && lineages.read.iter().all(|lineage| lineage.parent.is_none());
    if first.is_none() || alone {
        return Ok(first);
    }
    let what = format!("repository {}: lineage", repository.name());
    let found = match crate::wal::lineage::of_directory(repository, &plan.cluster, pgdata).await {
        Ok(found) => found,
        Err(error) => match error.downcast_ref::<TargetError>() {
            Some(
                TargetError::UnknownLineage { .. }
                | TargetError::OthersLineage { .. }
                | TargetError::DamagedLineage(_)
                | TargetError::SplitBrain(_),
            ) => {
                let told = format!("{} is NOT BOUND to a lineage there: {error}", pgdata.display());
                report.warning(
                    what,
                    told,
                    "Settle that first: until then, WAL of a server on this data directory is not archived.",
                );
                return Ok(first);
            }
            _ => return Err(error),
        },
    };
    if let Some(lineage) = found.as_ref().filter(|_| writes(pgdata, control)) {
        binding::add(pgdata, &plan.cluster, repository.id(), lineage.id)
            .with_context(|| format!("{} cannot be written", pgdata.join(BINDING).display()))?;
        report.warning(
            what,
            format!(
                "the WAL of {} is in lineage {} and in no other: the data directory is bound to it from now on",
                pgdata.display(),
                lineage.id
            ),
            "Copy walpoint.lineage to standbys that already exist.",
        );
    }
    Ok(found.or(first))
}
