//! The configuration file: one TOML file for both agents, with tables `[repository.NAME]` and `[cluster.NAME]`.
//!
//! Unknown keys are errors. What a repository's table holds is the business of the storage crate: it is the type
//! parameter `R` here, so that neither crate depends on the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use walpoint_base::ClusterName;
use walpoint_base::table::FromTable;

use crate::line;
use crate::retention::RetentionSettings;

/// Where the configuration is looked for when neither `--config` nor `$WALPOINT_CONFIG` says.
pub const DEFAULT_PATH: &str = "/etc/walpoint/walpoint.toml";

/// Where the daemon's sockets are unless the configuration says otherwise.
pub const SOCKET_DIRECTORY: &str = "/run/walpoint";

/// Why the configuration cannot be used. The text names file, line and key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path:?} cannot be read: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {path:?} is wrong:\n{what}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// Line, key and reason.
        what: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(bound(deserialize = "R: DeserializeOwned"))]
pub struct Config<R> {
    /// The tables `[repository.NAME]`.
    #[serde(default = "BTreeMap::new")]
    pub repository: BTreeMap<String, R>,
    /// The tables `[cluster.NAME]`.
    #[serde(default, deserialize_with = "clusters")]
    pub cluster: BTreeMap<ClusterName, ClusterSettings>,
    /// The table `[daemon]`.
    #[serde(default)]
    pub daemon: DaemonSettings,
}

/// The table `[daemon]`: what concerns the process and not one cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonSettings {
    /// How long a drain may take after SIGTERM.
    pub drain_timeout: SignedDuration,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self { drain_timeout: SignedDuration::from_secs(30) }
    }
}

/// The table `[cluster.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// Names of `[repository.NAME]` tables, in the order in which they are read.
    pub repositories: Vec<String>,
    /// Which of them have to hold a segment before it is acknowledged; all of them if unset.
    #[serde(default)]
    pub ack: Option<Vec<String>>,
    /// PostgreSQL's data directory.
    #[serde(default)]
    pub pgdata: Option<PathBuf>,
    /// How to reach PostgreSQL: a libpq connection string or URI; libpq's defaults if unset.
    #[serde(default)]
    pub conninfo: Option<String>,
    /// The socket of `archive-push`; `/run/walpoint/<cluster>.push` if unset.
    #[serde(default)]
    pub push_socket: Option<PathBuf>,
    /// The socket of `restore-fetch`; `pg_dynshmem/walpoint-fetch` in the data directory if unset.
    #[serde(default)]
    pub fetch_socket: Option<PathBuf>,
    /// Files and directories outside PGDATA that a backup takes along, such as Debian's configuration.
    #[serde(default)]
    pub extra_paths: Vec<PathBuf>,
    /// Segments uploaded, or fetched, at the same time.
    #[serde(default = "defaults::transfers")]
    pub transfers: usize,
    /// Segments uploaded before PostgreSQL asks; 0 turns the look-ahead off.
    #[serde(default = "defaults::look_ahead")]
    pub look_ahead: usize,
    /// Readers of a backup and writers of a restore; one for each core if unset.
    #[serde(default)]
    pub workers: Option<usize>,
    /// zstd level of backups, 1 to 19, and of WAL up to 6.
    #[serde(default = "defaults::compression_level")]
    pub compression_level: i32,
    /// How long one `archive-push` may try before it fails and PostgreSQL asks again.
    #[serde(default = "defaults::push_timeout")]
    pub push_timeout: SignedDuration,
    /// More WAL than this does not wait for being archived: the oldest files are given up, and PostgreSQL removes them. Nothing is
    /// given up if unset.
    #[serde(default)]
    pub queue_max: Option<ByteSize>,
    /// How long archive recovery tries to read from a store that fails, before it stops with 255. What waiting cannot change, such as
    /// another server's WAL, stops it at once.
    #[serde(default = "defaults::fetch_budget")]
    pub fetch_budget: SignedDuration,
    /// What a standby is told about a `.history` file while no repository answers.
    #[serde(default)]
    pub standby_history_outage: HistoryOutage,
    /// Hand over segments that were archived though damaged; PostgreSQL ends recovery in them. A sound copy in another repository is
    /// preferred, so all of them have to answer, except those in `fetch_without`.
    #[serde(default)]
    pub fetch_damaged: bool,
    /// Names of acknowledging repositories that are gone for good: recovery may end without their word, and what only they held
    /// is lost.
    #[serde(default)]
    pub fetch_without: Vec<String>,
    /// MiB of WAL that are fetched before PostgreSQL asks; 0 turns the prefetch off.
    #[serde(default = "defaults::prefetch_mib")]
    pub prefetch_mib: u32,
    /// A prefetcher that nobody has asked anything for this long ends.
    #[serde(default = "defaults::prefetch_idle")]
    pub prefetch_idle: SignedDuration,
    /// Where prefetched WAL waits; `walpoint-spool` in `pg_wal` if unset, where handing over is a rename.
    #[serde(default)]
    pub spool: Option<PathBuf>,
    /// How long a backup waits for the WAL it needs to arrive in the repository.
    #[serde(default = "defaults::backup_wal_timeout")]
    pub backup_wal_timeout: SignedDuration,
    /// The table `[cluster.NAME.retention]`: which backups `expire` keeps; without it all of them.
    #[serde(default)]
    pub retention: Option<RetentionSettings>,
}

/// What `restore-fetch` answers on a standby that asks for a `.history` file while no repository can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryOutage {
    /// Exit 1: the standby goes on and asks again later.
    #[default]
    Missing,
    /// Exit 255: the standby stops, so that it can never pick a timeline id that is taken.
    Stop,
}

mod defaults {
    use jiff::SignedDuration;

    pub(super) fn transfers() -> usize {
        4
    }

    pub(super) fn look_ahead() -> usize {
        8
    }

    pub(super) fn compression_level() -> i32 {
        1
    }

    pub(super) fn push_timeout() -> SignedDuration {
        SignedDuration::from_secs(60)
    }

    pub(super) fn fetch_budget() -> SignedDuration {
        SignedDuration::from_mins(5)
    }

    pub(super) fn prefetch_mib() -> u32 {
        256
    }

    pub(super) fn prefetch_idle() -> SignedDuration {
        SignedDuration::from_mins(1)
    }

    pub(super) fn backup_wal_timeout() -> SignedDuration {
        SignedDuration::from_hours(1)
    }
}

impl ClusterSettings {
    /// Settings for a cluster that no file describes: its repositories, and defaults.
    pub fn with_repositories(repositories: Vec<String>) -> Self {
        Self {
            repositories,
            ack: None,
            pgdata: None,
            conninfo: None,
            push_socket: None,
            fetch_socket: None,
            extra_paths: Vec::new(),
            transfers: defaults::transfers(),
            look_ahead: defaults::look_ahead(),
            workers: None,
            compression_level: defaults::compression_level(),
            push_timeout: defaults::push_timeout(),
            queue_max: None,
            fetch_budget: defaults::fetch_budget(),
            standby_history_outage: HistoryOutage::default(),
            fetch_damaged: false,
            fetch_without: Vec::new(),
            prefetch_mib: defaults::prefetch_mib(),
            prefetch_idle: defaults::prefetch_idle(),
            spool: None,
            backup_wal_timeout: defaults::backup_wal_timeout(),
            retention: None,
        }
    }

    /// The names of the repositories that have to acknowledge.
    pub fn ack_set(&self) -> &[String] {
        self.ack.as_deref().unwrap_or(&self.repositories)
    }

    /// The socket of `archive-push`.
    pub fn push_socket(&self, cluster: &ClusterName) -> PathBuf {
        self.push_socket
            .clone()
            .unwrap_or_else(|| Path::new(SOCKET_DIRECTORY).join(format!("{cluster}.push")))
    }

    /// Workers for what is bound by the processor.
    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.workers.unwrap_or_else(cores).max(1)
    }
}

/// A configured span of time; spans below zero count as none.
pub fn duration(span: SignedDuration) -> Duration {
    Duration::try_from(span).unwrap_or_default()
}

impl<R: FromTable<Table: DeserializeOwned>> Config<R> {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|what| ConfigError::Content { path: path.to_owned(), what })
    }

    /// Reads and checks the text of a file.
    fn parse(text: &str) -> Result<Self, String> {
        let Config { repository: tables, cluster, daemon } =
            toml::from_str::<Config<R::Table>>(text).map_err(|e| e.to_string())?;
        let mut repository = BTreeMap::new();
        for (name, table) in tables {
            let settings = R::from_table(table)
                .map_err(|wrong| line::shown(text, &["repository", name.as_str()], &wrong))?;
            repository.insert(name, settings);
        }
        let config = Self { repository, cluster, daemon };
        for (name, cluster) in &config.cluster {
            config.check(name, cluster).map_err(|what| format!("[cluster.{name}] {what}"))?;
        }
        Ok(config)
    }

    fn check(&self, name: &ClusterName, cluster: &ClusterSettings) -> Result<(), String> {
        if cluster.repositories.is_empty() {
            return Err("repositories is empty: name at least one [repository.NAME]".to_owned());
        }
        if let Some(unknown) = cluster.repositories.iter().find(|r| !self.repository.contains_key(*r)) {
            let known = self.repository.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "repositories names \"{unknown}\", but there is no [repository.{unknown}] (known: {known})"
            ));
        }
        if let Some(stray) = cluster.ack_set().iter().find(|r| !cluster.repositories.contains(r)) {
            return Err(format!("ack names \"{stray}\", which is not in repositories"));
        }
        if cluster.ack_set().is_empty() {
            return Err(
                "ack is empty: nothing would have to be stored before a segment is acknowledged".to_owned()
            );
        }
        if !(1..=19).contains(&cluster.compression_level) {
            return Err("compression_level must be 1 to 19".to_owned());
        }
        if cluster.transfers == 0 || cluster.workers == Some(0) {
            return Err("transfers and workers must be at least 1".to_owned());
        }
        if let Some(max) = cluster.queue_max.filter(|max| max.as_u64() < 1 << 20) {
            return Err(format!(
                "queue_max is {} bytes, less than the smallest segment; is the unit missing, as in \"50GiB\"?",
                max.as_u64()
            ));
        }
        if cluster.pgdata.as_ref().is_some_and(|p| !p.is_absolute()) {
            return Err("pgdata must be an absolute path".to_owned());
        }
        if cluster.spool.as_ref().is_some_and(|p| !p.is_absolute()) {
            return Err("spool must be an absolute path".to_owned());
        }
        cluster.retention.as_ref().map_or(Ok(()), RetentionSettings::check)?;
        let same_socket = |(other, c): (&ClusterName, &ClusterSettings)| {
            other != name && c.push_socket(other) == cluster.push_socket(name)
        };
        if self.cluster.iter().any(same_socket) {
            return Err("push_socket is shared with another cluster; each needs its own".to_owned());
        }
        Ok(())
    }
}

/// Reads the clusters with an error that says which name is wrong.
fn clusters<'de, D>(deserializer: D) -> Result<BTreeMap<ClusterName, ClusterSettings>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let plain = BTreeMap::<String, ClusterSettings>::deserialize(deserializer)?;
    let parsed = plain.into_iter().map(|(name, settings)| Ok((name.parse()?, settings)));
    parsed.collect::<Result<_, walpoint_base::ParseError>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use walpoint_base::table::WrongKey;

    use super::*;

    #[derive(Debug, Clone, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Store {
        url: String,
        #[serde(default)]
        sse: Option<String>,
    }

    impl FromTable for Store {
        type Table = Self;

        fn from_table(table: Self) -> Result<Self, WrongKey> {
            match &table.sse {
                Some(_) => Err(WrongKey {
                    key: "sse",
                    what: "\"sse\" is wrong".to_owned(),
                    hint: "Remove it.".to_owned(),
                }),
                None => Ok(table),
            }
        }
    }

    fn parse(text: &str) -> Result<Config<Store>, String> {
        Config::parse(text)
    }

    const GOOD: &str =
        "[repository.main]\nurl = \"file:///backup\"\n[cluster.prod]\nrepositories = [\"main\"]\n";

    #[test]
    fn a_minimal_file_has_defaults() {
        let config = parse(GOOD).unwrap();
        let (name, cluster) = config.cluster.first_key_value().unwrap();
        assert_eq!(cluster.push_socket(name), Path::new("/run/walpoint/prod.push"));
        assert_eq!(cluster.ack_set(), ["main"]);
        assert_eq!(config.repository["main"].url, "file:///backup");
        let budget = parse(&format!("{GOOD}fetch_budget = \"90s\"\n")).unwrap();
        assert_eq!(duration(budget.cluster.values().next().unwrap().fetch_budget), Duration::from_secs(90));
    }

    #[test]
    fn a_typo_is_told_with_line_and_key() {
        let error = parse(&format!("{GOOD}look_ahed = 3\n")).unwrap_err();
        assert!(error.contains("line 5") && error.contains("look_ahed"), "{error}");
        let error = parse("[repository.main]\nurl = \"x\"\nregoin = \"y\"\n").unwrap_err();
        assert!(error.contains("regoin") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn a_key_that_does_not_go_with_others_is_shown_in_its_line() {
        let twice = "[repository.far]\nurl = \"s3://far\"\nsse = \"AES256\"\n";
        let error = parse(&format!("{GOOD}{twice}")).unwrap_err();
        let line = "error at line 7, column 1\n  |\n7 | sse = \"AES256\"\n  | ^^^\n";
        assert_eq!(error, format!("{line}\"sse\" is wrong\nHINT: Remove it."));
    }

    #[test]
    fn contradictions_are_refused() {
        for (extra, told) in [
            ("ack = [\"other\"]", "not in repositories"),
            ("ack = []", "ack is empty"),
            ("compression_level = 0", "1 to 19"),
            ("transfers = 0", "at least 1"),
            ("queue_max = 50", "is the unit missing"),
            ("pgdata = \"data\"", "absolute"),
            ("spool = \"spool\"", "absolute"),
            ("[cluster.Prod]\nrepositories = [\"main\"]", "cluster name"),
            ("[cluster.b]\nrepositories = [\"gone\"]", "no [repository.gone]"),
            ("[cluster.b]\nrepositories = []", "at least one"),
            ("push_socket = \"/s\"\n[cluster.b]\nrepositories = [\"main\"]\npush_socket = \"/s\"", "shared"),
        ] {
            let error = parse(&format!("{GOOD}{extra}\n")).unwrap_err();
            assert!(error.contains(told), "{extra}: {error}");
        }
    }
}
