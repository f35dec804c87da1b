//! `pg_amcheck` over the databases that have the extension amcheck.

use walpoint_runtime::human;

use super::expectation::quoted;
use super::outcome::Outcome;
use super::run_check;
use crate::scratch::{Instance, Programs, ServerUser};

/// The exit status of `pg_amcheck` where it found corruption.
const CORRUPT: i32 = 2;

const HAS: &str = "SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'amcheck'";

/// Runs it.
pub(super) async fn run(instance: &Instance, programs: &Programs, user: &ServerUser) -> Outcome {
    let Some(program) = programs.optional("pg_amcheck") else {
        let bindir = programs.bindir().display();
        return Outcome::Skipped(format!("{bindir} has no pg_amcheck, which PostgreSQL has from 14 on"));
    };
    let (with, without) = match divided(instance).await {
        Ok(divided) => divided,
        Err(error) => return Outcome::Failed(walpoint_words::format_chain(&error)),
    };
    if with.is_empty() {
        return Outcome::Skipped("no database has the extension amcheck".to_owned());
    }
    for database in &with {
        let mut command = user.command(program.as_os_str());
        // A connection string: a name alone would be read as one, or as an option.
        let name = database.replace('\\', "\\\\").replace('\'', "\\'");
        command
            .arg("--no-password")
            .arg(format!("dbname='{name}'"))
            .current_dir("/")
            .envs(instance.environment());
        let output = match run_check::output(command, None).await {
            Ok(output) => output,
            Err(error) => return Outcome::Failed(walpoint_words::format_chain(&error)),
        };
        if !output.success {
            let found = if output.code == Some(CORRUPT) { "found corruption" } else { "failed" };
            // Findings are on standard output.
            let said =
                if output.code == Some(CORRUPT) { quoted(output.stdout.trim()) } else { output.said() };
            return Outcome::Failed(format!(
                "pg_amcheck {found} in database \"{}\": {said}",
                quoted(database)
            ));
        }
    }
    let mut message = format!("sound: {}", listed(&with));
    if !without.is_empty() {
        message += &format!("; without the extension amcheck, and not checked: {}", listed(&without));
    }
    Outcome::Passed(Some(message))
}

/// The databases that have the extension, and those that do not.
async fn divided(instance: &Instance) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for database in instance.databases().await? {
        let mut connection = instance.connect(&database, Some(std::time::Duration::from_secs(60))).await?;
        let has = !connection.query(HAS).await?.is_empty();
        connection.close().await;
        if has { with.push(database) } else { without.push(database) }
    }
    Ok((with, without))
}

/// Names of databases, the first ones of many.
fn listed(databases: &[String]) -> String {
    const NAMED: usize = 10;
    let mut names: Vec<String> = databases.iter().take(NAMED).map(|name| quoted(name)).collect();
    if let Some(more) = databases.len().checked_sub(NAMED).filter(|more| *more > 0) {
        names.push(format!("and {} more", human::count(u64::try_from(more).unwrap_or(u64::MAX), "database")));
    }
    names.join(", ")
}
