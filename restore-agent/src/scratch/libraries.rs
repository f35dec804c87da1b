//! Which of the original's preloaded libraries the private server loads.
//!
//! A preloaded library may start processes of its own: a scheduler that runs the jobs of the original, a client that sends what waits
//! in a queue, a server of its own. So only libraries that are known to start none are loaded, and those that a person names; all others
//! are left out, and named.

use std::path::{Path, PathBuf};

use anyhow::bail;
use walpoint_base::diagnostic::shown;

use crate::settings;

/// The parameter that names them.
pub(super) const PARAMETER: &str = "shared_preload_libraries";

/// Libraries that start no process, listen nowhere and connect to nothing: hooks of the planner, the executor and authentication, custom
/// scans, and caches. [`SCHEDULERS`] are among them once what they start is switched off.
const PASSIVE: &[&str] = &[
    "address_standardizer-3",
    "auth_delay",
    "auto_explain",
    "credcheck",
    "hypopg",
    "passwordcheck",
    "pg_hint_plan",
    "pg_qualstats",
    "pg_show_plans",
    "pg_stat_kcache",
    "pg_stat_statements",
    "pg_store_plans",
    "pg_trgm",
    "pgaudit",
    "pgextwlist",
    "plpgsql",
    "plpgsql_check",
    "postgis-3",
    "sepgsql",
    "set_user",
    "supautils",
    "timescaledb",
];

/// Settings that keep a library that is loaded from starting what it schedules.
const SCHEDULERS: &[(&str, &[(&str, &str)])] = &[(
    "timescaledb",
    &[("timescaledb.max_background_workers", "0"), ("timescaledb.telemetry_level", "off")],
)];

/// Why a library is not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It may start processes.
    MayAct,
    /// This installation does not have it.
    Missing,
}

/// What is loaded, and what is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Preloaded {
    loaded: Vec<String>,
    left_out: Vec<(String, Why)>,
}

impl Preloaded {
    /// Decides by the configuration of the original. `given`: what a person wants loaded, whether it is there or not: the server refuses
    /// what is not.
    pub(super) fn decide(configuration: &str, given: &[String], directories: &[PathBuf]) -> Self {
        let search = Self::search(configuration, directories);
        let mut decided = Self { loaded: given.to_vec(), left_out: Vec::new() };
        for library in names(settings::value(configuration, PARAMETER).unwrap_or_default()) {
            let is_given = given.iter().any(|one| plain(one) == plain(&library));
            if is_given || decided.loaded.contains(&library) {
                continue;
            }
            let why = match PASSIVE.contains(&plain(&library)) {
                false => Some(Why::MayAct),
                true => (!is_there(&library, &search, directories)).then_some(Why::Missing),
            };
            match why {
                Some(why) => decided.left_out.push((library, why)),
                None => decided.loaded.push(library),
            }
        }
        decided
    }

    /// Fails if a library that a person wants loaded is not there.
    pub(super) fn require(
        configuration: &str,
        given: &[String],
        directories: &[PathBuf],
    ) -> anyhow::Result<()> {
        let search = Self::search(configuration, directories);
        match given.iter().find(|library| !is_there(library, &search, directories)) {
            None => Ok(()),
            Some(library) => bail!(
                "--preload {library}: this installation of PostgreSQL does not have the library\nDETAIL: Looked in {}.\nHINT: \
                 Install the extension's package on this machine.",
                search.iter().map(|one| one.display().to_string()).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    fn search(configuration: &str, directories: &[PathBuf]) -> Vec<PathBuf> {
        search(settings::value(configuration, "dynamic_library_path").unwrap_or("$libdir"), directories)
    }

    /// The settings for it.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        // Each in quotes, because a name may hold a comma.
        let quoted: Vec<String> =
            self.loaded.iter().map(|library| format!("\"{}\"", library.replace('"', "\"\""))).collect();
        let mut settings = vec![(PARAMETER.to_owned(), quoted.join(", "))];
        for (library, switches) in SCHEDULERS {
            if self.loaded.iter().any(|one| plain(one) == *library) {
                settings
                    .extend(switches.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            }
        }
        settings
    }

    /// What a person should know of those that are left out, one sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let note = |(library, why): &(String, Why)| {
            let library = shown(library);
            match why {
                Why::MayAct => format!(
                    "\"{library}\" of {PARAMETER} is not loaded, because it may run jobs of the original\nHINT: If checks need it \
                     and it does nothing by itself, add --preload {library}."
                ),
                Why::Missing => format!(
                    "\"{library}\" of {PARAMETER} is not loaded, because this installation of PostgreSQL does not have it\nHINT: \
                     Install the extension's package if checks need it."
                ),
            }
        };
        self.left_out.iter().map(note).collect()
    }
}

/// The names in a list of libraries. Source of the syntax: `SplitDirectoriesString` of PostgreSQL.
fn names(list: &str) -> Vec<String> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = list.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                name.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            c => name.push(c),
        }
    }
    names.push(name);
    names.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// A library without its directory and its suffix.
fn plain(library: &str) -> &str {
    let name = library.rsplit('/').next().unwrap_or(library);
    name.strip_suffix(".so").unwrap_or(name)
}

/// The directories of `dynamic_library_path`.
fn search(path: &str, directories: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for part in path.split(':') {
        match part.strip_prefix("$libdir") {
            Some(rest) => {
                found.extend(directories.iter().map(|libdir| libdir.join(rest.trim_start_matches('/'))));
            }
            None => found.push(PathBuf::from(part)),
        }
    }
    found
}

/// Whether the server would find a library. Source of the rules: `expand_dynamic_library_name` of PostgreSQL.
fn is_there(library: &str, search: &[PathBuf], directories: &[PathBuf]) -> bool {
    let is_file = |path: &Path| path.is_file() || PathBuf::from(format!("{}.so", path.display())).is_file();
    match (library.strip_prefix("$libdir/"), library.contains('/')) {
        (Some(below), _) => directories.iter().any(|libdir| is_file(&libdir.join(below))),
        (None, true) => is_file(Path::new(library)),
        (None, false) => search.iter().any(|directory| is_file(&directory.join(library))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(libraries: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        for library in libraries {
            walpoint_base::durable::create(&dir.path().join(format!("{library}.so")), b"x").unwrap();
        }
        let directories = vec![dir.path().to_owned()];
        (dir, directories)
    }

    #[test]
    fn only_what_is_there_and_starts_nothing_is_loaded() {
        let (_dir, directories) =
            installation(&["pg_stat_statements", "pg_cron", "timescaledb", "pglogical", "unknown"]);
        let configuration = "shared_preload_libraries = 'pg_stat_statements, pg_cron,\"$libdir/timescaledb\", auto_explain, \
                             pglogical, pg_partman_bgw, unknown'\n";
        let decided = Preloaded::decide(configuration, &[], &directories);
        assert_eq!(decided.loaded, ["pg_stat_statements", "$libdir/timescaledb"]);
        let settings = decided.settings();
        assert!(
            settings.contains(&("timescaledb.max_background_workers".into(), "0".into())),
            "{settings:?}"
        );
        assert_eq!(settings[0].1, "\"pg_stat_statements\", \"$libdir/timescaledb\"");
        let notes = decided.notes().join("\n");
        for expected in ["\"pg_cron\"", "\"pglogical\"", "\"pg_partman_bgw\"", "--preload unknown"] {
            assert!(notes.contains(expected), "{expected}: {notes}");
        }
        assert!(
            notes.contains("\"auto_explain\" of shared_preload_libraries is not loaded, because this"),
            "{notes}"
        );
    }

    #[test]
    fn what_a_person_names_is_loaded_and_has_to_be_there() {
        let (_dir, directories) = installation(&["citus"]);
        let configuration = "shared_preload_libraries = 'citus'";
        let given = ["citus".to_owned()];
        let decided = Preloaded::decide(configuration, &given, &directories);
        assert_eq!((decided.loaded.len(), decided.left_out.len()), (1, 0));
        Preloaded::require(configuration, &given, &directories).unwrap();
        let missing = ["citus".to_owned(), "none".to_owned()];
        let error = Preloaded::require("", &missing, &directories).unwrap_err().to_string();
        assert!(error.contains("--preload none"), "{error}");
        // What vanished meanwhile is for the server to refuse, and takes nothing else with it.
        assert_eq!(Preloaded::decide("", &missing, &directories).settings()[0].1, "\"citus\", \"none\"");
        assert_eq!(Preloaded::decide("", &[], &directories).settings()[0].1, "");
    }
}
