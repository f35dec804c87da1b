//! The options that every command takes, and what they select: one cluster and its repositories.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use walpoint_base::ClusterName;
use walpoint_base::table::FromTable;

use crate::config::{ClusterSettings, Config, DEFAULT_PATH};
use crate::exit::Failure;
use crate::help;

/// The name that a repository given by `--repo` has in messages.
pub const UNNAMED_REPOSITORY: &str = "repo";

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = help::GLOBAL)]
pub struct CommonArgs {
    /// Configuration file [default: /etc/walpoint/walpoint.toml].
    #[arg(long, value_name = "FILE", env = "WALPOINT_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Work with this repository, without a configuration file: file:///dir, s3://bucket/prefix, gs://… or az://….
    #[arg(long, value_name = "URL", global = true)]
    pub repo: Option<String>,
    /// The cluster; needed only when the configuration has several.
    #[arg(long, value_name = "NAME", global = true)]
    pub cluster: Option<ClusterName>,
    /// Print JSON on standard output, and log in JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Log only warnings and errors, and show no progress.
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log more; twice: everything.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
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
    /// The file that was read.
    pub config: Option<PathBuf>,
}

impl CommonArgs {
    /// Whether to show progress on a terminal.
    pub fn show_progress(&self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }

    /// The file to read: the one asked for, or the default one if it exists and no `--repo` stands in for it.
    pub fn config_path(&self) -> Option<PathBuf> {
        let default = || Some(PathBuf::from(DEFAULT_PATH)).filter(|p| self.repo.is_none() && p.exists());
        self.config.clone().or_else(default)
    }

    /// Reads the configuration file; `None` if there is none to read.
    pub fn read_config<R: FromTable<Table: DeserializeOwned>>(&self) -> Result<Option<Config<R>>, Failure> {
        self.config_path().map(|path| Config::read(&path)).transpose().map_err(Failure::usage)
    }

    /// The cluster and the repositories that these options and the configuration select.
    pub fn select<R: FromTable<Table: DeserializeOwned> + Clone>(&self) -> Result<Selection<R>, Failure> {
        let config = self.read_config::<R>()?;
        if let Some(url) = &self.repo {
            return self.select_url(url, config);
        }
        let Some(config) = config else {
            return Err(Failure::usage(anyhow::anyhow!(
                "no configuration: {DEFAULT_PATH} does not exist; give --config FILE, or --repo URL and --cluster NAME"
            )));
        };
        let (cluster, settings) = self.pick(&config.cluster)?;
        let named = |name: &String| config.repository.get(name).map(|r| (name.clone(), r.clone()));
        let repositories = settings.repositories.iter().filter_map(named).collect();
        Ok(Selection { cluster, settings, repositories, config: self.config_path() })
    }

    fn pick(
        &self,
        clusters: &BTreeMap<ClusterName, ClusterSettings>,
    ) -> Result<(ClusterName, ClusterSettings), Failure> {
        let known = || clusters.keys().map(ClusterName::as_str).collect::<Vec<_>>().join(", ");
        let found = match &self.cluster {
            Some(name) => clusters.get_key_value(name).ok_or_else(|| {
                anyhow::anyhow!("the configuration has no [cluster.{name}] (it has: {})", known())
            }),
            None if clusters.len() > 1 => Err(anyhow::anyhow!(
                "the configuration has several clusters; choose one with --cluster: {}",
                known()
            )),
            None => clusters.first_key_value().ok_or_else(|| {
                anyhow::anyhow!("the configuration has no [cluster.NAME]; archive-agent init writes one")
            }),
        };
        found.map(|(name, settings)| (name.clone(), settings.clone())).map_err(Failure::usage)
    }

    /// `--repo` replaces the repositories of the configuration; the rest of a cluster's settings still holds.
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
                return Err(Failure::usage(anyhow::anyhow!("--repo needs --cluster NAME beside it")));
            }
        };
        settings.repositories = vec![UNNAMED_REPOSITORY.to_owned()];
        settings.ack = None;
        let table = toml::Table::from_iter([("url".to_owned(), toml::Value::String(url.to_owned()))]);
        let wrong = |error: &dyn Display| Failure::usage(anyhow::anyhow!("--repo {url}: {error}"));
        let table = R::Table::deserialize(table).map_err(|error| wrong(&error))?;
        let repository = R::from_table(table).map_err(|error| wrong(&error))?;
        let repositories = vec![(UNNAMED_REPOSITORY.to_owned(), repository)];
        Ok(Selection { cluster, settings, repositories, config: self.config_path() })
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::table::WrongKey;

    use super::*;

    #[derive(Debug, Clone, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Store {
        url: String,
    }

    impl FromTable for Store {
        type Table = Self;

        fn from_table(table: Self) -> Result<Self, WrongKey> {
            Ok(table)
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        walpoint_base::durable::replace(file.path(), text.as_bytes(), 0o600).unwrap();
        file
    }

    fn two_clusters() -> tempfile::NamedTempFile {
        let cluster = |name| format!("[cluster.{name}]\nrepositories = [\"m\"]\npgdata = \"/{name}\"\n");
        file(&format!("[repository.m]\nurl = \"file:///m\"\n{}{}", cluster("a"), cluster("b")))
    }

    #[test]
    fn one_of_several_clusters_has_to_be_named() {
        let config = two_clusters();
        let mut args = CommonArgs { config: Some(config.path().to_owned()), ..CommonArgs::default() };
        let error = args.select::<Store>().unwrap_err();
        assert_eq!(error.status, 2);
        assert!(error.to_string().contains("a, b"), "{error}");
        args.cluster = Some("b".parse().unwrap());
        let selection = args.select::<Store>().unwrap();
        assert_eq!(selection.settings.pgdata.unwrap(), PathBuf::from("/b"));
        assert_eq!(selection.repositories[0].1.url, "file:///m");
        args.cluster = Some("c".parse().unwrap());
        assert!(args.select::<Store>().unwrap_err().to_string().contains("[cluster.c]"));
    }

    #[test]
    fn readers_work_without_a_file() {
        let mut args = CommonArgs { repo: Some("file:///x".into()), ..CommonArgs::default() };
        assert!(args.select::<Store>().unwrap_err().to_string().contains("--cluster"));
        args.cluster = Some("any".parse().unwrap());
        assert_eq!(args.select::<Store>().unwrap().repositories[0].1.url, "file:///x");
    }

    #[test]
    fn repo_replaces_only_the_repositories() {
        let config = two_clusters();
        let args = CommonArgs {
            config: Some(config.path().to_owned()),
            repo: Some("file:///x".into()),
            cluster: Some("a".parse().unwrap()),
            ..CommonArgs::default()
        };
        let selection = args.select::<Store>().unwrap();
        assert_eq!(selection.settings.pgdata.unwrap(), PathBuf::from("/a"));
        assert_eq!(selection.repositories[0].1.url, "file:///x");
    }
}
