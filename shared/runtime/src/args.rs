//! The options that every command takes, and what they select: one cluster and its repositories.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::anyhow;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use walpoint_base::ClusterName;
use walpoint_base::mask::masked;
use walpoint_base::table::FromTable;

use crate::config::{ClusterSettings, Config, DEFAULT_PATH};
use crate::config_file::ConfigFile;
use crate::exit::Failure;
use crate::help;

/// The name that a repository given by its URL has in messages.
pub const UNNAMED_REPOSITORY: &str = "repo";

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = help::GLOBAL)]
pub struct CommonArgs {
    /// Read this configuration file [default: /etc/walpoint/walpoint.toml].
    #[arg(long, value_name = "FILE", env = "WALPOINT_CONFIG", value_parser = ConfigFile, global = true)]
    pub config: Option<PathBuf>,
    /// Use only this repository of the cluster: its name in the configuration, or a URL, which needs no configuration
    /// (file:///dir, s3://bucket/prefix, gs://…, az://…). A name can be repeated [default: all of the cluster's].
    #[arg(long, value_name = "NAME|URL", global = true)]
    pub repo: Vec<RepoArgument>,
    /// Select the cluster; needed only when the configuration has several.
    #[arg(long, value_name = "NAME", global = true)]
    pub cluster: Option<ClusterName>,
    /// Print JSON on standard output, and log in JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Log in this format on standard error [default: text; json with --json].
    #[arg(long, value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
    /// Log only warnings and errors, and show no progress.
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log more; given twice, log everything.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The format of logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

/// A repository as `--repo` gives it. Names have no slash, and URLs have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepoArgument {
    /// The name of a `[repository.NAME]` table.
    Name(String),
    /// Where it is.
    Url(String),
}

impl FromStr for RepoArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("the name of a repository, or a URL, is missing".to_owned()),
            url if url.contains('/') => Ok(Self::Url(url.to_owned())),
            name => Ok(Self::Name(name.to_owned())),
        }
    }
}

/// A span of time above zero, as the configuration has it: `90s`, `5m`, `1h 30m`, `2d`.
pub fn span(text: &str) -> Result<Duration, String> {
    match Duration::try_from(walpoint_base::span::parse(text)?) {
        Ok(span) if !span.is_zero() => Ok(span),
        _ => Err("a span above zero is needed".to_owned()),
    }
}

/// The lowest rate in bytes per second, that of `pg_basebackup --max-rate`.
const LOWEST_RATE: u64 = 32 << 10;

/// A rate in bytes per second, or 0 for no limit.
pub fn rate(text: &str) -> Result<ByteSize, String> {
    no_crawl(text.parse()?)
}

/// The rate, if a backup could end at it: a number without a unit is mostly a forgotten one.
pub(crate) fn no_crawl(rate: ByteSize) -> Result<ByteSize, String> {
    match rate.as_u64() {
        bytes @ 1..LOWEST_RATE => Err(format!(
            "{bytes} bytes per second are less than 32 KiB per second\nHINT: Give the rate with its unit, as in \"20MiB\"."
        )),
        _ => Ok(rate),
    }
}

/// A line of text that is kept for people, such as a label or a reason: without what could control a terminal.
pub fn line(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) {
        true => Err("it holds a control character, such as the end of a line".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// The name of a repository in the configuration, which `--repo` has to tell from a URL.
pub fn repository_name(text: &str) -> Result<String, String> {
    match text.parse()? {
        RepoArgument::Name(name) => Ok(name),
        RepoArgument::Url(_) => Err("the name of a repository has no slash".to_owned()),
    }
}

impl Display for RepoArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Name(text) | Self::Url(text)) = self;
        f.write_str(text)
    }
}

/// What the options select.
#[derive(Debug, Clone)]
pub struct Selection<R> {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// Its settings; defaults if it was selected without a file.
    pub settings: ClusterSettings,
    /// Its repositories, in the order in which they are read.
    pub repositories: Vec<(String, R)>,
    /// Whether `--repo` chose the repositories: the cluster may have others.
    pub chosen: bool,
    /// The file that was read.
    pub config: Option<PathBuf>,
}

impl<R> Selection<R> {
    /// Names of the cluster's repositories that `--repo` leaves out of those that are read.
    pub fn left_out(&self) -> Vec<String> {
        let is_read = |name: &&String| self.repositories.iter().any(|(read, _)| read == *name);
        self.settings.repositories.iter().filter(|name| !is_read(name)).cloned().collect()
    }
}

impl CommonArgs {
    /// Whether to show progress on a terminal.
    pub fn show_progress(&self) -> bool {
        !self.quiet && self.log_format() == LogFormat::Text && !self.json && std::io::stderr().is_terminal()
    }

    /// The format of logs.
    pub fn log_format(&self) -> LogFormat {
        let default = if self.json { LogFormat::Json } else { LogFormat::Text };
        self.log_format.unwrap_or(default)
    }

    /// The URL that `--repo` gives; `None` if it gives none. Several, or one beside names, are wrong usage.
    pub fn url(&self) -> Result<Option<&str>, Failure> {
        let url = self.repo.iter().find_map(|repo| match repo {
            RepoArgument::Url(url) => Some(url.as_str()),
            RepoArgument::Name(_) => None,
        });
        match url {
            Some(_) if self.repo.len() > 1 => {
                let given =
                    self.repo.iter().map(|repo| masked(&repo.to_string())).collect::<Vec<_>>().join(", ");
                Err(Failure::usage(anyhow!(
                    "--repo can be repeated with names only: a URL replaces all repositories of the configuration (given: {given})"
                )))
            }
            url => Ok(url),
        }
    }

    /// The names of repositories that `--repo` gives.
    pub fn names(&self) -> Vec<&str> {
        let names = self.repo.iter().filter_map(|repo| match repo {
            RepoArgument::Name(name) => Some(name.as_str()),
            RepoArgument::Url(_) => None,
        });
        names.collect()
    }

    /// Fails if a repository is given: `what` is about all of the cluster's.
    pub fn without_repo(&self, what: &str) -> Result<(), Failure> {
        match self.repo.first() {
            None => Ok(()),
            Some(given) => Err(Failure::usage(anyhow!(
                "--repo {} cannot be given here: {what} is about every repository of the cluster, which the configuration names",
                masked(&given.to_string())
            ))),
        }
    }

    /// The file that was asked for. A variable that is empty asks for none.
    pub fn given_config(&self) -> Option<&Path> {
        self.config.as_deref().filter(|given| !given.as_os_str().is_empty())
    }

    /// The file to read: the one asked for, or the default one if it exists and no URL replaces it.
    pub fn config_path(&self) -> Option<PathBuf> {
        let replaced = self.repo.iter().any(|repo| matches!(repo, RepoArgument::Url(_)));
        let default = || Some(PathBuf::from(DEFAULT_PATH)).filter(|p| !replaced && p.exists());
        self.given_config().map(Path::to_owned).or_else(default)
    }

    /// Fails if there is no file to read, for commands that a URL is not enough for.
    pub fn require_config(&self) -> Result<(), Failure> {
        match self.config_path() {
            None if self.url()?.is_none() => Err(Failure::usage(anyhow!(
                "no configuration: {DEFAULT_PATH} does not exist\nHINT: Give --config FILE or set WALPOINT_CONFIG. \"archive-agent init\" writes one."
            ))),
            _ => Ok(()),
        }
    }

    /// Reads the configuration file; `None` if there is none to read.
    pub fn read_config<R: FromTable<Table: DeserializeOwned>>(&self) -> Result<Option<Config<R>>, Failure> {
        self.config_path().map(|path| Config::read(&path)).transpose().map_err(Failure::usage)
    }

    /// The cluster and the repositories that these options and the configuration select. Where `--repo` chooses some of them, they alone
    /// are the cluster's, and all of them acknowledge.
    pub fn select<R: FromTable<Table: DeserializeOwned> + Clone>(&self) -> Result<Selection<R>, Failure> {
        let mut selection = self.select_to_read()?;
        if !self.names().is_empty() {
            let chosen = selection.repositories.iter().map(|(name, _)| name.clone());
            selection.settings.repositories = chosen.collect();
            selection.settings.ack = None;
        }
        Ok(selection)
    }

    /// The cluster and those of its repositories that a command reads: `--repo` chooses among them. The settings stay those of the
    /// configuration, because a repository that is not read acknowledges WAL all the same: nothing is proven to be absent without it.
    pub fn select_to_read<R: FromTable<Table: DeserializeOwned> + Clone>(
        &self,
    ) -> Result<Selection<R>, Failure> {
        let (mut selection, names) = self.select_all()?;
        if !self.names().is_empty() {
            selection.repositories.retain(|(name, _)| names.contains(name));
            selection.chosen = true;
        }
        Ok(selection)
    }

    /// The cluster with all of its repositories, and the names of those that `--repo` chooses, in their order: all of them without it.
    pub fn select_all<R: FromTable<Table: DeserializeOwned> + Clone>(
        &self,
    ) -> Result<(Selection<R>, Vec<String>), Failure> {
        let config = self.read_config::<R>()?;
        if let Some(url) = self.url()? {
            return Ok((self.select_url(url, config)?, vec![UNNAMED_REPOSITORY.to_owned()]));
        }
        let Some(config) = config else {
            return Err(Failure::usage(anyhow!(
                "no configuration: {DEFAULT_PATH} does not exist\nHINT: Give --config FILE or set WALPOINT_CONFIG, or give --repo URL and --cluster NAME."
            )));
        };
        let (cluster, settings) = self.pick(&config.cluster)?;
        let names = self.named(&cluster, &settings.repositories)?;
        let table = |name: &String| config.repository.get(name).map(|r| (name.clone(), r.clone()));
        let repositories = settings.repositories.iter().filter_map(table).collect();
        let config = self.config_path();
        Ok((Selection { cluster, settings, repositories, chosen: false, config }, names))
    }

    /// Those of a cluster's repositories that `--repo` names; all of them if it names none.
    fn named(&self, cluster: &ClusterName, known: &[String]) -> Result<Vec<String>, Failure> {
        let names = self.names();
        if let Some(unknown) = names.iter().find(|name| !known.iter().any(|known| known == **name)) {
            return Err(Failure::usage(anyhow!(
                "--repo {unknown}: cluster {cluster} has no repository \"{unknown}\"\nDETAIL: It has: {}.",
                known.join(", ")
            )));
        }
        let chosen = |name: &&String| names.is_empty() || names.contains(&name.as_str());
        Ok(known.iter().filter(chosen).cloned().collect())
    }

    fn pick(
        &self,
        clusters: &BTreeMap<ClusterName, ClusterSettings>,
    ) -> Result<(ClusterName, ClusterSettings), Failure> {
        let known = || clusters.keys().map(ClusterName::as_str).collect::<Vec<_>>().join(", ");
        let found = match &self.cluster {
            Some(name) => clusters.get_key_value(name).ok_or_else(|| {
                anyhow!("the configuration has no [cluster.{name}]\nDETAIL: It has: {}.", known())
            }),
            None if clusters.len() > 1 => Err(anyhow!(
                "the configuration has several clusters\nDETAIL: It has: {}.\nHINT: Choose one with --cluster.",
                known()
            )),
            None => clusters.first_key_value().ok_or_else(|| {
                anyhow!("the configuration has no [cluster.NAME]\nHINT: \"archive-agent init\" writes one.")
            }),
        };
        found.map(|(name, settings)| (name.clone(), settings.clone())).map_err(Failure::usage)
    }

    /// A URL replaces the repositories of the configuration; the rest of a cluster's settings still holds.
    fn select_url<R: FromTable<Table: DeserializeOwned> + Clone>(
        &self,
        url: &str,
        config: Option<Config<R>>,
    ) -> Result<Selection<R>, Failure> {
        let known = config
            .filter(|c| self.cluster.as_ref().map_or(c.cluster.len() == 1, |n| c.cluster.contains_key(n)));
        let (cluster, mut settings) = match (known, &self.cluster) {
            (Some(config), _) => self.pick(&config.cluster)?,
            (None, Some(name)) => (name.clone(), ClusterSettings::with_repositories(Vec::new())),
            (None, None) => {
                return Err(Failure::usage(anyhow!("--repo URL needs --cluster NAME")));
            }
        };
        settings.repositories = vec![UNNAMED_REPOSITORY.to_owned()];
        settings.ack = None;
        let table = toml::Table::from_iter([("url".to_owned(), toml::Value::String(url.to_owned()))]);
        let wrong = |error: &dyn Display| Failure::usage(anyhow!("--repo {}: {error}", masked(url)));
        let table = R::Table::deserialize(table).map_err(|error| wrong(&error))?;
        let repository = R::from_table(table).map_err(|error| wrong(&error))?;
        let repositories = vec![(UNNAMED_REPOSITORY.to_owned(), repository)];
        Ok(Selection { cluster, settings, repositories, chosen: true, config: self.config_path() })
    }
}

#[cfg(test)]
mod tests;
