//! A cluster in a repository for a terminal: its lineages with their timelines, windows, gaps and restore points, and its backups.

use std::fmt::Write;
use std::time::Duration;

use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, SegmentSize};
use walpoint_repo::catalog::Catalog;
use walpoint_repo::catalog::status::{BackupDetails, ClusterStatus, LineageStatus, TimelineStatus};
use walpoint_runtime::human;
use walpoint_storage::error::Result;
use walpoint_words::lineage;

/// Backups that are listed by name, the newest ones.
const BACKUPS: usize = 20;

/// The status for a person: graph, windows, gaps, restore points, backups. Lines end with a newline.
pub(super) async fn text(catalog: &mut Catalog, status: &ClusterStatus) -> Result<String> {
    let mut text = format!("Cluster {} in {} ({})\n", status.cluster, status.repository, status.url);
    let backups: Vec<BackupId> = catalog.backups().iter().map(|b| b.id).collect();
    for (one, said) in catalog.lineages_mut().iter_mut().zip(&status.lineages) {
        text.push_str(&lineage::heading(said));
        text.push_str(&lineage::drawing(one, &backups).await?);
        text.push_str(&details(said, one.lineage().segment_size));
    }
    status.damaged_lineages.iter().for_each(|damaged| text.push_str(&lineage::damaged(damaged)));
    if status.lineages.is_empty() && status.damaged_lineages.is_empty() {
        text.push_str("\nNothing was archived yet.\n");
    }
    text.push_str(&backup_lines(status));
    Ok(text)
}

/// Windows and gaps in words.
fn details(status: &LineageStatus, size: SegmentSize) -> String {
    let mut text = String::new();
    for timeline in &status.timelines {
        text.push_str(&timeline_lines(timeline, size));
    }
    if !status.restore_points.is_empty() {
        text.push_str("\n  Restore points\n");
    }
    for point in &status.restore_points {
        let made = point.time.map_or_else(|| "time unknown".to_owned(), |time| time.to_time().to_string());
        writeln!(text, "    {}  {made}  timeline {}, {}", shown(&point.name), point.timeline, point.lsn).ok();
    }
    for error in &status.errors {
        writeln!(text, "{}", human::hanging("  error     ", error)).ok();
    }
    for settled in &status.settlements {
        writeln!(text, "  settled   {settled}").ok();
    }
    text
}

fn timeline_lines(timeline: &TimelineStatus, size: SegmentSize) -> String {
    let mut text = format!("\n  Timeline {}", timeline.timeline);
    if let Some(parent) = &timeline.parent {
        write!(text, ", from timeline {} at {}", parent.timeline, parent.lsn).ok();
    }
    match (&timeline.first_segment, &timeline.last_segment) {
        (Some(first), Some(last)) => writeln!(
            text,
            ": {} of {}, {first} to {last}, {} stored",
            human::count(timeline.segment_count, "segment"),
            human::size(size.bytes()),
            human::size(timeline.stored_bytes)
        )
        .ok(),
        _ => writeln!(text, ": no whole segment in the archive").ok(),
    };
    for w in &timeline.windows {
        writeln!(text, "    window  {}", lineage::window(w)).ok();
    }
    if timeline.windows.is_empty() && timeline.segment_count > 0 {
        writeln!(text, "    nothing can be recovered: no complete backup with all its WAL").ok();
    }
    for gap in &timeline.gaps {
        let count = human::count(gap.segment_count, "segment");
        writeln!(text, "    gap     {} to {} ({count})", gap.first_segment, gap.last_segment).ok();
    }
    for broken in &timeline.breaks {
        let what = if broken.split_brain { "SPLIT BRAIN" } else { "gap" };
        let follows = match (broken.split_brain, broken.has_later_backup) {
            (true, _) => "\nHINT: \"archive-agent verify\" shows more.",
            (false, false) => "\nHINT: TAKE A BACKUP NOW: recovery cannot pass it.",
            (false, true) => "\nDETAIL: A backup was taken after it.",
        };
        let found = format!("before {}: {}{follows}", broken.segment, broken.reason);
        writeln!(text, "{}", human::hanging(&format!("    {what:<7} "), &found)).ok();
    }
    for name in &timeline.damaged_segments {
        writeln!(text, "    damaged {name}").ok();
    }
    text
}

fn backup_lines(status: &ClusterStatus) -> String {
    if status.backups.is_empty() {
        return "\nNo backup.\n".to_owned();
    }
    let mut text = "\nBackups\n".to_owned();
    let older = status.backups.len().saturating_sub(BACKUPS);
    if older > 0 {
        writeln!(text, "  {older} older ones").ok();
    }
    for backup in status.backups.iter().skip(older) {
        let started = backup.start_time.map(|time| time.to_string()).unwrap_or_default();
        write!(text, "  {}  {started}  timeline {}  {}", backup.id, backup.timeline, backup.state).ok();
        if let Some(details) = &backup.details {
            text.push_str(&details_of(details));
        }
        if let Some(damage) = &backup.manifest_damage {
            write!(text, ", DAMAGED: {damage}").ok();
        }
        text.push('\n');
    }
    text
}

/// Kind, sizes, how long it took, label and damage.
fn details_of(details: &BackupDetails) -> String {
    let BackupDetails { kind, seconds, label, damage, .. } = details;
    let took = human::span(Duration::try_from_secs_f64(*seconds).unwrap_or_default());
    let (size, new, stored) =
        (human::size(details.file_bytes), human::size(details.new_bytes), human::size(details.stored_bytes));
    let mut text = format!(", {kind}, {size} ({new} of it new, {stored} stored), {took}");
    // Writing to a String cannot fail.
    if !label.is_empty() {
        write!(text, ", \"{}\"", shown(label)).ok();
    }
    if let Some(damage) = damage {
        write!(text, ", DAMAGED: {damage}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;
    use walpoint_repo::catalog::status::SegmentsDocument;

    use super::*;

    #[test]
    fn a_timeline_is_told_with_its_gaps() {
        let name = "00000001000000000000000D".parse().unwrap();
        let timeline = TimelineStatus {
            timeline: TimelineId::FIRST,
            parent: None,
            first_segment: Some("000000010000000000000001".parse().unwrap()),
            last_segment: Some(name),
            segment_count: 12,
            stored_bytes: 3 << 20,
            windows: Vec::new(),
            gaps: vec![SegmentsDocument { first_segment: name, last_segment: name, segment_count: 1 }],
            breaks: Vec::new(),
            damaged_segments: Vec::new(),
        };
        let text = timeline_lines(&timeline, SegmentSize::DEFAULT);
        assert_eq!(
            text,
            "\n  Timeline 1: 12 segments of 16.0 MiB, 000000010000000000000001 to 00000001000000000000000D, 3.0 MiB stored\n    \
             nothing can be recovered: no complete backup with all its WAL\n    gap     00000001000000000000000D to \
             00000001000000000000000D (1 segment)\n"
        );
    }
}
