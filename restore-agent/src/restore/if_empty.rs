//! `--if-empty`: a restore that has nothing to do where a cluster is present, as for an init container, which runs before every start
//! of the server and not only before the first one.
//!
//! The repository is not asked: a server that was only restarted has to come up also while the store is away.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::SystemId;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;

use super::directory::Contents;
use super::existing::Existing;
use super::report::RestoreDocument;
use super::target_state;

/// A cluster that was found in the place of a restore.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Present")]
pub(super) struct PresentCluster {
    /// The outcome.
    result: PresentResult,
    /// The data directory.
    pgdata: String,
    /// The cluster's system identifier.
    system_identifier: SystemId,
}

/// The outcome of a restore that was not needed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum PresentResult {
    /// A cluster is present, and nothing was changed.
    Present,
}

/// The cluster in a directory, if it is complete: neither an empty directory, nor what an interrupted restore left, nor a directory
/// whose `pg_control` is missing or damaged, which a restore without the option refuses.
pub(super) fn present(pgdata: &Path) -> anyhow::Result<Option<PresentCluster>> {
    if !matches!(target_state::contents(pgdata)?, Contents::Occupied(_)) {
        return Ok(None);
    }
    let system_id = Existing::look(pgdata)?.and_then(|existing| existing.system_id);
    Ok(system_id.map(|system_identifier| PresentCluster {
        result: PresentResult::Present,
        pgdata: pgdata.display().to_string(),
        system_identifier,
    }))
}

/// Says that nothing was restored.
pub(super) fn print(common: &CommonArgs, found: &PresentCluster) -> Result<(), Failure> {
    if common.json {
        return walpoint_runtime::output::json(&RestoreDocument::Present(found));
    }
    walpoint_runtime::output::text(&format!(
        "nothing to restore: {} holds a cluster (system identifier {})\n",
        found.pgdata, found.system_identifier
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a restore would find in a directory with these files.
    fn found(files: &[(&str, &[u8])]) -> Option<PresentCluster> {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            walpoint_base::durable::replace(&path, content, 0o600).unwrap();
        }
        present(directory.path()).unwrap()
    }

    #[test]
    fn only_a_cluster_with_its_pg_control_is_present() {
        let version = ("PG_VERSION", &b"17\n"[..]);
        for (what, files) in [
            ("nothing", &[][..]),
            ("a fresh filesystem", &[("lost+found/x", &b""[..])]),
            ("other files", &[("notes.txt", &b"x"[..])]),
            ("no pg_control", &[version]),
            ("a damaged pg_control", &[version, ("global/pg_control", &[1; 8192])]),
        ] {
            assert!(found(files).is_none(), "{what}");
        }
    }
}
