//! Programs run as the user who owns the data directory: as root PostgreSQL refuses to run.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use walpoint_base::user;

use super::owner::{self, Owner};
use super::programs::Programs;
use super::session::PeerUser;

/// Who runs the server and the programs that look into it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerUser {
    /// `None`: this process's own user.
    owner: Option<Owner>,
    /// The name, if it has one here.
    name: Option<String>,
    /// Where `setpriv` is: it changes the user and takes the user's groups along, and is replaced by what it runs.
    setpriv: Option<PathBuf>,
}

impl ServerUser {
    /// The owner of the files, or this process's user.
    pub(crate) fn of(owner: Option<Owner>) -> Self {
        let Some(owner) = owner else { return Self::default() };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let setpriv = std::env::split_paths(&path).map(|directory| directory.join("setpriv"));
        let setpriv = setpriv.into_iter().find(|program| program.is_file());
        Self { owner: Some(owner), name: owner::name_of_user(owner.uid), setpriv }
    }

    /// The user's name.
    pub(crate) fn name(&self) -> Option<String> {
        self.owner.map_or_else(|| user::name(user::effective()), |_| self.name.clone())
    }

    /// That user, as whom a socket is opened.
    pub(crate) fn peer(&self, owner: Owner) -> PeerUser {
        PeerUser { owner, groups: self.name.as_deref().map(owner::groups_of_user).unwrap_or_default() }
    }

    /// A command as that user, in a process group of its own: what a terminal sends to this process is not for it.
    pub(crate) fn command(&self, program: &OsStr) -> Command {
        let mut command = self.plain_command(program);
        command.process_group(0);
        command
    }

    /// A command as that user, in a session of its own. It keeps the number of the process that is started: `setsid` leaves that only
    /// where it leads a process group.
    pub(crate) fn command_in_own_session(&self, setsid: &Path, program: &OsStr) -> Command {
        let mut command = self.plain_command(setsid.as_os_str());
        command.arg(program);
        command
    }

    fn plain_command(&self, program: &OsStr) -> Command {
        let mut command = match (self.owner, &self.name, &self.setpriv) {
            (None, ..) => Command::new(program),
            (Some(owner), Some(_), Some(setpriv)) => {
                let mut command = Command::new(setpriv);
                command.arg(format!("--reuid={}", owner.uid)).arg(format!("--regid={}", owner.gid));
                command.args(["--init-groups", "--"]).arg(program);
                command
            }
            (Some(owner), ..) => {
                let mut command = Command::new(program);
                command.uid(owner.uid).gid(owner.gid);
                command
            }
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Gives that user a file or a directory, durably; nothing where it is this process's own user.
    pub(crate) fn give(&self, path: &Path) -> io::Result<()> {
        self.owner.map_or(Ok(()), |owner| owner.give(path))
    }

    /// Proves that the server can be run by that user, and that he reaches a scratch directory. `run_in`: the directory in it in which
    /// the server runs.
    pub(crate) fn prove(&self, programs: &Programs, directory: &Path, run_in: &Path) -> anyhow::Result<()> {
        let who = || self.name().unwrap_or_else(|| "the owner of the files".to_owned());
        if self.owner.is_none() && user::effective() == 0 {
            bail!(
                "the files of the backup belong to root, and PostgreSQL does not run as root\nHINT: Run this as PostgreSQL's user."
            );
        }
        let server = programs.server();
        let run = |directory: &Path| {
            let mut command = self.command(OsStr::new("sh"));
            command.args(["-c", "cd \"$1\" && exec \"$0\" --version"]).arg(&server).arg(directory);
            command.current_dir("/").stdout(Stdio::null()).output()
        };
        let output = run(run_in).with_context(|| format!("could not run \"{}\"", server.display()))?;
        if !output.status.success() {
            bail!(
                "{} cannot run \"{}\" in \"{}\": nothing was restored\nDETAIL: {}\nHINT: Choose a place that this user can enter, \
                 with --directory or scratch_directory, and programs that this user can run.",
                who(),
                server.display(),
                directory.display(),
                String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ")
            );
        }
        Ok(())
    }

    /// The words before a command that a person runs as that user.
    pub(crate) fn words(&self) -> Vec<String> {
        match (self.owner, &self.name) {
            (None, _) => Vec::new(),
            (Some(_), Some(name)) => ["runuser", "-u", name, "--"].map(str::to_owned).to_vec(),
            (Some(Owner { uid, gid }), None) => vec![
                "setpriv".to_owned(),
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
                "--clear-groups".to_owned(),
                "--".to_owned(),
            ],
        }
    }

    /// The command that starts a server on a data directory again, for a person.
    pub(crate) fn start_command(&self, programs: &Programs, data: &Path) -> String {
        self.pg_ctl(programs, data, &["-w", "start"])
    }

    /// The command that stops a server on a data directory, for a person.
    pub(crate) fn stop_command(&self, programs: &Programs, data: &Path) -> String {
        self.pg_ctl(programs, data, &["-m", "fast", "stop"])
    }

    fn pg_ctl(&self, programs: &Programs, data: &Path, action: &[&str]) -> String {
        let mut words = self.words();
        let pg_ctl = programs.optional("pg_ctl").unwrap_or_else(|| PathBuf::from("pg_ctl"));
        words.extend([pg_ctl.display().to_string(), "-D".to_owned(), data.display().to_string()]);
        words.extend(action.iter().map(|word| (*word).to_owned()));
        crate::shell::line(&words)
    }
}
