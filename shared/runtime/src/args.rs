//! The options that every command takes, and what they select: one cluster and its repositories.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use walpoint_base::ClusterName;
use walpoint_base::table::FromTable;

use crate::config::{ClusterSettings, Config, DEFAULT_PATH};
use crate::exit::Failure;
use crate::help;

/// The name that a repository given by its URL has in messages.
pub const UNNAMED_REPOSITORY: &str = "repo";

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = help::GLOBAL)]
pub struct CommonArgs {
    /// Read this configuration file [default: /etc/walpoint/walpoint.toml].
    #[arg(long, value_name = "FILE", env = "WALPOINT_CONFIG", global = true)]
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
                let given = self.repo.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
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
                "--repo {given} cannot be given here: {what} is about every repository of the cluster, which the configuration names"
            ))),
        }
    }

    /// The file to read: the one asked for, or the default one if it exists and no URL replaces it.
    pub fn config_path(&self) -> Option<PathBuf> {
        let replaced = self.repo.iter().any(|repo| matches!(repo, RepoArgument::Url(_)));
        let default = || Some(PathBuf::from(DEFAULT_PATH)).filter(|p| !replaced && p.exists());
        self.config.clone().or_else(default)
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
                "no configuration: {DEFAULT_PATH} does not exist\nHINT: Give --config FILE, or --repo URL and --cluster NAME."
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
        let wrong = |error: &dyn Display| Failure::usage(anyhow!("--repo {url}: {error}"));
        let table = R::Table::deserialize(table).map_err(|error| wrong(&error))?;
        let repository = R::from_table(table).map_err(|error| wrong(&error))?;
        let repositories = vec![(UNNAMED_REPOSITORY.to_owned(), repository)];
        Ok(Selection { cluster, settings, repositories, chosen: true, config: self.config_path() })
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

    fn repo(given: &[&str]) -> Vec<RepoArgument> {
        given.iter().map(|text| text.parse().unwrap()).collect()
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
        let mut args = CommonArgs { repo: repo(&["file:///x"]), ..CommonArgs::default() };
        assert!(args.select::<Store>().unwrap_err().to_string().contains("--cluster"));
        args.cluster = Some("any".parse().unwrap());
        assert_eq!(args.select::<Store>().unwrap().repositories[0].1.url, "file:///x");
    }

    #[test]
    fn what_has_a_slash_is_a_url() {
        for (text, url) in
            [("main", false), ("off-site.2", false), ("s3://b", true), ("/backup", true), ("a/b", true)]
        {
            let parsed: RepoArgument = text.parse().unwrap();
            assert_eq!(matches!(parsed, RepoArgument::Url(_)), url, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        "".parse::<RepoArgument>().unwrap_err();
        assert_eq!(repository_name("main").unwrap(), "main");
        assert!(repository_name("a/b").unwrap_err().contains("no slash"));
    }

    #[test]
    fn json_logs_go_with_json_unless_another_format_is_asked_for() {
        for (json, asked, expected) in [
            (false, None, LogFormat::Text),
            (true, None, LogFormat::Json),
            (true, Some(LogFormat::Text), LogFormat::Text),
            (false, Some(LogFormat::Json), LogFormat::Json),
        ] {
            let args = CommonArgs { json, log_format: asked, ..CommonArgs::default() };
            assert_eq!(args.log_format(), expected);
        }
    }

    #[test]
    fn spans_have_units() {
        for (text, seconds) in
            [("90s", 90), ("5m", 300), ("1h 30m", 5400), ("1h30m", 5400), ("1d 2h", 93_600)]
        {
            assert_eq!(span(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for bad in ["60", "", "soon", "0s", "-5m", "1y", "9223372036854775807s"] {
            span(bad).unwrap_err();
        }
        assert!(span("60").unwrap_err().contains("has units"));
    }

    #[test]
    fn a_name_chooses_among_the_clusters_repositories() {
        let tables =
            ["a", "b", "c"].map(|name| format!("[repository.{name}]\nurl = \"file:///{name}\"\n")).concat();
        let cluster = "[cluster.x]\nrepositories = [\"a\", \"b\"]\nack = [\"b\"]\n";
        let config = file(&(tables + cluster));
        let select = |given: &[&str]| {
            let config = Some(config.path().to_owned());
            CommonArgs { config, repo: repo(given), ..CommonArgs::default() }.select::<Store>()
        };
        let names = |selection: &Selection<Store>| {
            selection.repositories.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        let all = select(&[]).unwrap();
        assert_eq!(
            (names(&all), all.settings.ack_set(), all.chosen),
            (vec!["a".into(), "b".into()], &["b".to_owned()][..], false)
        );
        let one = select(&["a"]).unwrap();
        assert_eq!(
            (names(&one), one.settings.ack_set(), one.chosen),
            (vec!["a".into()], &["a".to_owned()][..], true)
        );
        assert_eq!(names(&select(&["b", "a"]).unwrap()), ["a", "b"], "in the order of the configuration");
        for unknown in ["c", "gone"] {
            let error = select(&["a", unknown]).unwrap_err();
            assert!(error.status == 2 && error.to_string().contains("\nDETAIL: It has: a, b."), "{error}");
        }
        for several in [["a", "file:///x"], ["file:///x", "file:///y"]] {
            let error = select(&several).unwrap_err();
            assert!(error.status == 2 && error.to_string().contains("with names only"), "{error}");
        }
        assert!(select(&["file:///x"]).unwrap().chosen);
    }

    #[test]
    fn what_is_not_read_acknowledges_all_the_same() {
        let tables =
            ["a", "b"].map(|name| format!("[repository.{name}]\nurl = \"file:///{name}\"\n")).concat();
        let select = |ack: &str, given: &[&str]| {
            let config = file(&format!("{tables}[cluster.x]\nrepositories = [\"a\", \"b\"]\n{ack}"));
            let config = Some(config.path().to_owned());
            let args = CommonArgs { config, repo: repo(given), ..CommonArgs::default() };
            args.select_to_read::<Store>()
        };
        let cases: [(&[&str], &[&str], &[&str]); 2] = [(&[], &["a", "b"], &[]), (&["a"], &["a"], &["b"])];
        for (ack, expected) in [("ack = [\"b\"]\n", &["b"][..]), ("", &["a", "b"])] {
            for (given, read, left_out) in cases {
                let selection = select(ack, given).unwrap();
                let names = selection.repositories.iter().map(|(name, _)| name.as_str());
                assert_eq!(names.collect::<Vec<_>>(), read, "{ack} {given:?}");
                assert_eq!(selection.settings.ack_set(), expected, "{ack} {given:?}");
                assert_eq!(selection.settings.repositories, ["a", "b"], "{ack} {given:?}");
                assert_eq!(selection.left_out(), left_out, "{ack} {given:?}");
                assert_eq!(selection.chosen, !given.is_empty());
            }
        }
        assert_eq!(select("", &["c"]).unwrap_err().status, 2);
        let url = select("", &["file:///x"]).unwrap();
        assert_eq!((url.settings.ack_set(), url.left_out().len()), (&["repo".to_owned()][..], 0));
        assert!(url.chosen);
    }

    #[test]
    fn a_command_about_all_repositories_takes_none() {
        CommonArgs::default().without_repo("push").unwrap();
        let args = CommonArgs { repo: repo(&["a"]), ..CommonArgs::default() };
        assert_eq!(args.without_repo("push").unwrap_err().status, 2);
    }

    #[test]
    fn repo_replaces_only_the_repositories() {
        let config = two_clusters();
        let args = CommonArgs {
            config: Some(config.path().to_owned()),
            repo: repo(&["file:///x"]),
            cluster: Some("a".parse().unwrap()),
            ..CommonArgs::default()
        };
        let selection = args.select::<Store>().unwrap();
        assert_eq!(selection.settings.pgdata.unwrap(), PathBuf::from("/a"));
        assert_eq!(selection.repositories[0].1.url, "file:///x");
    }
}
