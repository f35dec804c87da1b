//! `key list`: what slots there are, and which the configured secret opens. Works without a key.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::output;
use walpoint_storage::keys::{KeySlots, KeySource, ListedSlot, SlotKind};

/// What `archive-agent key list --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct KeySlotsDocument<'a> {
    /// The repository's name in the configuration.
    repository: &'a str,
    /// The repository's id.
    repository_id: String,
    /// Where the configured secret is. Absent if none is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_source: Option<String>,
    /// The key slots.
    slots: Vec<KeySlot>,
}

walpoint_runtime::document!(KeySlotsDocument<'_>, "archive-agent key list");

/// A key slot.
#[derive(Debug, Serialize, JsonSchema)]
struct KeySlot {
    /// Its number.
    slot: u32,
    /// What opens it. Absent if it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<SecretKind>,
    /// When it was created. Absent if it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    creation_time: Option<jiff::Timestamp>,
    /// The note that was given to it. Absent if it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    /// Whether the configured secret opens it. Absent if that could not be tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<bool>,
    /// Why it cannot be read or tried. Absent if it can.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    error: Option<String>,
}

/// What opens a key slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum SecretKind {
    /// A key.
    Key,
    /// A passphrase.
    Passphrase,
    /// A command that unwraps the key.
    Command,
}

/// Runs the command.
pub(super) async fn run(common: &CommonArgs) -> Result<(), Failure> {
    let (name, settings) = super::the_repository(common)?;
    let slots = KeySlots::at(&settings).await?.ok_or_else(|| super::not_encrypted(&name))?;
    let source = KeySource::configured(&settings.encryption)?;
    let mut states = Vec::new();
    for listed in slots.list().await? {
        states.push(state(&slots, listed, source.as_ref()).await);
    }
    let shown = KeySlotsDocument {
        repository: &name,
        repository_id: slots.repository().to_string(),
        secret_source: source.as_ref().map(ToString::to_string),
        slots: states,
    };
    if common.json { output::json(&shown) } else { output::text(&shown.text()) }
}

async fn state(slots: &KeySlots, listed: ListedSlot, source: Option<&KeySource>) -> KeySlot {
    let number = listed.number;
    let mut state =
        KeySlot { slot: number, kind: None, creation_time: None, comment: None, opens: None, error: None };
    match listed.slot {
        Err(error) => state.error = Some(error.to_string()),
        Ok(slot) => {
            if slot.repository != slots.repository() {
                state.error =
                    Some("it was created by an init that did not finish, and opens nothing".to_owned());
            }
            (state.kind, state.creation_time) = (Some((&slot.kind).into()), Some(slot.created));
            state.comment = Some(slot.comment);
        }
    }
    if let Some(source) = source.filter(|_| state.error.is_none()) {
        match slots.proves(number, source).await {
            Ok(opens) => state.opens = Some(opens),
            Err(error) => state.error = Some(error.to_string()),
        }
    }
    state
}

impl From<&SlotKind> for SecretKind {
    fn from(kind: &SlotKind) -> Self {
        match kind {
            SlotKind::Key => Self::Key,
            SlotKind::Passphrase(_) => Self::Passphrase,
            SlotKind::Command { .. } => Self::Command,
        }
    }
}

impl KeySlotsDocument<'_> {
    fn text(&self) -> String {
        let mut text = format!("repository {} ({})\n", self.repository, self.repository_id);
        for slot in &self.slots {
            let created = slot.creation_time.map_or(String::new(), |created| created.to_string());
            let opens = match (slot.opens, &slot.error) {
                (_, Some(error)) => error.clone(),
                (Some(true), None) => "opens".to_owned(),
                (Some(false), None) => "does not open with it".to_owned(),
                (None, None) => String::new(),
            };
            let comment = shown(slot.comment.as_deref().unwrap_or_default());
            let kind = match slot.kind {
                Some(SecretKind::Key) => "key",
                Some(SecretKind::Passphrase) => "passphrase",
                Some(SecretKind::Command) => "command",
                None => "?",
            };
            let line = format!("  {:>3}  {kind:<10}  {created:<20}  {opens}  {comment}", slot.slot);
            text += &format!("{}\n", line.trim_end());
        }
        text += &match &self.secret_source {
            Some(configured) => format!("configured: {configured}\n"),
            None => "no secret is configured, so none was tried\n".to_owned(),
        };
        text
    }
}
