//! The configuration of the private server: written from nothing, with the few settings of the original that decide how its data is
//! read and shown.
//!
//! Nothing else of the original is taken, so a setting that no one thought of cannot lead outside either.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walpoint_base::PgMajor;
use walpoint_plan::restore::quote;
use walpoint_repo::backup::{BackupReader, RelativePath, Root, TablePath};

use super::libraries::Preloaded;
use crate::restore::confined::ConfigurationTexts;
use crate::server::LOGIN_TRIGGERS;
use crate::settings;

/// Settings of the original that are taken: they decide how values are read and shown, and where functions are found.
const TAKEN: &[&str] = &[
    "timezone",
    "datestyle",
    "intervalstyle",
    "bytea_output",
    "extra_float_digits",
    "default_text_search_config",
    "search_path",
    "dynamic_library_path",
    "track_commit_timestamp",
];

/// What a scratch instance calls itself, so that it is known as one.
pub(crate) const CLUSTER_NAME: &str = "walpoint scratch";

/// What keeps the server apart from everything else, and makes a copy that is thrown away fast.
const APART: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("port", PORT),
    ("unix_socket_permissions", "0700"),
    ("ssl", "off"),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("synchronous_standby_names", ""),
    ("max_logical_replication_workers", "0"),
    ("hot_standby", "on"),
    ("hot_standby_feedback", "off"),
    ("max_standby_archive_delay", "-1"),
    ("default_transaction_read_only", "on"),
    ("autovacuum", "off"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "off"),
    ("restart_after_crash", "off"),
    ("jit", "off"),
    ("cluster_name", CLUSTER_NAME),
    ("external_pid_file", ""),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] "),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
];

/// The port: it only names the socket, which lies in a directory of its own.
pub(super) const PORT: &str = "5432";

/// Everyone who can reach the socket may connect: its directory is PostgreSQL's user's own.
const HBA: &str = "local all all trust\n";

/// What the configuration is made of.
#[derive(Debug, Clone)]
pub(super) struct ScratchSettings {
    /// The directory of the socket.
    pub(super) socket_directory: PathBuf,
    /// The version that will run.
    pub(super) major: PgMajor,
    /// Libraries that a person wants loaded.
    pub(super) given: Vec<String>,
    /// Where libraries are.
    pub(super) libraries: Vec<PathBuf>,
}

impl ScratchSettings {
    /// The configuration files, and what a person should know of them. `original`: the configuration of the original.
    pub(super) fn texts(&self, original: &str) -> (ConfigurationTexts, Vec<String>) {
        let preloaded = Preloaded::decide(original, &self.given, &self.libraries);
        let mut all: Vec<(String, String)> = Vec::new();
        for name in TAKEN {
            if let Some(value) = settings::value(original, name).filter(|value| !value.is_empty()) {
                all.push(((*name).to_owned(), value.to_owned()));
            }
        }
        all.extend(APART.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        if self.major.get() >= LOGIN_TRIGGERS {
            all.push(("event_triggers".to_owned(), "off".to_owned()));
        }
        let socket = self.socket_directory.to_string_lossy();
        // A list, in which a comma separates and quotes keep together.
        let socket = format!("\"{}\"", socket.replace('"', "\"\""));
        all.push(("unix_socket_directories".to_owned(), socket));
        all.extend(preloaded.settings());
        let mut text =
            "# Written by restore-agent for a scratch instance: nothing of the original reaches outside.\n"
                .to_owned();
        for (name, value) in all {
            text.push_str(&format!("{name} = {}\n", quote(&value)));
        }
        let texts = vec![
            ("postgresql.conf", text),
            ("pg_hba.conf", HBA.to_owned()),
            ("pg_ident.conf", String::new()),
        ];
        (texts, preloaded.notes())
    }
}

/// The configuration of the original as the backup has it, without what its files include: enough to say early what cannot be loaded.
pub(super) async fn in_backup(reader: &BackupReader) -> anyhow::Result<String> {
    let mut text = String::new();
    for path in candidates(reader) {
        if let Some(content) = reader.short_file(&path).await? {
            text.push_str(&String::from_utf8_lossy(&content));
            text.push('\n');
            break;
        }
    }
    if let Some(content) = reader.short_file(&TablePath::data("postgresql.auto.conf")?).await? {
        text.push_str(&String::from_utf8_lossy(&content));
    }
    Ok(text)
}

/// Where `postgresql.conf` may be in a backup: in the data directory, or where Debian has it.
fn candidates(reader: &BackupReader) -> Vec<TablePath> {
    let facts = &reader.manifest().summary.facts;
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let pgdata = path(&facts.pgdata.0);
    let extras: Vec<PathBuf> = facts.extra_paths.iter().map(|extra| path(&extra.0)).collect();
    let mut found: Vec<TablePath> = TablePath::data("postgresql.conf").into_iter().collect();
    found.extend(outside(&pgdata, &extras).into_iter().filter_map(|(n, below)| {
        let path = RelativePath::new(below.as_os_str().as_bytes()).ok()?;
        Some(TablePath { root: Root::Extra(n), path })
    }));
    found
}

/// The same outside the data directory: the number of the path that was backed up, and the place below it.
fn outside(pgdata: &Path, extras: &[PathBuf]) -> Vec<(u16, PathBuf)> {
    // /var/lib/postgresql/17/main belongs to /etc/postgresql/17/main.
    let mut parts = pgdata.iter().rev();
    let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let debian = Path::new("/etc/postgresql").join(version).join(name).join("postgresql.conf");
    let each = (0u16..).zip(extras).flat_map(|(n, extra)| {
        let below = debian.strip_prefix(extra).ok().map(Path::to_owned);
        [below, Some(PathBuf::from("postgresql.conf"))].into_iter().flatten().map(move |below| (n, below))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_original_leads_outside() {
        let original = "listen_addresses = '*'\narchive_command = 'cp %p /archive'\nprimary_conninfo = 'host=primary'\n\
                        primary_slot_name = 'standby1'\nssl = on\ntimezone = 'Europe/Rome'\nshared_preload_libraries = 'pg_cron'\n\
                        krb_server_keyfile = '/x'\nhba_file = '/etc/pg_hba.conf'\nmy.secret = 'x'\nport = 6000\n";
        for major in [13, 17] {
            let settings = ScratchSettings {
                socket_directory: "/s,1/\"x\"".into(),
                major: PgMajor::new(major).unwrap(),
                given: Vec::new(),
                libraries: Vec::new(),
            };
            let (texts, notes) = settings.texts(original);
            let (_, conf) = &texts[0];
            for (name, value) in [
                ("listen_addresses", ""),
                ("archive_command", ""),
                ("archive_mode", "off"),
                ("primary_conninfo", ""),
                ("primary_slot_name", ""),
                ("max_logical_replication_workers", "0"),
                ("ssl", "off"),
                ("shared_preload_libraries", ""),
                ("timezone", "Europe/Rome"),
                ("port", "5432"),
            ] {
                assert_eq!(settings::value(conf, name), Some(value), "{name}: {conf}");
            }
            assert_eq!(settings::value(conf, "event_triggers").is_some(), major >= 17);
            assert!(
                !conf.contains("my.secret") && !conf.contains("hba_file") && !conf.contains("krb"),
                "{conf}"
            );
            assert!(conf.contains("unix_socket_directories = '\"/s,1/\"\"x\"\"\"'"), "{conf}");
            assert!(notes[0].contains("pg_cron"), "{notes:?}");
        }
    }

    #[test]
    fn debians_configuration_is_looked_for_by_the_data_directory() {
        let found = outside(
            Path::new("/var/lib/postgresql/17/main"),
            &["/srv/x".into(), "/etc/postgresql".into(), "/etc/postgresql/17/main".into()],
        );
        let expected = [
            (0, "postgresql.conf"),
            (1, "17/main/postgresql.conf"),
            (1, "postgresql.conf"),
            (2, "postgresql.conf"),
            (2, "postgresql.conf"),
        ];
        assert_eq!(found, expected.map(|(n, path)| (n, PathBuf::from(path))));
    }
}
