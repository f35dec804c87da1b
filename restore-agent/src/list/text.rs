//! What `list` prints for a person.

use std::fmt::Write;

use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, ClusterName};
use walpoint_repo::backup::BackupStage;
use walpoint_repo::catalog::RestorePointStatus;
use walpoint_repo::catalog::status::{BackupDetails, BackupStatus, ClusterStatus, LineageStatus};
use walpoint_runtime::human;
use walpoint_words::lineage;

use super::Sections;
use super::options::PlanOptions;
use super::read::{Contents, Listed, Unlisted};
use super::table::{Row, table};
use crate::shell;

/// Backups of a lineage that are listed unless all are asked for, the newest ones.
const BACKUPS: usize = 20;

/// What a cluster can be restored to, by repository, and the commands that plan it. Lines end with a newline.
pub(super) fn cluster(
    cluster: &ClusterName,
    listed: &[Listed],
    options: &PlanOptions,
    sections: Sections,
    all_backups: bool,
) -> String {
    let of = |one: &Listed| {
        let head = format!("Cluster {cluster} in {} ({})\n", one.repository, one.url);
        head + &match &one.contents {
            Ok(contents) => repository(contents, options, sections, all_backups),
            Err(Unlisted::NoCluster(why)) => format!("{}\n", human::hanging("  ", why)),
            Err(unlisted) => format!("{}\n", human::hanging("  cannot be read: ", unlisted.why())),
        }
    };
    let mut texts: Vec<String> = listed.iter().map(of).collect();
    if listed.iter().any(|one| one.contents.as_ref().is_ok_and(|contents| is_restorable(&contents.status))) {
        texts.push(commands(options));
    }
    texts.join("\n")
}

fn repository(contents: &Contents, options: &PlanOptions, sections: Sections, all_backups: bool) -> String {
    let status = &contents.status;
    let mut text = String::new();
    for (one, drawing) in status.lineages.iter().zip(&contents.drawings) {
        text.push_str(&lineage::heading(one));
        if sections.windows {
            text.push_str(drawing);
        }
        if sections.backups {
            text.push_str(&backups(status, one, all_backups));
        }
        if sections.restore_points {
            text.push_str(&restore_points(one, options));
        }
        if sections.windows {
            text.push_str(&windows(one, options));
        }
        one.errors
            .iter()
            .for_each(|error| text.push_str(&format!("{}\n", human::hanging("  error     ", error))));
    }
    status.damaged_lineages.iter().for_each(|damaged| text.push_str(&lineage::damaged(damaged)));
    if status.lineages.is_empty() && status.damaged_lineages.is_empty() {
        text.push_str("\nNothing was archived yet.\n");
    }
    if sections.backups {
        text.push_str(&others(status));
    }
    text
}

/// The finished backups of a lineage.
fn backups(status: &ClusterStatus, lineage: &LineageStatus, all: bool) -> String {
    let mut own: Vec<(&BackupStatus, &BackupDetails)> = status
        .backups
        .iter()
        .filter_map(|backup| Some((backup, backup.details.as_ref()?)))
        .filter(|(_, details)| details.lineage == lineage.lineage)
        .collect();
    let older = if all { 0 } else { own.len().saturating_sub(BACKUPS) };
    own.drain(..older);
    let mut text = "\n  Backups\n".to_owned();
    if own.is_empty() {
        text.push_str("    none\n");
        return text;
    }
    let rows: Vec<Row<7>> = own.into_iter().map(|(backup, details)| row(backup, details)).collect();
    let head = ["FINISHED", "KIND", "SIZE", "TIMELINE", "STATE", "LABEL", "ID"];
    text.push_str(&table(head, &rows));
    if older > 0 {
        writeln!(text, "    {older} older: --backups lists all").ok();
    }
    text
}

fn row(backup: &BackupStatus, details: &BackupDetails) -> Row<7> {
    let damage = details.damage.as_ref();
    Row {
        cells: [
            human::time(details.stop_time),
            details.kind.to_string(),
            human::size(details.file_bytes),
            backup.timeline.to_string(),
            if damage.is_some() { "DAMAGED" } else { "sound" }.to_owned(),
            shown(&details.label),
            backup.id.to_string(),
        ],
        below: damage.map(|damage| format!("damage: {damage}")).into_iter().collect(),
    }
}

/// Backups of which no lineage is known, or that cannot be restored.
fn others(status: &ClusterStatus) -> String {
    let mut text = String::new();
    let of = |state: BackupStage| status.backups.iter().filter(move |backup| backup.state == state);
    let unknown: Vec<BackupId> =
        of(BackupStage::Finished).filter(|backup| backup.details.is_none()).map(|backup| backup.id).collect();
    if !unknown.is_empty() {
        text.push_str("\nBackups whose manifests could not be read\n");
        unknown.iter().for_each(|id| text.push_str(&format!("    {id}\n")));
    }
    let unfinished = of(BackupStage::Unfinished).count() as u64;
    if unfinished > 0 {
        writeln!(text, "\n{}, never used to restore", human::count(unfinished, "unfinished backup")).ok();
    }
    text
}

fn restore_points(lineage: &LineageStatus, options: &PlanOptions) -> String {
    let mut text = "\n  Restore points\n".to_owned();
    if lineage.restore_points.is_empty() {
        text.push_str("    none\n");
        return text;
    }
    let row = |point: &RestorePointStatus| {
        let name = shown(&point.name);
        let several = point.same_name.saturating_add(1);
        Row::from([
            if point.same_name > 0 { format!("{name} (one of {several})") } else { name },
            point.time.map_or_else(|| "unknown".to_owned(), |time| time.to_time().to_string()),
            point.lsn.to_string(),
            point.timeline.to_string(),
            shell::line(&options.to_point(lineage, point)),
        ])
    };
    let rows: Vec<Row<5>> = lineage.restore_points.iter().map(row).collect();
    text.push_str(&table(["NAME", "TIME", "LSN", "TIMELINE", "PLAN WITH"], &rows));
    if lineage.older_restore_points > 0 {
        writeln!(text, "    {} older: --restore-points lists all", lineage.older_restore_points).ok();
    }
    text
}

fn windows(status: &LineageStatus, options: &PlanOptions) -> String {
    let mut text = "\n  Windows, every moment of which can be recovered\n".to_owned();
    let mut none = true;
    for timeline in &status.timelines {
        for window in &timeline.windows {
            none = false;
            let chosen = shell::line(&options.on_timeline(status, timeline.timeline));
            let chosen = if chosen.is_empty() { chosen } else { format!(": {chosen}") };
            let window = lineage::window(window);
            writeln!(text, "    timeline {}  {window}{chosen}", timeline.timeline).ok();
        }
    }
    if none {
        text.push_str("    none: no complete backup with all its WAL\n");
    }
    text
}

/// Whether there is anything to plan.
fn is_restorable(status: &ClusterStatus) -> bool {
    status.backups.iter().any(|backup| backup.state == BackupStage::Finished)
}

/// The command lines that plan a restore.
fn commands(options: &PlanOptions) -> String {
    let plan = shell::line(&options.plan());
    let lines = [
        (plan.clone(), "to the end of the archive"),
        (format!("{plan} --target-time TIME"), "to a time in a window"),
        (format!("{plan} --target-name NAME"), "to a restore point"),
        (format!("{plan} --target-immediate --backup ID"), "to the end of a backup"),
    ];
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or_default();
    let mut text = "Plan a restore, which writes nothing:\n".to_owned();
    for (line, what) in lines {
        writeln!(text, "  {line:<width$}  # {what}").ok();
    }
    text
}
