//! The configuration file that `init` writes, or what has to be changed in one that is there.
//!
//! A file is never rewritten: tables are added at its end if they are new, and only if the result is read back as meant. What
//! stands there otherwise is left alone and told.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use walpoint_base::ClusterName;
use walpoint_base::durable::{self, Created};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::config::{ClusterSettings, Config, DEFAULT_PATH};
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::{DIRECTORY_MODE, StoreSettings, grant};

use super::{InitArgs, StoreArgs, paths};
use crate::key::args::SecretArgs;

const HEADER: &str =
    "# Walpoint's configuration; unknown keys are errors. archive-agent init wrote the first tables.\n";

/// What the file shall say.
#[derive(Debug)]
pub(crate) struct ConfigurationPlan {
    /// The file.
    pub(crate) path: PathBuf,
    pub(crate) cluster: ClusterName,
    pub(crate) settings: ClusterSettings,
    pub(crate) repositories: Vec<(String, StoreSettings)>,
    /// The other repositories that the file has of the cluster.
    pub(crate) others: Vec<(String, StoreSettings)>,
    /// Tables to be added; empty if there is nothing to add.
    addition: String,
    /// What only a person can change.
    pub(crate) by_hand: Option<String>,
}

/// What was done with the configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "ConfigChange")]
pub(crate) enum Change {
    /// It did not exist and was written.
    Written,
    /// Tables were added.
    Extended,
    /// It has everything already.
    Unchanged,
    /// It describes the cluster or the repository differently and was not changed.
    Refused,
}

impl Change {
    /// In a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Extended => "extended",
            Self::Unchanged => "unchanged",
            Self::Refused => "not changed",
        }
    }
}

/// What the arguments and the file that is there ask for.
pub(crate) fn plan(common: &CommonArgs, args: &InitArgs) -> Result<ConfigurationPlan, Failure> {
    let path = common.given_config().map_or_else(|| PathBuf::from(DEFAULT_PATH), Path::to_owned);
    let path = std::path::absolute(&path).context("--config")?;
    let args = &paths::absolute(args)?;
    let existing = match path.exists() {
        true => Some(Config::<StoreSettings>::read(&path).map_err(Failure::usage)?),
        false => None,
    };
    if let [name, ..] = common.names()[..] {
        return Err(Failure::usage(anyhow!(
            "--repo {name} is not a URL\nHINT: Give the URL of a repository to create or join (file:///directory, \
             s3://bucket/prefix, gs://…, az://…). Without --repo, init registers the cluster in each repository of the \
             configuration."
        )));
    }
    match common.url()? {
        Some(url) => new_repository(common, args, path, existing, url),
        None if existing.is_some() => of_the_file(common, args, path),
        None => Err(Failure::usage(anyhow!(
            "the configuration {} does not exist, and no repository is named\nHINT: Name the repository's \
             location with --repo URL (file:///directory, s3://bucket/prefix, gs://…, az://…).",
            path.display()
        ))),
    }
}

/// Everything is in the file already.
fn of_the_file(common: &CommonArgs, args: &InitArgs, path: PathBuf) -> Result<ConfigurationPlan, Failure> {
    if !args.secret.is_empty() {
        return Err(Failure::usage(anyhow!(
            "{} describes the repository, and so names what opens it\nHINT: Put it into the repository's table, for example \
             as key_file.",
            path.display()
        )));
    }
    let common = CommonArgs { config: Some(path.clone()), ..common.clone() };
    let Selection { cluster, settings, repositories, .. } = common.select::<StoreSettings>()?;
    let differences = differences(&settings, args);
    let by_hand = (!differences.is_empty()).then(|| cluster_table(&cluster, &differences));
    let (addition, others) = (String::new(), Vec::new());
    Ok(ConfigurationPlan { path, cluster, settings, repositories, others, addition, by_hand })
}

/// A repository by its URL, in a file that may or may not be there.
fn new_repository(
    common: &CommonArgs,
    args: &InitArgs,
    path: PathBuf,
    existing: Option<Config<StoreSettings>>,
    url: &str,
) -> Result<ConfigurationPlan, Failure> {
    let cluster = common.cluster.clone().ok_or_else(|| {
        Failure::usage(anyhow!(
            "no cluster is named\nHINT: Name it with --cluster NAME (such as main; it is a directory in the repository)."
        ))
    })?;
    let mut table = store_table(url, &args.store)?;
    table.extend(secret_table(args, &path, &table)?);
    let store = StoreSettings::deserialize(table.clone())
        .map_err(|e| Failure::usage(anyhow!("the options of the store cannot be used: {e}")))?;
    store.provider().map_err(Failure::usage)?;

    let (mut addition, mut by_hand) = (String::new(), String::new());
    let known = existing.as_ref().map(|config| &config.repository);
    let same = known.and_then(|known| known.iter().find(|(_, settings)| **settings == store));
    let name = match (same, known.and_then(|known| known.get(&args.repo_name))) {
        (Some((name, _)), _) => name.clone(),
        (None, Some(other)) => {
            return Err(Failure::usage(anyhow!(
                "{} already has a [repository.{}], at {} and with its own settings\nHINT: Choose another name with \
                 --repo-name.",
                path.display(),
                args.repo_name,
                other.url
            )));
        }
        (None, None) => {
            addition += &table_text(&format!("repository.{}", key(&args.repo_name)), &table)?;
            args.repo_name.clone()
        }
    };
    let described = existing.as_ref().and_then(|config| config.cluster.get(&cluster));
    let settings = match described {
        None => {
            let keys = cluster_keys(&name, args)?;
            addition += &cluster_table(&cluster, &keys);
            let mut settings = ClusterSettings::with_repositories(vec![name.clone()]);
            settings.pgdata.clone_from(&args.pgdata);
            settings.conninfo.clone_from(&args.conninfo);
            settings.push_socket.clone_from(&args.push_socket);
            settings
        }
        Some(settings) => {
            let mut keys = differences(settings, args);
            if !settings.repositories.contains(&name) {
                let mut all = settings.repositories.clone();
                all.push(name.clone());
                keys.push(("repositories".to_owned(), toml::Value::from(all)));
            }
            if !keys.is_empty() {
                by_hand = std::mem::take(&mut addition) + &cluster_table(&cluster, &keys);
            }
            settings.clone()
        }
    };
    let (settings, others) = of_one(settings, &name, known, args)?;
    let by_hand = Some(by_hand).filter(|text| !text.is_empty());
    let repositories = vec![(name, store)];
    let plan = ConfigurationPlan { path, cluster, settings, repositories, others, addition, by_hand };
    // Before anything is registered: a command that fails later would leave a repository that no configuration names.
    if !plan.addition.is_empty() {
        let old = if existing.is_some() { Some(std::fs::read_to_string(&plan.path)?) } else { None };
        plan.text(old).map_err(Failure::usage)?;
    }
    Ok(plan)
}

/// The settings of a cluster for one repository, which is made or joined, and the other repositories that the file has of the cluster.
fn of_one(
    mut settings: ClusterSettings,
    name: &String,
    known: Option<&BTreeMap<String, StoreSettings>>,
    args: &InitArgs,
) -> Result<(ClusterSettings, Vec<(String, StoreSettings)>), Failure> {
    let table = |other: &String| Some((other.clone(), known?.get(other)?.clone()));
    let others: Vec<_> =
        settings.repositories.iter().filter(|other| *other != name).filter_map(table).collect();
    if !others.is_empty() {
        only_one(args)?;
    }
    if settings.ack.is_none() && !settings.repositories.contains(name) {
        settings.repositories.push(name.clone());
    }
    settings.ack = Some(settings.ack_set().to_vec());
    settings.repositories = vec![name.clone()];
    Ok((settings, others))
}

/// Refuses what is done in each of a cluster's repositories or in none.
fn only_one(args: &InitArgs) -> Result<(), Failure> {
    let what = match args {
        InitArgs { new_lineage: true, .. } => "a new lineage begins in",
        InitArgs { lost_repo, .. } if !lost_repo.is_empty() => {
            "a repository that is lost is replaced in what is recorded in"
        }
        _ => return Ok(()),
    };
    Err(Failure::usage(anyhow!(
        "{what} each of the cluster's repositories, and --repo names one\nHINT: Run this without --repo."
    )))
}

/// Keys of the cluster's table that the arguments want otherwise.
fn differences(settings: &ClusterSettings, args: &InitArgs) -> Vec<(String, toml::Value)> {
    let mut keys = Vec::new();
    let mut differs = |key: &str, wanted: Option<String>, is: Option<String>| {
        if let Some(wanted) = wanted.filter(|wanted| is.as_ref() != Some(wanted)) {
            keys.push((key.to_owned(), toml::Value::from(wanted)));
        }
    };
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    differs("pgdata", text(&args.pgdata), text(&settings.pgdata));
    differs("conninfo", args.conninfo.clone(), settings.conninfo.clone());
    differs("push_socket", text(&args.push_socket), text(&settings.push_socket));
    keys
}

fn cluster_keys(repository: &str, args: &InitArgs) -> Result<Vec<(String, toml::Value)>, Failure> {
    let pgdata = args.pgdata.as_ref().ok_or_else(|| {
        Failure::usage(anyhow!(
            "no data directory is named\nHINT: Name PostgreSQL's data directory with \
                                               --pgdata DIR."
        ))
    })?;
    let mut keys = vec![
        ("repositories".to_owned(), toml::Value::from(vec![repository.to_owned()])),
        ("pgdata".to_owned(), toml::Value::from(utf8(pgdata)?)),
    ];
    if let Some(conninfo) = &args.conninfo {
        keys.push(("conninfo".to_owned(), toml::Value::from(conninfo.as_str())));
    }
    if let Some(socket) = &args.push_socket {
        keys.push(("push_socket".to_owned(), toml::Value::from(utf8(socket)?)));
    }
    Ok(keys)
}

pub(super) fn utf8(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        Failure::usage(anyhow!("{} is not UTF-8, which a TOML file has to be", path.display()))
    })
}

fn cluster_table(cluster: &ClusterName, keys: &[(String, toml::Value)]) -> String {
    let mut text = format!("\n[cluster.{}]\n", key(cluster.as_str()));
    keys.iter().for_each(|(key, value)| text += &format!("{key} = {value}\n"));
    text
}

/// A name as TOML has it: bare where that is allowed.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { toml::Value::from(name).to_string() }
}

fn table_text(name: &str, table: &toml::Table) -> Result<String, Failure> {
    let body = toml::to_string(table).context("the repository's table")?;
    Ok(format!("\n[{name}]\n{body}"))
}

/// What names the secret of an encrypted repository: as the options say, or a new key file beside the configuration.
fn secret_table(args: &InitArgs, config: &Path, store: &toml::Table) -> Result<toml::Table, Failure> {
    let secret = args.secret.table();
    let named = ["key_", "passphrase_", "unwrap_"];
    let elsewhere = store.keys().any(|key| named.iter().any(|prefix| key.starts_with(prefix)));
    if !args.encrypt || elsewhere || !secret.is_empty() {
        return Ok(secret);
    }
    let beside = config.parent().unwrap_or(Path::new("/")).join(format!("{}.key", args.repo_name));
    let key_file = SecretArgs { key_file: Some(beside), ..SecretArgs::default() };
    Ok(key_file.table())
}

/// The body of `[repository.NAME]`.
fn store_table(url: &str, args: &StoreArgs) -> Result<toml::Table, Failure> {
    let mut table = toml::Table::new();
    table.insert("url".to_owned(), url.into());
    let texts = [
        ("endpoint", &args.endpoint),
        ("region", &args.region),
        ("ca_file", &args.ca_file),
        ("access_key_id", &args.access_key_id),
        ("access_key_id_file", &args.access_key_id_file),
        ("secret_access_key_file", &args.secret_access_key_file),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            table.insert(key.to_owned(), value.as_str().into());
        }
    }
    for (key, value) in [("path_style", args.path_style), ("allow_http", args.allow_http)] {
        if value {
            table.insert(key.to_owned(), true.into());
        }
    }
    for option in &args.options {
        let wrong = || Failure::usage(anyhow!("--store-option {option} is not KEY=VALUE"));
        let (key, value) = option.split_once('=').ok_or_else(wrong)?;
        let value = match (value, value.parse::<i64>()) {
            ("true", _) => true.into(),
            ("false", _) => false.into(),
            (_, Ok(number)) => number.into(),
            _ => toml::Value::from(value),
        };
        table.insert(key.to_owned(), value);
    }
    Ok(table)
}

/// Makes the directory of a local repository, in a directory that exists: a typo further up is found out, and a filesystem
/// that is not mounted is not hidden by a new tree.
pub(crate) fn make_directory(directory: &Path) -> anyhow::Result<()> {
    let parent = directory.parent();
    if directory.exists() || !parent.is_some_and(Path::is_dir) {
        return Ok(());
    }
    let made = std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(directory);
    made.and_then(|()| std::fs::File::open(directory))
        .map(|made| grant(&made, DIRECTORY_MODE))
        .and_then(|()| durable::sync_parent(directory))
        .with_context(|| format!("could not create the directory {}", directory.display()))
}

impl ConfigurationPlan {
    /// The data directory.
    pub(crate) fn pgdata(&self) -> Result<&Path, Failure> {
        self.settings.pgdata.as_deref().ok_or_else(|| {
            Failure::usage(anyhow!("set pgdata in [cluster.{}] to PostgreSQL's data directory", self.cluster))
        })
    }

    /// The directories of local repositories.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        self.repositories.iter().filter_map(|(_, settings)| settings.directory()).collect()
    }

    /// Writes the file, all or nothing.
    pub(crate) fn write(&self) -> anyhow::Result<Change> {
        if self.by_hand.is_some() {
            return Ok(Change::Refused);
        }
        if self.addition.is_empty() {
            return Ok(Change::Unchanged);
        }
        let failed = || {
            let directory = self.path.parent().unwrap_or(Path::new("/")).display();
            format!(
                "the configuration {} cannot be written\nHINT: Make {directory} writable for PostgreSQL's user, or choose \
                 another place with --config.",
                self.path.display()
            )
        };
        if !self.path.exists() {
            if let Some(directory) = self.path.parent() {
                durable::create_directories(directory).with_context(failed)?;
            }
            let text = self.text(None)?;
            return match durable::create(&self.path, text.as_bytes()).with_context(failed)? {
                Created::New => Ok(Change::Written),
                Created::Exists => {
                    Err(anyhow!("{} was created by another process just now", self.path.display()))
                }
            };
        }
        // A link leads to the file that is meant.
        let path = self.path.canonicalize().with_context(failed)?;
        let mode = std::fs::metadata(&path).with_context(failed)?.permissions().mode() & 0o7777;
        let text = self.text(Some(std::fs::read_to_string(&path).with_context(failed)?))?;
        durable::replace(&path, text.as_bytes(), mode).with_context(failed)?;
        Ok(Change::Extended)
    }

    /// What the file is to hold, with the text that it holds so far. It is checked as every program checks what it reads.
    fn text(&self, old: Option<String>) -> anyhow::Result<String> {
        let mut text = old.unwrap_or_else(|| HEADER.to_owned());
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text += &self.addition;
        Config::<StoreSettings>::check(&self.path, &text)
            .context("nothing was changed: with the tables that init adds, every program would refuse the configuration")?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
