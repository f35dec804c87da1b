//! `restore-agent`: started as the prefetcher, or become in place of this program.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use walpoint_base::WalDirectory;

use crate::arguments::Arguments;

/// Starts a prefetcher: in a process group of its own, because PostgreSQL signals the group of its restore_command, and
/// without our files, because PostgreSQL may wait for the end of its log's pipe. It ends by itself.
pub(crate) fn start_prefetcher(arguments: &Arguments, place: &WalDirectory) -> Result<Child, String> {
    first_found(|mut agent| {
        agent.arg("prefetch").arg("--socket").arg(&arguments.socket);
        agent.arg("--pgdata").arg(&place.pgdata).args(&arguments.options);
        agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        agent.spawn()
    })
}

/// Replaces this process by `restore-agent fetch`. Returns only to say why that was not possible.
pub(crate) fn become_fetch(arguments: &Arguments, within: Option<Duration>) -> String {
    let problem = first_found(|mut agent| -> io::Result<()> {
        agent.arg("fetch").args(&arguments.options);
        if let Some(within) = within {
            agent.arg("--within").arg(format!("{}ms", within.as_millis()));
        }
        Err(agent.arg("--").arg(&arguments.name).arg(&arguments.path).exec())
    });
    problem.err().unwrap_or_default()
}

/// Tries the program beside this one, then the one in PATH.
fn first_found<T>(mut run: impl FnMut(Command) -> io::Result<T>) -> Result<T, String> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join("restore-agent"));
    let mut problem = String::from("restore-agent could not be started");
    for program in beside.as_deref().into_iter().chain([Path::new("restore-agent")]) {
        match run(Command::new(program)) {
            Ok(done) => return Ok(done),
            Err(error) => problem += &format!("; {}: {error}", program.display()),
        }
    }
    Err(problem
        + "\nHINT: Install it beside restore-fetch, or run \"restore-agent prefetch --persistent\" at this socket.")
}
