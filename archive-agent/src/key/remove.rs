//! `key remove`: a secret that shall open nothing any more. Never the last one by accident.

use std::io::{self, BufRead};

use anyhow::{Context, anyhow, bail};
use walpoint_repo::Repository;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_storage::keys::{KeySlots, KeySource, Removal};

use super::{KeyDocument, Remove, recorded, tell};

/// Runs the command.
pub(super) async fn run(common: &CommonArgs, args: &Remove) -> Result<(), Failure> {
    let (name, settings) = super::the_repository(common)?;
    let slots = KeySlots::at(&settings).await?.ok_or_else(|| super::not_encrypted(&name))?;
    let listed = slots.list().await?;
    if !listed.iter().any(|slot| slot.number == args.slot) {
        let numbers: Vec<String> = listed.iter().map(|slot| slot.number.to_string()).collect();
        return Err(anyhow!(
            "repository {name} has no slot {}\nDETAIL: It has: {}.",
            args.slot,
            numbers.join(", ")
        )
        .into());
    }
    let configured = KeySource::configured(&settings.encryption)?;
    let sources: Vec<KeySource> = args.secret.source()?.into_iter().chain(configured.clone()).collect();
    let remaining = remaining(&slots, args.slot, &sources).await?;
    if remaining.is_none() {
        if !args.even_if_last {
            return Err(anyhow!(
                "slot {} was not removed: no other slot of repository {name} is proven to open\nDETAIL: Without one nothing \
                 in it can ever be restored.\nHINT: Prove another one with the secret that opens it (--key-file, \
                 --passphrase-file, --unwrap-command), or add one first (archive-agent key add).",
                args.slot
            )
            .into());
        }
        let (number, id) = (args.slot, slots.repository().to_string());
        let name = name.clone();
        tokio::task::spawn_blocking(move || confirm(number, &name, &id)).await??;
    }
    let locked_out = match configured.filter(|_| remaining.is_some()) {
        Some(source) => only_opens(&slots, args.slot, source).await?,
        None => None,
    };
    // For the record of it: afterwards the configured secret may open nothing.
    let repository = Repository::open(&name, &settings).await;
    match slots.remove(args.slot, remaining).await? {
        Removal::Removed => {}
        Removal::PutBack => {
            return Err(anyhow!(
                "another process has just removed the slot that was to remain\nDETAIL: Slot {} was put back.",
                args.slot
            )
            .into());
        }
    }
    if let Some(source) = &locked_out {
        tracing::warn!(
            "the {source}, which the configuration names, opened only slot {} of repository {name}\nDETAIL: No command that is started \
             from now on can open the repository with it.\nHINT: Configure the secret that opens another slot, on every machine that \
             uses the repository, then restart the daemons.",
            args.slot
        );
    }
    let changed = KeyDocument {
        repository: name,
        added_slot: None,
        secret_source: None,
        configuration: locked_out.map(|_| args.secret.lines()).filter(|lines| !lines.is_empty()),
        removed_slot: Some(args.slot),
        proven_slot: remaining,
    };
    recorded::changed(common, &repository, &changed).await;
    tell(common, &changed)
}

/// The secret, if it opens that slot and no other one.
async fn only_opens(slots: &KeySlots, slot: u32, source: KeySource) -> Result<Option<KeySource>, Failure> {
    // What cannot be tried opens nothing.
    if !slots.proves(slot, &source).await.unwrap_or(false) {
        return Ok(None);
    }
    let others = remaining(slots, slot, std::slice::from_ref(&source)).await?;
    Ok(others.is_none().then_some(source))
}

/// Another slot that one of the secrets opens now.
async fn remaining(slots: &KeySlots, leaving: u32, sources: &[KeySource]) -> Result<Option<u32>, Failure> {
    for listed in slots.list().await?.iter().filter(|listed| listed.number != leaving && listed.slot.is_ok())
    {
        for source in sources {
            match slots.proves(listed.number, source).await {
                Ok(true) => return Ok(Some(listed.number)),
                Ok(false) => {}
                Err(error) => tracing::warn!("slot {} is not proven by the {source}: {error}", listed.number),
            }
        }
    }
    Ok(None)
}

/// Has it written out what is about to be lost.
fn confirm(slot: u32, repository: &str, id: &str) -> anyhow::Result<()> {
    let wanted = format!("destroy {id}");
    tracing::warn!(
        "no slot but {slot} is known to open repository {repository}\nDETAIL: Without it every backup and \
         all WAL in it are lost forever, in every copy of the repository.\nHINT: To continue, type: {wanted}"
    );
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("the confirmation cannot be read")?;
    if line.trim_end_matches(['\r', '\n']) != wanted {
        bail!("slot {slot} was not removed: the confirmation was not given");
    }
    Ok(())
}
