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
