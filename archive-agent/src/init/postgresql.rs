//! What PostgreSQL has to be told: settings, and the role that Walpoint connects with.

use std::path::Path;

use anyhow::Context;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_pg::control::ControlFile;
use walpoint_pg::server::{Server, least_privilege_sql};

use super::config::ConfigurationPlan;
use crate::check::report::CheckReport;

/// The role that is suggested where a superuser connects.
const ROLE: &str = "walpoint";

/// A setting of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct ServerSetting {
    /// The parameter, as PostgreSQL calls it.
    pub(crate) name: &'static str,
    /// The value that it needs.
    pub(crate) value: String,
    /// The value that it has. Absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none", rename = "current_value")]
    pub(crate) current: Option<String>,
    /// Whether changing it requires a restart of the server.
    #[serde(rename = "requires_restart")]
    pub(crate) needs_restart: bool,
}

impl ServerSetting {
    /// Whether nothing has to be done.
    fn is_set(&self) -> bool {
        self.current.as_ref().is_some_and(|current| match self.name {
            "wal_level" => current == "logical" || *current == self.value,
            "archive_mode" => current == "always" || *current == self.value,
            "archive_timeout" => current != "0",
            _ => *current == self.value,
        })
    }

    /// A line of `postgresql.conf`.
    pub(crate) fn line(&self) -> String {
        // postgresql.conf takes backslashes in quotes as escapes.
        let value = self.value.replace('\\', "\\\\").replace('\'', "''");
        let line = format!("{} = '{value}'", self.name);
        match &self.current {
            Some(current) if *current == self.value => format!("{line}  # set already"),
            Some(current) if self.is_set() => format!("{line}  # the current '{current}' works too"),
            _ => line,
        }
    }
}

/// Everything that PostgreSQL has to be told.
#[derive(Debug)]
pub(crate) struct Advice {
    pub(crate) settings: Vec<ServerSetting>,
    /// SQL for a superuser.
    pub(crate) role_sql: String,
}

impl Advice {
    /// For the cluster of the plan; asks the server, if there is one, what is set already.
    pub(crate) async fn new(
        report: &mut CheckReport,
        plan: &ConfigurationPlan,
        control: &ControlFile,
        mut server: Option<&mut Server>,
    ) -> anyhow::Result<Self> {
        let program =
            std::env::current_exe().context("where this program is")?.with_file_name("archive-push");
        if !program.is_file() {
            let found = format!("{} does not exist", program.display());
            report.warning("archive-push", found, "Install it beside archive-agent.");
        }
        let socket = plan.settings.push_socket(&plan.cluster);
        if socket.parent().is_some_and(|directory| !directory.is_dir()) {
            let found = format!("the directory of {} does not exist", socket.display());
            let advice =
                "Create it, owned by PostgreSQL's user: systemd does that with RuntimeDirectory=walpoint.";
            report.warning("push socket", found, advice);
        }
        let command = archive_command(&program, &socket, &plan.path);
        let mut settings = vec![
            setting("wal_level", "replica".to_owned(), true),
            setting("archive_mode", "on".to_owned(), true),
            setting("archive_command", command, false),
            setting("archive_timeout", "60".to_owned(), false),
        ];
        let mut role = ROLE.to_owned();
        if let Some(server) = server.as_mut() {
            for setting in &mut settings {
                setting.current = server.setting(setting.name).await.ok().flatten();
            }
            let superuser = server.connection().parameter("is_superuser") == Some("on");
            if !superuser {
                role = server.connection().user().to_owned();
            }
        }
        let role_sql = least_privilege_sql(&role, control.major);
        Ok(Self { settings, role_sql })
    }

    /// What to do with the settings.
    pub(crate) fn next_step(&self) -> &'static str {
        let open: Vec<&ServerSetting> = self.settings.iter().filter(|setting| !setting.is_set()).collect();
        match (open.is_empty(), open.iter().any(|setting| setting.needs_restart)) {
            (true, _) => "All of it is set already.",
            (false, true) => "Then restart PostgreSQL.",
            (false, false) => "Then reload PostgreSQL: select pg_reload_conf();",
        }
    }
}

fn setting(name: &'static str, value: String, needs_restart: bool) -> ServerSetting {
    ServerSetting { name, value, current: None, needs_restart }
}

/// The command as PostgreSQL runs it, by a shell and after replacing `%`.
fn archive_command(program: &Path, socket: &Path, config: &Path) -> String {
    let word = |path: &Path| shell_word(&path.to_string_lossy()).replace('%', "%%");
    format!("{} --socket {} --config {} %p", word(program), word(socket), word(config))
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_shell_percent_signs_and_postgresql_conf() {
        let command = archive_command(
            Path::new("/usr/bin/archive-push"),
            Path::new("/run/my socket"),
            Path::new("/etc/it's/100%"),
        );
        assert_eq!(
            command,
            "/usr/bin/archive-push --socket '/run/my socket' --config '/etc/it'\\''s/100%%' %p"
        );
        let line = setting("archive_command", command, false).line();
        assert_eq!(
            line,
            "archive_command = '/usr/bin/archive-push --socket ''/run/my socket'' --config ''/etc/it''\\\\''''s/100%%'' %p'"
        );
    }

    #[test]
    fn what_is_stricter_already_stays() {
        let is_set = |name, value: &str, current: &str| {
            ServerSetting { current: Some(current.to_owned()), ..setting(name, value.to_owned(), true) }
                .is_set()
        };
        assert!(is_set("wal_level", "replica", "logical") && !is_set("wal_level", "replica", "minimal"));
        assert!(is_set("archive_mode", "on", "always") && !is_set("archive_mode", "on", "off"));
        assert!(is_set("archive_timeout", "60", "5min") && !is_set("archive_timeout", "60", "0"));
        assert!(!setting("archive_mode", "on".to_owned(), true).is_set(), "unknown is not set");
    }
}
