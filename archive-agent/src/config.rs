//! `archive-agent config check`: everything that is wrong with the configuration file, without opening anything that it names.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::table::WrongKey;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_pg::connect::{ConnInfo, Environment, SettingsError};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::config::{ClusterSettings, Config, DEFAULT_PATH, Problem};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, human, output};
use walpoint_storage::RepoError;
use walpoint_storage::keys::KeySource;
use walpoint_storage::store::StoreSettings;

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Check the file before the daemon reads it again",
        "archive-agent config check && systemctl reload archive-agent",
    ),
    ("Check another file", "archive-agent config check --config /tmp/new.toml"),
];

/// What `config` can do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Report every error in the configuration file; exits 2 if there is one.
    ///
    /// Reads only this file, and opens no repository, server or secret that it names. "archive-agent check" does that.
    ///
    /// The daemon needs pgdata of every cluster: it is an error if one has it and another does not. A file in which none
    /// has it is for restores: the check says that the daemon cannot use it, and succeeds. With --cluster, only that
    /// cluster counts, as for "archive-agent run --cluster".
    #[command(after_long_help = help::examples(EXAMPLES))]
    Check,
}

/// What `archive-agent config check --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct ConfigReport {
    /// The configuration file.
    config_file: PathBuf,
    /// What is wrong with the file, in the order of its lines.
    errors: Vec<Problem>,
    /// Why the daemon cannot use the file, though other commands can. Absent if it can, or if something is wrong with the file.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    daemon_error: Option<String>,
    /// Whether the file is meant for the daemon: a cluster has a data directory.
    #[serde(skip)]
    for_daemon: bool,
    /// The clusters in the file; empty if something is wrong with it.
    clusters: Vec<ConfiguredCluster>,
    /// The repositories in the file; empty if something is wrong with it.
    repositories: Vec<ConfiguredRepository>,
}

walpoint_runtime::document!(ConfigReport, "archive-agent config check");

/// A cluster.
#[derive(Debug, Serialize, JsonSchema)]
struct ConfiguredCluster {
    /// The cluster.
    cluster: ClusterName,
    /// Its repositories.
    repositories: Vec<String>,
    /// The repositories that must hold a segment before it is acknowledged.
    ack_repositories: Vec<String>,
    /// PostgreSQL's data directory. Absent if it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pgdata: Option<PathBuf>,
}

/// A repository.
#[derive(Debug, Serialize, JsonSchema)]
struct ConfiguredRepository {
    /// Its name.
    repository: String,
    /// Its URL.
    url: String,
}

/// Runs the command.
pub(crate) fn run(common: &CommonArgs, command: &ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Check = command;
    common.without_repo("config check")?;
    let path = common.config_path().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let (config, problems) = Config::examine(&path, contradictions, unusable).map_err(Failure::usage)?;
    if let (Some(config), Some(name)) = (&config, &common.cluster) {
        known_cluster(config, name)?;
    }
    for (name, settings) in config.iter().flat_map(|config| &config.cluster) {
        if has_password(settings) {
            tracing::warn!("[cluster.{name}]: {PASSWORD}\nHINT: {PASSWORD_HINT}");
        }
    }
    let report = ConfigReport::of(&path, config.as_ref(), problems, common.cluster.as_ref());
    match common.json {
        true => output::json(&report)?,
        false => output::text(&report.text())?,
    }
    match report.errors.len() {
        0 if report.is_usable() => Ok(()),
        0 => Err(Failure::usage(anyhow!("the daemon cannot use the configuration {path:?}"))),
        found => Err(Failure::usage(anyhow!(
            "the configuration {path:?} cannot be used: it has {}",
            human::count(found as u64, "problem")
        ))),
    }
}

/// What is wrong with the settings of a repository that would show only when it is opened.
fn contradictions(settings: &StoreSettings) -> Vec<WrongKey> {
    let store = settings.contradictions().into_iter();
    let wrong = |error| match error {
        RepoError::Settings { setting, what, .. } => {
            WrongKey { key: setting, what: format!("\"{setting}\": {what}"), hint: String::new() }
        }
        other => WrongKey { key: "url", what: other.to_string(), hint: String::new() },
    };
    store.chain(KeySource::of(&settings.encryption).err()).map(wrong).collect()
}

/// A secret in the file, which more people may read than a password file.
pub(crate) const PASSWORD: &str = "\"conninfo\" holds a password";
/// Where it belongs.
pub(crate) const PASSWORD_HINT: &str =
    "Put it into a password file (~/.pgpass, or passfile=… in the connection string), and change it.";

/// Whether the file gives the password of the cluster's server.
pub(crate) fn has_password(settings: &ClusterSettings) -> bool {
    let environment = Environment::empty().with_os_user("walpoint");
    let parsed = settings.conninfo.as_deref().map(|text| ConnInfo::parse_in(text, &environment));
    parsed.is_some_and(|parsed| parsed.is_ok_and(|info| info.has_password()))
}

/// What is wrong with the settings of a cluster that would show only when its server is asked.
fn unusable(settings: &ClusterSettings) -> Vec<WrongKey> {
    // What the environment adds is not the file's: the service here is another one than the daemon's.
    let environment = Environment::empty().with_os_user("walpoint");
    let parsed = settings.conninfo.as_deref().map(|text| ConnInfo::parse_in(text, &environment));
    match parsed {
        Some(Err(
            error @ (SettingsError::Syntax { .. }
            | SettingsError::Keyword { .. }
            | SettingsError::Value { .. }
            | SettingsError::Unsupported { .. }),
        )) => {
            vec![WrongKey { key: "conninfo", what: format!("\"conninfo\": {error}"), hint: String::new() }]
        }
        _ => Vec::new(),
    }
}

/// Fails if the file does not have the cluster that was asked for, as every other command does.
fn known_cluster(config: &Config<StoreSettings>, name: &ClusterName) -> Result<(), Failure> {
    if config.cluster.contains_key(name) {
        return Ok(());
    }
    let known: Vec<&str> = config.cluster.keys().map(ClusterName::as_str).collect();
    Err(Failure::usage(anyhow!(
        "the configuration has no [cluster.{name}]\nDETAIL: It has: {}.",
        known.join(", ")
    )))
}

/// Why the daemon, which reads the data directory of each of these clusters, would refuse the file.
fn daemon_error(clusters: &[(&ClusterName, bool)]) -> Option<String> {
    let lacking = clusters.iter().filter(|(_, has_pgdata)| !has_pgdata);
    let lacking: Vec<String> = lacking.map(|(name, _)| format!("[cluster.{name}]")).collect();
    match &lacking[..] {
        [] if clusters.is_empty() => Some(
            "the daemon cannot use this file: it has no cluster to archive\nHINT: \"archive-agent init\" writes one."
                .to_owned(),
        ),
        [] => None,
        _ => Some(format!(
            "the daemon cannot use this file: pgdata is missing in {}\nDETAIL: Archiving reads PostgreSQL's data directory.\n\
             HINT: Set pgdata to its path, or select another cluster with --cluster, here and for \"archive-agent run\".",
            lacking.join(", ")
        )),
    }
}

impl ConfigReport {
    /// What was found in a file. `cluster` is the one that the daemon would be started for, all of the file without it.
    fn of(
        path: &Path,
        config: Option<&Config<StoreSettings>>,
        errors: Vec<Problem>,
        cluster: Option<&ClusterName>,
    ) -> Self {
        let asked: Option<Vec<(&ClusterName, bool)>> = config.map(|config| {
            let all = config.cluster.iter().map(|(name, settings)| (name, settings.pgdata.is_some()));
            all.filter(|(name, _)| cluster.is_none_or(|cluster| cluster == *name)).collect()
        });
        let clusters = config.into_iter().flat_map(|config| &config.cluster);
        let repositories = config.into_iter().flat_map(|config| &config.repository);
        Self {
            config_file: path.to_owned(),
            errors,
            daemon_error: asked.as_deref().and_then(daemon_error),
            for_daemon: asked.iter().flatten().any(|(_, has_pgdata)| *has_pgdata),
            clusters: clusters
                .map(|(name, settings)| ConfiguredCluster {
                    cluster: name.clone(),
                    repositories: settings.repositories.clone(),
                    ack_repositories: settings.ack_set().to_vec(),
                    pgdata: settings.pgdata.clone(),
                })
                .collect(),
            repositories: repositories
                .map(|(name, settings)| ConfiguredRepository {
                    repository: name.clone(),
                    url: settings.url.clone(),
                })
                .collect(),
        }
    }

    /// Whether the file is right for what it is meant for.
    fn is_usable(&self) -> bool {
        self.errors.is_empty() && !(self.for_daemon && self.daemon_error.is_some())
    }

    /// For a person: a line for each problem, as compilers print theirs, with its details and hints below, or what the file has.
    fn text(&self) -> String {
        let path = self.config_file.display();
        if !self.errors.is_empty() {
            let line =
                |problem: &Problem| format!("{path}:{}: {}\n", problem.line_number, problem.diagnostic());
            return self.errors.iter().map(line).collect();
        }
        let mut text = if self.is_usable() { format!("{path}: ok\n") } else { String::new() };
        if let Some(error) = &self.daemon_error {
            text += &format!("{path}: {error}\n");
        }
        for ConfiguredCluster { cluster, repositories, ack_repositories: ack, pgdata } in &self.clusters {
            let (noun, names) = (
                if repositories.len() == 1 { "repository" } else { "repositories" },
                repositories.join(", "),
            );
            let ack = match ack == repositories {
                true => String::new(),
                false => format!(" (ack: {})", ack.join(", ")),
            };
            let pgdata =
                pgdata.as_ref().map_or(String::new(), |pgdata| format!(", pgdata {}", pgdata.display()));
            text += &format!("  cluster {cluster}: {noun} {names}{ack}{pgdata}\n");
        }
        for ConfiguredRepository { repository, url } in &self.repositories {
            text += &format!("  repository {repository}: {url}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examined(text: &str) -> ConfigReport {
        examined_for(text, None)
    }

    fn examined_for(text: &str, cluster: Option<&str>) -> ConfigReport {
        let cluster: Option<ClusterName> = cluster.map(|name| name.parse().unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        walpoint_base::durable::replace(file.path(), text.as_bytes(), 0o600).unwrap();
        let (config, problems) = Config::examine(file.path(), contradictions, unusable).unwrap();
        ConfigReport::of(Path::new("w.toml"), config.as_ref(), problems, cluster.as_ref())
    }

    const GOOD: &str = "[repository.a]\nurl = \"/a\"\n[repository.b]\nurl = \"s3://b\"\n[cluster.x]\nrepositories = [\"a\", \"b\"]\n";

    #[test]
    fn what_a_sound_file_has_is_shown() {
        let report = examined(&format!("{GOOD}ack = [\"b\"]\npgdata = \"/data\"\n"));
        assert_eq!(
            report.text(),
            "w.toml: ok\n  cluster x: repositories a, b (ack: b), pgdata /data\n  repository a: /a\n  repository b: s3://b\n"
        );
        assert!(examined(GOOD).text().contains("  cluster x: repositories a, b\n"));
    }

    #[test]
    fn what_the_daemon_would_refuse_is_a_problem_where_there_is_one() {
        let error = "w.toml: the daemon cannot use this file: ";
        let restores = examined(GOOD);
        assert!(restores.is_usable() && restores.text().starts_with("w.toml: ok\n"), "{}", restores.text());
        assert!(restores.text().contains(&format!("{error}pgdata is missing in [cluster.x]\nDETAIL: ")));
        let empty = examined("");
        assert!(empty.is_usable() && empty.text().contains(&format!("{error}it has no cluster")));
        let daemon = format!("{GOOD}pgdata = \"/x\"\n");
        assert_eq!(examined(&daemon).daemon_error, None);
        let mixed = format!("{daemon}[cluster.y]\nrepositories = [\"a\"]\npush_socket = \"/y\"\n");
        let report = examined(&mixed);
        assert!(!report.is_usable() && report.errors.is_empty());
        assert!(
            report.text().starts_with(&format!("{error}pgdata is missing in [cluster.y]\n")),
            "{}",
            report.text()
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["daemon_error"]["message"],
            "the daemon cannot use this file: pgdata is missing in [cluster.y]"
        );
        assert_eq!(examined_for(&mixed, Some("x")).daemon_error, None);
        assert!(examined_for(&mixed, Some("y")).is_usable(), "a file for restores");
        let wrong = examined(&format!("{GOOD}pgdata = \"x\"\n"));
        assert!(wrong.errors.len() == 1 && wrong.daemon_error.is_none(), "{}", wrong.text());
    }

    #[test]
    fn what_every_other_command_would_refuse_is_refused() {
        for conninfo in ["host='x", "hots=x", "sslmode=maybe"] {
            let text = examined(&format!("{GOOD}conninfo = \"{conninfo}\"\n")).text();
            assert!(text.starts_with("w.toml:7: [cluster.x]: \"conninfo\": "), "{conninfo}: {text}");
        }
        assert!(examined(&format!("{GOOD}conninfo = \"host=db\"\n")).errors.is_empty());
        let twice = GOOD.replace("s3://b", "file:///a");
        assert!(examined(&twice).text().contains("which are one place"), "{}", examined(&twice).text());
        let file = tempfile::NamedTempFile::new().unwrap();
        walpoint_base::durable::replace(file.path(), GOOD.as_bytes(), 0o600).unwrap();
        let config = Config::<StoreSettings>::read(file.path()).unwrap();
        assert!(known_cluster(&config, &"x".parse().unwrap()).is_ok());
        let refused = known_cluster(&config, &"nope".parse().unwrap()).unwrap_err();
        assert!(refused.status == 2 && refused.to_string().contains("no [cluster.nope]"), "{refused}");
    }

    #[test]
    fn a_password_in_conninfo_is_noticed() {
        let mut settings = ClusterSettings::with_repositories(Vec::new());
        for (conninfo, has) in
            [("host=db password=x", true), ("postgresql://u:x@db/p", true), ("host=db", false)]
        {
            settings.conninfo = Some(conninfo.to_owned());
            assert_eq!(has_password(&settings), has, "{conninfo}");
        }
    }

    #[test]
    fn what_only_opening_would_show_is_found_without() {
        let report = examined(&format!(
            "{GOOD}[repository.c]\n[repository.d]\nurl = \"ftp://x/y\"\nkey_file = \"/k\"\npassphrase_file = \"/p\"\nretry_timeout = \"1h\"\n"
        ));
        let text = report.text();
        for expected in [
            "w.toml:7: [repository.c]: \"url\": is required",
            "w.toml:9: [repository.d]: \"url\": ftp://",
            "w.toml:10: [repository.d]: \"key_file\": is not the only setting",
            "w.toml:12: [repository.d]: \"retry_timeout\": must not be longer",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert_eq!(report.errors.len(), 4, "{text}");
    }
}
