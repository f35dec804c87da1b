//! Shell completions and manual pages, made from the command line's own description, so they cannot lag behind it.

use std::path::Path;

use anyhow::Context;
use clap::Command;
pub use clap_complete::Shell;
use walpoint_base::durable;

use crate::exit::Failure;
use crate::{help, output};

/// The heading of the manual pages.
const MANUAL: &str = "Walpoint";

/// A manual page of a program that is too small to describe itself.
#[derive(Clone, Copy, Debug)]
pub struct ManualPage {
    /// Its file's name, such as `archive-push.1`.
    pub name: &'static str,
    /// Its text, in roff.
    pub text: &'static str,
}

/// Prints the completions of a command line for a shell.
pub fn completions(mut command: Command, shell: Shell) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    output::text(&String::from_utf8_lossy(&script))
}

/// Writes a page for the program, one for each command that is not hidden, and the given ones into a directory, replacing
/// what is there.
pub fn manual(command: Command, others: &[ManualPage], directory: &Path) -> Result<(), Failure> {
    durable::create_public_directories(directory)
        .with_context(|| format!("{} cannot be created", directory.display()))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    for command in shown(&command) {
        // The examples keep their lines, which that section of the generated page would not.
        let man = clap_mangen::Man::new(command.clone().after_long_help(None::<&str>)).manual(MANUAL);
        let mut text = Vec::new();
        man.render(&mut text)?;
        text.extend(help::examples_in_roff(command).into_bytes());
        write(directory, &man.get_filename(), &text)?;
    }
    for page in others {
        write(directory, page.name, page.text.as_bytes())?;
    }
    Ok(())
}

/// A command and all below it that are not hidden.
fn shown(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().filter(|c| !c.is_hide_set()).flat_map(shown);
    std::iter::once(command).chain(below).collect()
}

fn write(directory: &Path, name: &str, text: &[u8]) -> Result<(), Failure> {
    let path = directory.join(name);
    let written = durable::replace(&path, text, 0o644);
    Ok(written.with_context(|| format!("{} cannot be written", path.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_not_hidden_has_a_page() {
        let command = Command::new("agent").version("1.2.3").about("Does things.").subcommands([
            Command::new("shown").about("Shows.").subcommand(Command::new("more")),
            Command::new("hidden").hide(true),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("man/man1");
        let other = ManualPage { name: "client.1", text: ".TH client 1\n" };
        for _ in 0..2 {
            manual(command.clone(), &[other], &directory).unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["agent-shown-more.1", "agent-shown.1", "agent.1", "client.1"]);
        let page = std::fs::read_to_string(directory.join("agent-shown.1")).unwrap();
        assert!(page.contains("Shows.") && page.contains("Walpoint"), "{page}");
    }
}
