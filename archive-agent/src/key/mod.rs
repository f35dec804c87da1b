//! `archive-agent key`: what opens an encrypted repository.
//!
//! | module | owns |
//! |---|---|
//! | [`args`] | the options that name a secret, and new key files |
//! | [`list`] | what slots there are, and which open |
//! | [`add`], [`rotate`] | making slots |
//! | [`remove`] | removing one, never the last by accident |
//! | [`recorded`] | what is put on record as evidence |
//!
//! No data is read or written. Each command does one thing to one slot and can be run again; a crash while two things are done
//! (`rotate`) leaves both the old and the new slot.

mod add;
pub(crate) mod args;
mod list;
mod recorded;
mod remove;
mod rotate;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_repo::Repository;
use walpoint_runtime::args::{CommonArgs, Selection, line};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, output};
use walpoint_storage::keys::{KeySlots, KeySource};
use walpoint_storage::store::StoreSettings;

use self::args::SecretArgs;
use crate::selection::as_owner;

const LIST: &[(&str, &str)] = &[("List the slots of a repository", "archive-agent key list --repo far")];

const ADD: &[(&str, &str)] = &[(
    "Add a key that is kept elsewhere",
    "archive-agent key add --key-file /media/safe/walpoint.key \\\n--comment \"safe, first floor\"",
)];

const ROTATE: &[(&str, &str)] = &[(
    "Replace the configured key with a new one",
    "archive-agent key rotate --key-file /etc/walpoint/2027.key",
)];

const REMOVE: &[(&str, &str)] = &[
    ("Remove slot 2, if the configured secret opens another one", "archive-agent key remove 2"),
    (
        "Remove the slot that the configured secret opens, if another one works",
        "archive-agent key remove 1 --passphrase-file /media/safe/passphrase",
    ),
];

/// What `key` can do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KeyCommand {
    /// List the key slots, and which of them the configured secret opens.
    #[command(after_long_help = help::examples(LIST))]
    List,
    /// Add a slot for another secret.
    #[command(after_long_help = help::examples(ADD))]
    Add(New),
    /// Replace the slot that the configured secret opens with one for a new secret.
    ///
    /// Stored data does not change.
    #[command(after_long_help = help::examples(ROTATE))]
    Rotate(New),
    /// Remove a slot, after proving that another one opens the repository.
    ///
    /// The configured secret, or the one given here, must open the other slot.
    Remove(Remove),
}

/// A slot that is to be made.
#[derive(Debug, Clone, Args)]
pub(crate) struct New {
    #[command(flatten)]
    secret: SecretArgs,
    /// Store this note with the slot, such as where its secret is kept. The note itself is not secret.
    #[arg(long, value_name = "TEXT", value_parser = line, default_value = "", hide_default_value = true)]
    comment: String,
}

/// A slot that is to go.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(REMOVE))]
pub(crate) struct Remove {
    /// Remove the slot of this number, as key list shows it.
    slot: u32,
    #[command(flatten)]
    secret: SecretArgs,
    /// Remove it even if no other slot is proven to open the repository. If none does, nothing in the repository can ever be
    /// restored. Asks you to type a confirmation.
    #[arg(long, help_heading = help::OVERRIDES)]
    even_if_last: bool,
}

/// What `archive-agent key add`, `key rotate` and `key remove` print with `--json`.
#[derive(Debug, Serialize, JsonSchema)]
struct KeyDocument {
    /// The repository's name in the configuration.
    repository: String,
    /// The slot that was added. Absent for `key remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    added_slot: Option<u32>,
    /// Where the secret is that opens the added slot. Absent for `key remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_source: Option<String>,
    /// Lines for the repository's table in the configuration that name the new secret. For `key remove`: the one given, if needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration: Option<String>,
    /// The slot that was removed. Absent for `key add`.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_slot: Option<u32>,
    /// A remaining slot that was proven to open.
    #[serde(skip_serializing_if = "Option::is_none")]
    proven_slot: Option<u32>,
}

walpoint_runtime::document!(KeyDocument, "archive-agent key");

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, command: &KeyCommand) -> Result<(), Failure> {
    if !matches!(command, KeyCommand::List) {
        as_owner(&common.select::<StoreSettings>()?).await?;
    }
    match command {
        KeyCommand::List => list::run(common).await,
        KeyCommand::Add(new) => add::run(common, new).await,
        KeyCommand::Rotate(new) => rotate::run(common, new).await,
        KeyCommand::Remove(remove) => remove::run(common, remove).await,
    }
}

/// What follows from a key slot that cannot be read.
pub(crate) const LOST_SLOT: &str = "The secret that this slot was made for opens nothing: without another secret, nothing can be \
                                    restored.";

/// What to do about it, while another slot opens the repository.
pub(crate) fn replace_slot(number: u32) -> String {
    format!(
        "Add a slot for the same secret (archive-agent key add), then remove the damaged one (archive-agent key remove {number}). If a \
         newer Walpoint added the slot, use that version instead."
    )
}

/// The repository that is meant: each has slots of its own.
fn the_repository(common: &CommonArgs) -> Result<(String, StoreSettings), Failure> {
    let Selection { cluster, mut repositories, .. } = common.select::<StoreSettings>()?;
    if repositories.len() > 1 {
        let known = repositories.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(anyhow!(
            "cluster {cluster} has several repositories, each with slots of its own\nDETAIL: It has: {known}.\nHINT: Choose \
             one with --repo."
        )));
    }
    repositories.pop().ok_or_else(|| Failure::usage(anyhow!("cluster {cluster} has no repository")))
}

/// A repository that the configured secret opened.
struct Open {
    name: String,
    repository: Repository,
    slots: KeySlots,
    /// What opened it.
    source: KeySource,
}

impl Open {
    async fn of(common: &CommonArgs) -> Result<Self, Failure> {
        let (name, settings) = the_repository(common)?;
        let repository = Repository::open(&name, &settings).await?;
        match repository.opened_by() {
            Some((source, _)) => {
                let (source, slots) = (source.clone(), repository.key_slots());
                Ok(Self { name, repository, slots, source })
            }
            None => Err(not_encrypted(&name)),
        }
    }
}

fn not_encrypted(name: &str) -> Failure {
    anyhow!("repository {name} is not encrypted and has no key slots\nDETAIL: Encryption is chosen when a repository is \
             created.").into()
}

/// Prints what was done.
fn tell(common: &CommonArgs, changed: &KeyDocument) -> Result<(), Failure> {
    if common.json {
        return output::json(changed);
    }
    let mut text = String::new();
    if let (Some(slot), Some(with)) = (changed.added_slot, &changed.secret_source) {
        text += &format!("repository {}: slot {slot} added; it opens with the {with}\n", changed.repository);
        text +=
            "Keep what opens it in a place that survives the loss of this machine and of the repository.\n";
    }
    if let Some(slot) = changed.removed_slot {
        text += &format!("repository {}: slot {slot} removed", changed.repository);
        text +=
            &changed.proven_slot.map_or(String::new(), |left| format!("; slot {left} was proven to open"));
        text += "\n";
    }
    if let Some(settings) = changed.configuration.as_ref().filter(|_| changed.removed_slot.is_some()) {
        text += &format!(
            "\nOn every machine that uses it, replace the settings of the old secret in \
             [repository.{}]:\n\n{settings}\n\
             Then restart the daemons: until then, they use the old secret.\n",
            changed.repository
        );
    }
    output::text(&text)
}
