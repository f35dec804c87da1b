//! Making repositories and registering the cluster in them.

mod elsewhere;
mod split_off;
mod superseding;

use anyhow::{Context, bail};
use serde::Serialize;
use walpoint_pg::control::ControlFile;
use walpoint_repo::init::Initialised;
use walpoint_repo::lineage::{AckMember, BINDING, LineageUid};
use walpoint_repo::repository::NewLineage;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;
use walpoint_storage::keys::KeySlots;
use walpoint_storage::store::StoreSettings;

use self::elsewhere::Elsewhere;
use self::split_off::{Begun, began, begins, no_second, parent, writes};
use self::superseding::Superseding;
use super::InitArgs;
use super::config::Plan;
use crate::binding;
use crate::check::report::{Grade, Report};
use crate::check::repository::{judge, same_facts};
use crate::key::args::make_key_file;

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

/// Makes or joins each repository of the plan, then registers the cluster in all of them.
pub(crate) async fn register(
    report: &mut Report,
    plan: &Plan,
    control: &ControlFile,
    args: &InitArgs,
) -> anyhow::Result<Vec<Registered>> {
    let Present { there, away } = match args.new_lineage {
        true => present(report, plan).await?,
        false => Present::default(),
    };
    if !args.even_if_bound {
        no_second(&there, plan, control).await?;
    }
    let opened = open(report, plan, args.encrypt, &away).await?;
    let registration = Registration::new(plan, control, &opened, args.new_lineage).await?;
    let mut joined = Vec::new();
    for opened in &opened {
        joined.push(registration.join(opened).await?);
    }
    let registered = registration.registered(report, &joined).await?;
    registration.bind(report, &joined)?;
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
async fn present<'a>(report: &mut Report, plan: &'a Plan) -> anyhow::Result<Present<'a>> {
    let mut found = Present::default();
    for (name, settings) in &plan.repositories {
        let there = Repository::open(name, settings).await.map_err(hint);
        if let Err(error) = &there
            && !plan.settings.ack_set().contains(name)
        {
            report.warning(
                format!("repository {name}"),
                format!("the lineage is not begun there, as this repository cannot be opened: {error:#}"),
                "when it is there again, run archive-agent init, without --new-lineage: it begins the same lineage there",
            );
            found.away.push(name);
            continue;
        }
        let there = there.with_context(|| {
            format!(
                "repository {name} ({}): --new-lineage makes no repository, and nothing was changed; if this one is to be new, \
                 run init without --new-lineage for it first",
                settings.url
            )
        })?;
        found.there.push(there);
    }
    Ok(found)
}

/// Makes or opens the repositories of the plan, but for those that are away.
async fn open(
    report: &mut Report,
    plan: &Plan,
    encrypt: bool,
    away: &[&String],
) -> anyhow::Result<Vec<Opened>> {
    let mut opened = Vec::new();
    for (name, settings) in plan.repositories.iter().filter(|(name, _)| !away.contains(&name)) {
        let made = make(name, settings, encrypt).await;
        let Initialised { repository, probe, existed } =
            made.with_context(|| format!("repository {name} ({})", settings.url))?;
        judge(report, &format!("repository {name}"), repository.store().name(), settings, &probe);
        if report.count(Grade::Failed) > 0 {
            bail!("{}", report.told(Grade::Failed));
        }
        opened.push(Opened { repository, url: settings.url.clone(), created: !existed });
    }
    Ok(opened)
}

/// What a cluster is registered with in each of its repositories.
struct Registration<'a> {
    plan: &'a Plan,
    control: &'a ControlFile,
    /// The repositories of the configuration that acknowledge.
    ack: Vec<AckMember>,
    /// The lineage that is begun in all repositories.
    begun: Option<Begun>,
    /// The one that the server has in other repositories, unless one is begun.
    elsewhere: Option<Elsewhere>,
}

impl<'a> Registration<'a> {
    async fn new(
        plan: &'a Plan,
        control: &'a ControlFile,
        opened: &[Opened],
        new_lineage: bool,
    ) -> anyhow::Result<Self> {
        let here: Vec<&Repository> = opened.iter().map(|opened| &opened.repository).collect();
        let required = plan.settings.ack_set();
        let ack = here.iter().filter(|here| required.iter().any(|name| name == here.name()));
        let ack = ack.map(|here| AckMember { name: here.name().to_owned(), repository: here.id() }).collect();
        let (mut begun, mut elsewhere) = (None, None);
        match new_lineage {
            true => {
                let mut after = 0;
                for repository in here {
                    after = after.max(repository.last_lineage(&plan.cluster, control.system_id).await?);
                }
                let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
                begun = Some(Begun { after, life: LineageUid::random(), began: began(pgdata, control) });
            }
            false => elsewhere = Elsewhere::of(&here, plan, control).await?,
        }
        Ok(Self { plan, control, ack, begun, elsewhere })
    }

    /// Joins the cluster's lineage in a repository, or begins it there.
    async fn join<'o>(&self, opened: &'o Opened) -> anyhow::Result<Joined<'o>> {
        let Self { plan, control, ack, begun, elsewhere } = self;
        let repository = &opened.repository;
        let (lineage, created) =
            lineage(repository, plan, control, ack, (begun.as_ref(), elsewhere.as_ref()))
                .await
                .with_context(|| format!("repository {}", repository.name()))?;
        Ok(Joined { opened, lineage, created })
    }

    /// Sees to it that those acknowledge in each repository that have to, and reports what it has.
    async fn registered(
        &self,
        report: &mut Report,
        joined: &[Joined<'_>],
    ) -> anyhow::Result<Vec<Registered>> {
        let writes = writes(self.plan.pgdata().map_err(|failure| failure.error)?, self.control);
        let here: Vec<&Repository> = joined.iter().map(|joined| &joined.opened.repository).collect();
        let mut registered = Vec::new();
        for Joined { opened, lineage, created } in joined {
            let repository = &opened.repository;
            if *created && self.elsewhere.is_some() && !opened.created {
                report.warning(
                    format!("repository {}: lineage", repository.name()),
                    format!(
                        "this server archives into lineage {} there from now on, as in the other repositories",
                        lineage.id
                    ),
                    "TAKE A BACKUP NOW (archive-agent backup): the lineage has none in this repository",
                );
            }
            let now = self.acknowledging_with(lineage, joined);
            let superseding = Superseding { report, there: &here, writes, now: &now };
            if ids(&superseding.done(repository, lineage).await?) != ids(&self.ack) {
                report.warning(
                    format!("repository {}: lineage", repository.name()),
                    format!("{} was begun when other repositories had to acknowledge WAL", lineage.id),
                    "readers without this configuration believe an absence proven by fewer repositories",
                );
            }
            registered.push(Registered {
                repository: repository.name().to_owned(),
                url: opened.url.clone(),
                id: repository.id().to_string(),
                repository_created: opened.created,
                lineage: lineage.id.to_string(),
                lineage_created: *created,
                key_slot: repository.opened_by().map(|(_, slot)| slot),
                opens_with: repository.opened_by().map(|(source, _)| source.to_string()),
            });
        }
        Ok(registered)
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
    fn bind(&self, report: &mut Report, joined: &[Joined<'_>]) -> anyhow::Result<()> {
        let mut begun = joined.iter().filter(|joined| joined.created && self.begun.is_some());
        let Some(parent) = begun.find_map(|joined| joined.lineage.parent) else { return Ok(()) };
        let pgdata = self.plan.pgdata().map_err(|failure| failure.error)?;
        let lineages = joined.iter().map(|joined| (joined.opened.repository.id(), joined.lineage.id));
        binding::write(pgdata, lineages)
            .with_context(|| format!("{} cannot be written", pgdata.join(BINDING).display()))?;
        report.warning(
            "lineage",
            format!("{} archives into a lineage of its own from now on. {}", pgdata.display(), begins(&parent)),
            "TAKE A BACKUP NOW (archive-agent backup); a running daemon uses the new lineage without a restart",
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
