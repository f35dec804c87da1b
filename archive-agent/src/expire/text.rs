//! What `expire` tells a person.

use std::fmt::Write as _;

use walpoint_base::diagnostic::shown;
use walpoint_repo::expire::{BackupDecision, ClassReport, Expired};
use walpoint_runtime::human;

/// Everything that was decided and done.
pub(super) fn of(expired: &Expired) -> String {
    let what = if expired.dry_run { "What expire would do with" } else { "Expired" };
    let mut text = format!("{what} cluster {} in {}\n", expired.cluster, expired.repository);
    // Writing to a String cannot fail.
    if !expired.backups.is_empty() {
        text.push_str("\nBackups\n");
    }
    for backup in &expired.backups {
        let decision = match backup.decision {
            BackupDecision::Expire => "expire",
            BackupDecision::Keep | BackupDecision::KeepStandalone => "keep",
        };
        let label =
            if backup.label.is_empty() { String::new() } else { format!(" \"{}\"", shown(&backup.label)) };
        writeln!(text, "  {decision:<6}  {}{label}: {}", backup.id, backup.reason).ok();
        if let Some(damage) = &backup.damage {
            writeln!(text, "          DAMAGED: {damage}").ok();
        }
        if backup.decision != BackupDecision::Expire && backup.exceeds_max_age {
            writeln!(text, "          it exceeds max_age").ok();
        }
    }
    for id in &expired.aborted_backups {
        let how = if expired.dry_run { "would be aborted" } else { "was aborted" };
        writeln!(
            text,
            "  abort   {id}: it was never finished, has stored nothing for a long time, and {how}"
        )
        .ok();
    }
    let deleted = if expired.dry_run { "to delete" } else { "deleted" };
    let marked = if expired.dry_run { "to mark" } else { "marked" };
    if expired.classes.iter().any(moves) {
        writeln!(text, "\n{:<16}{:>22}{:>22}{:>22}{:>22}", "Objects", "kept", marked, "in grace", deleted)
            .ok();
    }
    for class in expired.classes.iter().filter(|class| moves(class)) {
        let cell = |objects: u64, bytes: u64| match objects {
            0 => "-".to_owned(),
            _ => format!("{objects}, {}", human::size(bytes)),
        };
        writeln!(
            text,
            "  {:<14}{:>22}{:>22}{:>22}{:>22}",
            class.class.name(),
            cell(class.kept_count, class.kept_bytes),
            cell(class.marked_count, class.marked_bytes),
            cell(class.pending_count, class.pending_bytes),
            cell(class.deleted_count, class.deleted_bytes),
        )
        .ok();
    }
    let frees = if expired.dry_run { "would free" } else { "freed" };
    writeln!(text, "\n{frees} {}", human::size(expired.freed_bytes)).ok();
    if expired.denied_count > 0 {
        let n = expired.denied_count;
        writeln!(
            text,
            "held: {n} objects cannot be deleted (a lock, or missing permission); the next run tries again"
        )
        .ok();
        for key in &expired.denied_objects {
            writeln!(text, "  {key}").ok();
        }
    }
    if !expired.unknown_objects.is_empty() {
        text.push_str("not Walpoint's, or of a newer version; left unchanged:\n");
        for key in &expired.unknown_objects {
            writeln!(text, "  {key}").ok();
        }
    }
    if expired.temporary_file_count > 0 {
        writeln!(text, "{} temporary files of killed writes were removed", expired.temporary_file_count).ok();
    }
    for note in &expired.notes {
        writeln!(text, "{}", human::hanging("note: ", note)).ok();
    }
    text
}

/// Whether there is anything of a class.
fn moves(class: &ClassReport) -> bool {
    class.kept_count + class.marked_count + class.pending_count + class.deleted_count > 0
}
