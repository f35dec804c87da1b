//! A repository of ours, and what is done with it. The commands are those of `tools.toml`, with options.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use walpoint_tests::cluster::Cluster;

use super::scene::KeepingBed;
use crate::bed::{self, Bed, Seen, Task};
use crate::drive::WorkKind as Load;
use crate::place::StoreKind;
use crate::run::{archive_by, wait_for_archiver};
use crate::tools::Tool;

/// What a repository is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Whether it is encrypted, with a key file.
    pub encrypted: bool,
    /// Whether `expire` keeps nothing but the last backup, and waits for nothing.
    pub keeps_one: bool,
}

/// What commands with `--json` print.
const PRINTED: &str = "{work}/printed.json";

/// A repository, its configuration and directories.
#[derive(Debug)]
pub struct OurRepository {
    bed: Bed,
}

impl OurRepository {
    /// Makes an empty one for a data directory.
    pub fn make(
        scene: &mut KeepingBed<'_>,
        store: StoreKind,
        settings: Settings,
        pgdata: &Path,
        cluster: Option<&Cluster>,
    ) -> Result<OurRepository, String> {
        let tool = with(scene.ours, settings);
        let bed = Bed::make(&tool, store, pgdata, &mut scene.surroundings(cluster))?;
        Ok(OurRepository { bed })
    }

    /// One for a running cluster.
    pub fn of(
        scene: &mut KeepingBed<'_>,
        store: StoreKind,
        settings: Settings,
        cluster: &Cluster,
    ) -> Result<OurRepository, String> {
        OurRepository::make(scene, store, settings, cluster.pgdata(), Some(cluster))
    }

    /// Takes a backup of the running cluster, beside the daemon that archives for it. The first one is a full one; each
    /// further one is incremental.
    pub fn backup(
        &self,
        scene: &mut KeepingBed<'_>,
        cluster: &Cluster,
        what: &str,
        round: u32,
    ) -> Result<Seen, String> {
        let archive = self.bed.with_environment(command(&self.bed.tool().archive)?)?;
        let ready = || {
            archive_by(cluster, &archive);
            cluster.psql("checkpoint");
            Ok(())
        };
        let task = Task {
            load: Load::Once,
            command: command(&self.bed.tool().backup)?,
            daemon: true,
            at: cluster.pgdata(),
            look_ms: KeepingBed::look_ms(round),
        };
        let seen = self.bed.measure(task, &mut scene.surroundings(Some(cluster)), ready);
        wait_for_archiver(cluster);
        archive_by(cluster, "/bin/true");
        let seen = seen?;
        scene.note(&format!("round {round}: {what}"), &seen);
        Ok(seen)
    }

    /// Archives segments of the data set by PostgreSQL's protocol.
    pub fn archive(
        &self,
        scene: &mut KeepingBed<'_>,
        segments: Vec<String>,
        what: &str,
        round: u32,
    ) -> Result<Seen, String> {
        let wal = scene.data.wal.clone();
        crate::drive::clear_archive_status(&wal);
        let archive = command(&self.bed.tool().archive)?.to_owned();
        self.measure(
            scene,
            Load::Archive { segments },
            (&archive, &wal),
            &format!("round {round}: {what}"),
            round,
        )
    }

    /// Restores the newest backup into the target, which is not there, or is repaired with `--delta`.
    pub fn restore(
        &self,
        scene: &mut KeepingBed<'_>,
        delta: bool,
        what: &str,
        round: u32,
    ) -> Result<Seen, String> {
        let target = bed::target(scene.work);
        scene.work.dir("run");
        if !delta {
            scene.put_aside().map_err(|e| format!("putting a restored directory aside: {e}"))?;
        }
        let restore = command(&self.bed.tool().restore)?;
        let restore = format!("{restore}{} --json > {PRINTED}", if delta { " --delta" } else { "" });
        let at = target.parent().expect("a directory").to_owned();
        self.measure(scene, Load::Once, (&restore, &at), &format!("round {round}: {what}"), round)
    }

    /// Runs a command of `archive-agent` that prints JSON.
    pub fn agent(
        &self,
        scene: &mut KeepingBed<'_>,
        arguments: &str,
        what: &str,
        round: u32,
    ) -> Result<Seen, String> {
        let command = format!("{{bin}}/archive-agent {arguments} --quiet --json > {PRINTED}");
        let at = scene.work.dir("run");
        self.measure(scene, Load::Once, (&command, &at), &format!("round {round}: {what}"), round)
    }

    /// Runs a command of a shell, with the placeholders of `tools.toml`.
    pub fn shell(
        &self,
        scene: &mut KeepingBed<'_>,
        command: &str,
        what: &str,
        round: u32,
    ) -> Result<Seen, String> {
        let at = scene.work.dir("run");
        self.measure(scene, Load::Once, (command, &at), &format!("round {round}: {what}"), round)
    }

    /// The directory of a repository that is one.
    pub fn directory(&self) -> Result<PathBuf, String> {
        self.bed.fill("{repo}").map(PathBuf::from)
    }

    fn measure(
        &self,
        scene: &mut KeepingBed<'_>,
        load: Load,
        (command, at): (&str, &Path),
        what: &str,
        round: u32,
    ) -> Result<Seen, String> {
        let daemon = matches!(load, Load::Archive { .. });
        let task = Task { load, command, daemon, at, look_ms: KeepingBed::look_ms(round) };
        let seen = self.bed.measure(task, &mut scene.surroundings(None), || Ok(()))?;
        scene.note(what, &seen);
        Ok(seen)
    }

    /// What the last command with JSON printed.
    pub fn printed(&self) -> Result<Value, String> {
        let path = self.bed.fill(PRINTED)?;
        let text = fs::read(&path).map_err(|e| format!("{path}: {e}"))?;
        serde_json::from_slice(&text).map_err(|e| format!("what was printed: {e}"))
    }

    /// The bytes of all its objects.
    pub fn stored(&self, scene: &mut KeepingBed<'_>) -> u64 {
        self.bed.place().stored(scene.stores)
    }

    /// Removes it.
    pub fn remove(self, scene: &mut KeepingBed<'_>) {
        self.bed.remove(scene.stores);
    }
}

/// A command that `tools.toml` has of ours.
fn command(of: &Option<String>) -> Result<&str, String> {
    of.as_deref().ok_or_else(|| "we have no such command in tools.toml".to_owned())
}

/// Us, with a repository like that.
fn with(ours: &Tool, settings: Settings) -> Tool {
    let mut ours = ours.clone();
    if settings.encrypted {
        for command in ours.setup.iter_mut().filter(|command| command.contains("archive-agent init")) {
            // The key file is made by it, as the configuration names it.
            *command += " --encrypt";
        }
        for values in ours.store.values_mut() {
            if let Some(repository) = values.get_mut("repository") {
                *repository += "\nkey_file = \"{work}/main.key\"\n";
            }
        }
    }
    if settings.keeps_one
        && let Some(file) = ours.files.get_mut("walpoint.toml")
    {
        *file += "\n[cluster.main.retention]\ncount = 1\ngrace = \"0s\"\n";
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools;

    #[test]
    fn what_tools_toml_says_of_us_can_be_varied() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools.toml");
        let all = tools::read(&path).unwrap();
        let ours = all.iter().find(|c| c.is_ours()).unwrap();
        let varied = with(ours, Settings { encrypted: true, keeps_one: true });
        assert!(varied.setup.iter().any(|command| command.ends_with("init --cluster main --encrypt")));
        assert!(varied.store["local"]["repository"].contains("key_file"));
        assert!(varied.files["walpoint.toml"].contains("[cluster.main.retention]"));
        let plain = with(ours, Settings::default());
        assert_eq!((plain.setup, plain.files), (ours.setup.clone(), ours.files.clone()));
    }
}
