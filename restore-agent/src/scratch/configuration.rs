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
    ("cluster_name", "walpoint scratch"),
    ("external_pid_file", ""),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] "),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
];

/// The first version in which triggers that fire at a login exist, and the parameter that switches them off.
const LOGIN_TRIGGERS: u8 = 17;

/// The port: it only names the socket, which lies in a directory of its own.
pub(super) const PORT: &str = "5432";

/// Everyone who can reach the socket may connect: its directory is PostgreSQL's user's own.
const HBA: &str = "local all all trust\n";

/// What a session asks for, with the first version that knows it.
const SESSION: &[(u8, &str, &str)] = &[
    (0, "default_transaction_read_only", "on"),
    // While recovery is paused, no transaction can be serializable.
    (0, "default_transaction_isolation", "read committed"),
    (0, "default_transaction_deferrable", "off"),
    (0, "session_preload_libraries", ""),
    (0, "local_preload_libraries", ""),
    // What limits sessions in production would end a long query of a copy that no other session uses.
    (0, "statement_timeout", "0"),
    (0, "lock_timeout", "0"),
    (0, "idle_in_transaction_session_timeout", "0"),
    (14, "idle_session_timeout", "0"),
    (17, "transaction_timeout", "0"),
    (LOGIN_TRIGGERS, "event_triggers", "off"),
];

/// What a session asks for, over what the original has set for its databases and roles (`ALTER ROLE … SET`). Only a superuser may ask for
/// some of it. `role`: whose rights the session takes then.
pub(super) fn session_options(major: PgMajor, role: Option<&str>) -> String {
    let known = SESSION.iter().filter(|(since, ..)| major.get() >= *since);
    let asked = known.map(|(_, name, value)| (*name, *value)).chain([("role", role.unwrap_or("none"))]);
    let options: Vec<String> = asked.map(|(name, value)| format!("-c {name}={}", escaped(value))).collect();
    options.join(" ")
}

/// A value in the options of a session, where spaces separate. Source of the syntax: `pg_split_opts` of PostgreSQL.
fn escaped(value: &str) -> String {
    let escape = |c: char| (c.is_ascii_whitespace() || c == '\u{b}' || c == '\\').then_some('\\');
    value.chars().flat_map(|c| escape(c).into_iter().chain([c])).collect()
}

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
    fn a_role_is_one_word_of_the_options() {
        let major = PgMajor::new(17).unwrap();
        assert!(session_options(major, None).ends_with("-c role=none"));
        let options = session_options(major, Some(r"a b\c -c d"));
        assert!(options.ends_with(r"-c event_triggers=off -c role=a\ b\\c\ -c\ d"), "{options}");
    }

    #[test]
    fn a_session_asks_for_what_its_version_knows() {
        let [old, new] = [13, 17].map(|major| session_options(PgMajor::new(major).unwrap(), None));
        for options in [&old, &new] {
            assert!(options.contains(r"-c default_transaction_isolation=read\ committed "), "{options}");
            assert!(options.contains("-c statement_timeout=0 "), "{options}");
        }
        let newer = ["event_triggers", "transaction_timeout", "idle_session_timeout"];
        assert_eq!(newer.map(|name| old.contains(&format!("-c {name}="))), [false; 3]);
        assert_eq!(newer.map(|name| new.contains(&format!("-c {name}="))), [true; 3]);
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
