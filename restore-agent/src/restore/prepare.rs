//! Everything that can be checked before the first byte is written.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use walpoint_base::{RecoveryTarget, SecretSource};
use walpoint_repo::Lineage;
use walpoint_repo::backup::{BackupReader, BackupSummary, Backups};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_storage::keys::KeySource;
use walpoint_storage::store::{Rate, StoreSettings};

use super::created::{Created, FoundLocations, LocationStates};
use super::decided::{self, Decided, DecidedOutside};
use super::directory::{Marker, RelativeTime};
use super::existing::Existing;
use super::layout::Layout;
use super::named::{Named, OutsideOptions};
use super::owners::{self, Owner, Owners};
use super::requested::RequestedRecovery;
use super::steps::{self, RestoreMode, Step};
use super::stored::{NotStored, Whose};
use super::tablespaces::{self, RestoredTablespace, Wishes};
use super::unarchived::Unarchived;
use super::{
    Restore, RestoreArgs, as_copy, behind, command, elsewhere, failure, files, free_space, origin, places,
    required,
};
use crate::plan::{self, Planned};

impl Restore {
    /// Checks everything that can be checked before the first byte is written.
    pub(super) async fn prepare(
        common: &CommonArgs,
        args: &RestoreArgs,
        mut planned: Planned,
        pgdata: PathBuf,
        decided: Decided,
    ) -> anyhow::Result<Self> {
        if let Some(damage) = &planned.damage {
            tracing::warn!("{damage}");
        }
        decided.prove_cluster(&pgdata, &planned)?;
        let mut not_stored = not_stored(common, &planned, &pgdata, &decided).await?;
        let origin = origin::read(common, &planned).await?;
        let rate = rate(common, args)?;
        let backups = Backups::of(&planned.files_from, &planned.cluster).at_rate(rate.as_ref());
        let unread = |error| failure::unread(planned.plan.backup.id, error);
        let reader = backups.open(planned.plan.backup.id).await.map_err(|e| unread(e.into()))?;
        let summary = reader.manifest().summary.clone();
        let owners = Owners::of_backup(&summary.facts.users, &summary.facts.groups)?;
        let (owner, root_mode) = owner_of_root(&reader, &owners).await.map_err(unread)?;
        let decided = decided.acting_for(owner);
        let named = Named::by(args, &pgdata);
        let layout = Arc::new(lay_out(args, &summary, pgdata, decided.existing.as_ref())?);
        let marker = marker(args, &planned, &layout, &decided);
        steps::same_restore(&decided.contents, &marker)
            .map_err(|refusal| refusal.explain(layout.pgdata()))?;
        let repositories = places::local_repositories(common)?;
        let outside = DecidedOutside::look(&layout, &decided, &named, &repositories)?;
        let created = Created::read(common, &planned, summary.facts.major).await?;
        let required = required::read(common, &planned).await?;
        let Replay { created, found, unarchived } = match &mut not_stored {
            None => {
                let states = created.probe(LocationStates::default(), &layout, &decided);
                Replay { found: created.found(&states)?, created, unarchived: Unarchived::default() }
            }
            Some(not_stored) => replay(args, &planned, &layout, &decided, created, not_stored).await?,
        };
        found.missing.iter().for_each(|missing| tracing::warn!("{missing}"));
        decided.prove_movable(layout.pgdata(), &unarchived.names, &found)?;
        let mut moved = outside.moved();
        moved.extend(found.paths().into_iter().map(|directory| (directory, None)));
        let replacement = decided.replacement(layout.pgdata(), moved)?;
        let short = free_space::check(&reader, &layout, &planned.plan, &decided).await.map_err(unread)?;
        planned.remarks.extend(short);
        let source = command::RestoreSource {
            config: common.config_path().map(std::path::absolute).transpose()?,
            repo: common.repo.iter().map(ToString::to_string).collect(),
            key_file: key_file(&planned),
            cluster: planned.cluster.to_string(),
        };
        if let Some(owner) = owner {
            // What is missing will be made for that user.
            let parents = outside.parents.iter().map(PathBuf::as_path);
            let (config, repo) = (source.config.as_deref(), &source.repo[..]);
            owners::prove_usable(owner, &plan::probe_arguments(config, repo, &planned.cluster, parents))?;
        }
        let settings = settings(args, &planned, &source);
        Ok(Self {
            planned,
            origin,
            reader,
            layout,
            owners,
            owner,
            root_mode,
            marker: Marker { replaces: decided.replaces(replacement.as_ref()), ..marker },
            decided,
            outside,
            named,
            replacement,
            created,
            found,
            required: required.and(unarchived.required),
            unarchived,
            resumes: args.resume_archiving,
            repositories,
            settings,
            confine: None,
        })
    }
}

/// What the data directory that is there, or that an interrupted restore had moved aside, has of WAL and no archive has; `None` where
/// there is none of the plan's cluster, and no earlier restore put anything away. A repair that would lose it is refused.
async fn not_stored(
    common: &CommonArgs,
    planned: &Planned,
    pgdata: &Path,
    decided: &Decided,
) -> anyhow::Result<Option<NotStored>> {
    let old = decided.old(pgdata, planned);
    if old.is_none() && !decided.does(&Step::LookBack) {
        return Ok(None);
    }
    let mut found = NotStored::begin(common, planned).await?;
    let Some(old) = old else { return Ok(Some(found)) };
    let leave = decided.does(&Step::LeaveWal);
    let looked = found.look(&old, leave, planned).await;
    if old.whose == Whose::All {
        looked?;
        decided.prove_undamaged(pgdata, &found, planned)?;
        decided.prove_archived(pgdata, &found).await?;
        return Ok(Some(found));
    }
    // It is moved aside whatever is in it.
    match looked {
        Ok(()) => {}
        Err(error) if leave => {
            tracing::warn!(
                "could not determine what its pg_wal has: {}",
                walpoint_words::format_chain(&error)
            )
        }
        Err(error) => {
            return Err(error.context(format!(
                "{}: could not determine whether its pg_wal has WAL that is not archived: nothing was \
                 changed\nHINT: To recover without that WAL, use --replace --discard-unarchived-wal.",
                old.data.display()
            )));
        }
    }
    Ok(Some(found))
}

/// What recovery replays beyond the archive, and what it creates altogether.
struct Replay {
    created: Created,
    /// What lies where it creates tablespaces.
    found: FoundLocations,
    unarchived: Unarchived,
}

/// Finds out what recovery replays of WAL that no archive has. Refuses what cannot be replayed, or would be left out.
async fn replay(
    args: &RestoreArgs,
    planned: &Planned,
    layout: &Layout,
    decided: &Decided,
    created: Created,
    not_stored: &mut NotStored,
) -> anyhow::Result<Replay> {
    let states = created.probe(LocationStates::default(), layout, decided);
    let found = created.found(&states)?;
    if decided.does(&Step::LookBack)
        && let Err(error) = not_stored.look_back(decided, planned).await
    {
        let unknown = "could not determine what unarchived WAL an earlier restore kept or renamed";
        if !decided.does(&Step::LeaveWal) {
            return Err(error.context(format!(
                "{unknown}: nothing was changed\nHINT: If you no longer need that directory, remove it. \
                 To recover without its WAL, use --discard-unarchived-wal with --replace or --delta."
            )));
        }
        tracing::warn!("{unknown}: {}", walpoint_words::format_chain(&error));
    }
    let unarchived = Unarchived::find(not_stored, layout.pgdata(), planned).await?;
    elsewhere::warn_of_damage(&not_stored.copies);
    let more = created.with(&unarchived.creates);
    let states = more.probe(states, layout, decided);
    let replay = match more.found(&states) {
        Ok(found) => Replay { created: more, found, unarchived },
        Err(error) if decided.does(&Step::LeaveWal) => {
            let why = more.obstacle(&states).unwrap_or_else(|| walpoint_words::format_chain(&error));
            let mut replay = Replay { created, found, unarchived };
            replay.unarchived.leave(why);
            replay
        }
        Err(error) => {
            return Err(error.context(
                "WAL in the data directory's pg_wal, which is not archived and which recovery would replay, \
                 cannot be replayed\nHINT: To recover without that WAL, use --discard-unarchived-wal with \
                 --replace or --delta: the restore keeps the files.",
            ));
        }
    };
    let latest = args.target.follows_the_latest();
    let left = behind::find(not_stored, planned, latest, &replay.unarchived).await?;
    let (pgdata, read) = (layout.pgdata(), elsewhere::read(&not_stored.copies));
    match (left, &replay.unarchived.hole) {
        _ if decided.does(&Step::LeaveWal) => Ok(replay),
        (Some(left), _) => Err(left.refusal(pgdata, &read)),
        (None, Some(hole)) => Err(hole.refusal(pgdata, &read)),
        (None, None) => Ok(replay),
    }
}

/// How fast the backup is read: by the option, or else by the configuration.
fn rate(common: &CommonArgs, args: &RestoreArgs) -> anyhow::Result<Option<Arc<Rate>>> {
    let selection: Selection<StoreSettings> = common.select_to_read().map_err(|failure| failure.error)?;
    Ok(Rate::limit(args.max_rate.or(selection.settings.max_rate).map(|rate| rate.as_u64())))
}

/// What says in the data directory, while that is written, what this restore wants.
fn marker(args: &RestoreArgs, planned: &Planned, layout: &Layout, decided: &Decided) -> Marker {
    Marker {
        repository: planned.repository.id().to_string(),
        cluster: planned.cluster.to_string(),
        lineage: lineage(planned),
        backup: planned.plan.backup.id.to_string(),
        target: planned.plan.target.to_string(),
        requested: Some(RequestedRecovery::of(args, &planned.plan.target)),
        relative: match (args.target.relative(), &planned.plan.target) {
            (Some(text), RecoveryTarget::Time(meant)) => {
                Some(RelativeTime { text: text.to_owned(), meant: meant.0 })
            }
            _ => None,
        },
        replaces: None,
        directories: layout.others(),
        delta: matches!(decided.mode, RestoreMode::Delta { .. }),
        claiming: false,
    }
}

/// What is the same of the plan's lineage in each repository that has it ([`Lineage::is_same_life`]).
fn lineage(planned: &Planned) -> String {
    let Lineage { id, parent, .. } = &planned.lineage;
    match parent.map(|parent| parent.life) {
        None => id.to_string(),
        Some(Some(life)) => format!("{id} {life}"),
        Some(None) => format!("{id} {}", planned.repository.id()),
    }
}

/// The settings that the restore writes, in order.
fn settings(args: &RestoreArgs, planned: &Planned, source: &command::RestoreSource) -> Vec<(String, String)> {
    let mut settings = vec![("restore_command".to_owned(), command::restore_command(source))];
    if !args.resume_archiving {
        settings.extend(as_copy::SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    settings.extend(planned.plan.settings.iter().map(|s| (s.name.to_owned(), s.value.clone())));
    settings
}

/// The key file that the environment names, if it opened the repository.
fn key_file(planned: &Planned) -> Option<PathBuf> {
    let Some((KeySource::Key(SecretSource::File(path)), _)) = planned.repository.opened_by() else {
        return None;
    };
    let named = std::env::var_os("WALPOINT_KEY_FILE").is_some_and(|named| path.as_os_str() == named);
    named.then(|| path.clone())
}

pub(super) fn lay_out(
    args: &RestoreArgs,
    summary: &BackupSummary,
    pgdata: PathBuf,
    existing: Option<&Existing>,
) -> anyhow::Result<Layout> {
    let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    let facts = &summary.facts;
    let known: Vec<RestoredTablespace> = facts
        .tablespaces
        .iter()
        .map(|t| RestoredTablespace { oid: t.oid, location: path(&t.path.0) })
        .collect();
    let options = OutsideOptions::of(args)?;
    let wishes = Wishes {
        mappings: args.tablespaces.clone(),
        all: options.tablespaces,
        flatten: args.flatten_tablespaces,
        existing: existing.map(|existing| existing.tablespaces.clone()).unwrap_or_default(),
    };
    let places = tablespaces::place(&known, &wishes, &pgdata).map_err(|e| anyhow!(e))?;
    let extra = options.extra.unwrap_or_else(|| decided::default_extra(&pgdata));
    let extra_paths = facts.extra_paths.iter().map(|p| path(&p.0)).collect();
    let wal = options.wal.or_else(|| existing?.wal.clone());
    Ok(Layout::new(pgdata, places, wal, extra, extra_paths))
}

/// The owner that the data directory itself will have, if root restores, and its mode.
pub(super) async fn owner_of_root(
    reader: &BackupReader,
    owners: &Owners,
) -> anyhow::Result<(Option<Owner>, u32)> {
    let root = reader.entries().next().await?.context("the backup is empty: its file table has no entry")?;
    Ok((owners.of(root.attributes.uid, root.attributes.gid), files::directory_mode(&root)))
}
