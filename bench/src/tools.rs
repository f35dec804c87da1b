//! Who takes part: `tools.toml`. Unknown keys are errors.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::template::Values;

/// A tool with its settings. Commands are run by `sh -c`; `%p` and `%f` are replaced as PostgreSQL does.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// How it is called in the results.
    pub name: String,
    /// What it is an instance of: the best of each family counts. `walpoint` is ours.
    #[serde(default)]
    pub family: String,
    /// Everything that this one does not say itself is as with that one, which stands before it.
    #[serde(default)]
    pub like: Option<String>,
    /// Files without which it cannot take part.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Prints its version.
    #[serde(default)]
    pub version: Option<String>,
    /// What the settings are, for people.
    #[serde(default)]
    pub settings: String,
    /// The rows in which it takes part; all for which it has store and command if empty.
    #[serde(default)]
    pub rows: Vec<String>,
    /// At most so many segments: for what needs a second for each.
    #[serde(default)]
    pub segments: Option<usize>,
    /// The kinds of stores that it knows, with further placeholders for each.
    #[serde(default)]
    pub store: BTreeMap<String, Values>,
    /// Further placeholders.
    #[serde(default)]
    pub values: Values,
    /// The environment of all its commands.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Files in `{work}` that its commands need, by name.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Run in turn on an empty store.
    #[serde(default)]
    pub setup: Vec<String>,
    /// Runs beside archiving and backups until it is stopped by SIGTERM.
    #[serde(default)]
    pub daemon: Option<String>,
    /// Succeeds when the daemon is ready.
    #[serde(default)]
    pub ready: Option<String>,
    /// `archive_command`.
    #[serde(default)]
    pub archive: Option<String>,
    /// `restore_command`.
    #[serde(default)]
    pub fetch: Option<String>,
    /// Takes a full backup of the running server.
    #[serde(default)]
    pub backup: Option<String>,
    /// Restores the newest backup into `{target}`, which is not there, and makes it durable.
    #[serde(default)]
    pub restore: Option<String>,
    /// Plans a restore to `{moment}`.
    #[serde(default)]
    pub plan: Option<String>,
}

/// The family that is ours.
pub const OURS: &str = "walpoint";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tool: Vec<Tool>,
}

impl Tool {
    /// Whether it is ours.
    pub fn is_ours(&self) -> bool {
        self.family == OURS
    }

    /// Takes over from `other` what this one leaves open.
    fn complete(&mut self, other: &Tool) {
        fn option<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
            if own.is_none() {
                own.clone_from(other);
            }
        }
        fn list<T: Clone>(own: &mut Vec<T>, other: &[T]) {
            if own.is_empty() {
                *own = other.to_vec();
            }
        }
        fn map<V: Clone>(own: &mut BTreeMap<String, V>, other: &BTreeMap<String, V>) {
            for (name, value) in other {
                own.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        if self.family.is_empty() {
            self.family.clone_from(&other.family);
        }
        if self.settings.is_empty() {
            self.settings.clone_from(&other.settings);
        }
        list(&mut self.needs, &other.needs);
        list(&mut self.rows, &other.rows);
        list(&mut self.setup, &other.setup);
        option(&mut self.version, &other.version);
        option(&mut self.segments, &other.segments);
        option(&mut self.daemon, &other.daemon);
        option(&mut self.ready, &other.ready);
        option(&mut self.archive, &other.archive);
        option(&mut self.fetch, &other.fetch);
        option(&mut self.backup, &other.backup);
        option(&mut self.restore, &other.restore);
        option(&mut self.plan, &other.plan);
        map(&mut self.store, &other.store);
        map(&mut self.values, &other.values);
        map(&mut self.env, &other.env);
        map(&mut self.files, &other.files);
    }
}

/// Reads the file; an error says what is wrong in it.
pub fn read(path: &Path) -> Result<Vec<Tool>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    parse(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Reads the text of such a file.
pub fn parse(text: &str) -> Result<Vec<Tool>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut known: Vec<Tool> = Vec::new();
    for mut tool in file.tool {
        if known.iter().any(|other| other.name == tool.name) {
            return Err(format!("two tools are called {}", tool.name));
        }
        if let Some(like) = &tool.like {
            let other = known.iter().find(|other| other.name == *like);
            let other =
                other.ok_or_else(|| format!("{} is like {like}, which does not stand before", tool.name))?;
            tool.complete(&other.clone());
        }
        if tool.family.is_empty() {
            tool.family.clone_from(&tool.name);
        }
        known.push(tool);
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows;

    #[test]
    fn the_file_in_the_tree_is_right() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools.toml");
        let all = read(&path).unwrap();
        assert!(all.iter().any(Tool::is_ours));
        for tool in &all {
            for row in &tool.rows {
                assert!(rows::find(row).is_some(), "{}: no row {row}", tool.name);
            }
        }
    }

    #[test]
    fn one_is_like_another_but_for_what_it_says() {
        let text = r#"
            [[tool]]
            name = "a"
            archive = "a %p"
            values = { jobs = "2", level = "1" }
            [[tool]]
            name = "b"
            like = "a"
            values = { jobs = "4" }
        "#;
        let all = parse(text).unwrap();
        assert_eq!((all[1].archive.as_deref(), all[1].family.as_str()), (Some("a %p"), "a"));
        assert_eq!((all[1].values["jobs"].as_str(), all[1].values["level"].as_str()), ("4", "1"));
    }

    #[test]
    fn mistakes_are_told() {
        assert!(parse("[[tool]]\nname = \"a\"\nachive = \"x\"").unwrap_err().contains("achive"));
        assert!(parse("[[tool]]\nname = \"a\"\nlike = \"b\"").unwrap_err().contains("does not stand before"));
        assert!(parse("[[tool]]\nname = \"a\"\n[[tool]]\nname = \"a\"").unwrap_err().contains("two"));
    }
}
