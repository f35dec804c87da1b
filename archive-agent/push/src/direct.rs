//! Without a daemon: this process becomes `archive-agent push`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::arguments::Arguments;

/// Replaces this process by `archive-agent push`, the one beside this program or the one in PATH. Returns only to say why
/// that was not possible.
pub(crate) fn exec(arguments: &Arguments) -> String {
    let beside =
        std::env::current_exe().ok().and_then(|own| own.parent().map(|dir| dir.join("archive-agent")));
    let beside =
        beside.map(|program| (program.display().to_string(), become_agent(Command::new(program), arguments)));
    let in_path = become_agent(Command::new("archive-agent"), arguments);
    let mut problem = format!("archive-agent could not be started: in PATH: {in_path}");
    if let Some((program, error)) = beside {
        problem += &format!("; {program}: {error}");
    }
    problem + "; HINT: start the daemon (archive-agent run)"
}

fn become_agent(mut agent: Command, arguments: &Arguments) -> std::io::Error {
    agent.arg("push");
    if let Some(config) = &arguments.config {
        agent.arg("--config").arg(config);
    }
    agent.arg("--").arg(&arguments.path).exec()
}
