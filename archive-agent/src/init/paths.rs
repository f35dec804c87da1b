//! The paths that `init` was given, as a configuration has them.

use std::path::Path;

use anyhow::{Context, anyhow};
use walpoint_runtime::config::unusable_push_socket;
use walpoint_runtime::exit::Failure;

use super::config::utf8;
use super::{InitArgs, StoreArgs};

/// The arguments with every path as the file has it: what is compared, written and printed is the same then.
pub(super) fn absolute(args: &InitArgs) -> Result<InitArgs, Failure> {
    let mut args = args.clone();
    for (name, path) in [("--pgdata", &mut args.pgdata), ("--push-socket", &mut args.push_socket)] {
        if let Some(path) = path {
            *path = std::path::absolute(&*path).context(name)?;
        }
    }
    if let Some((socket, why)) = args.push_socket.as_deref().and_then(|p| Some((p, unusable_push_socket(p)?)))
    {
        return Err(Failure::usage(anyhow!("--push-socket: {} {why}", socket.display())));
    }
    let StoreArgs { ca_file, access_key_id_file, secret_access_key_file, .. } = &mut args.store;
    for path in [ca_file, access_key_id_file, secret_access_key_file].into_iter().flatten() {
        *path = absolute_text(path)?;
    }
    for option in &mut args.store.options {
        if let Some((key, path)) = option.split_once('=').filter(|(key, _)| key.ends_with("_file")) {
            *option = format!("{key}={}", absolute_text(path)?);
        }
    }
    Ok(args)
}

fn absolute_text(path: &str) -> Result<String, Failure> {
    let absolute = std::path::absolute(Path::new(path)).with_context(|| format!("the path \"{path}\""))?;
    Ok(utf8(&absolute)?.to_owned())
}
