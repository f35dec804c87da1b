//! `key list`: what slots there are, and which the configured secret opens. Works without a key.

use serde::Serialize;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::output;
use walpoint_storage::keys::{KeySlots, KeySource, ListedSlot};

/// What `key list --json` prints.
#[derive(Debug, Serialize)]
struct Slots<'a> {
    repository: &'a str,
    id: String,
    /// What the configuration names; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    configured: Option<String>,
    slots: Vec<SlotState>,
}

#[derive(Debug, Serialize)]
struct SlotState {
    slot: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    /// Whether the configured secret opens it; `None` if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<bool>,
    /// Why it cannot be read or tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
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
    let shown = Slots {
        repository: &name,
        id: slots.repository().to_string(),
        configured: source.as_ref().map(ToString::to_string),
        slots: states,
    };
    if common.json { output::json(&shown) } else { output::text(&shown.text()) }
}

async fn state(slots: &KeySlots, listed: ListedSlot, source: Option<&KeySource>) -> SlotState {
    let number = listed.number;
    let mut state =
        SlotState { slot: number, kind: None, created: None, comment: None, opens: None, problem: None };
    match listed.slot {
        Err(error) => state.problem = Some(error.to_string()),
        Ok(slot) => {
            if slot.repository != slots.repository() {
                state.problem =
                    Some("it was made by an init that did not finish, and opens nothing".to_owned());
            }
            (state.kind, state.created) = (Some(slot.kind.name()), Some(slot.created));
            state.comment = Some(slot.comment);
        }
    }
    if let Some(source) = source.filter(|_| state.problem.is_none()) {
        match slots.proves(number, source).await {
            Ok(opens) => state.opens = Some(opens),
            Err(error) => state.problem = Some(error.to_string()),
        }
    }
    state
}

impl Slots<'_> {
    fn text(&self) -> String {
        let mut text = format!("repository {} ({})\n", self.repository, self.id);
        for slot in &self.slots {
            let created = slot.created.map_or(String::new(), |created| created.to_string());
            let opens = match (slot.opens, &slot.problem) {
                (_, Some(problem)) => problem.clone(),
                (Some(true), None) => "opens".to_owned(),
                (Some(false), None) => "does not open with it".to_owned(),
                (None, None) => String::new(),
            };
            let comment = slot.comment.as_deref().unwrap_or_default();
            let line = format!(
                "  {:>3}  {:<10}  {created:<20}  {opens}  {comment}",
                slot.slot,
                slot.kind.unwrap_or("?")
            );
            text += &format!("{}\n", line.trim_end());
        }
        text += &match &self.configured {
            Some(configured) => format!("configured: {configured}\n"),
            None => "no secret is configured, so none was tried\n".to_owned(),
        };
        text
    }
}
