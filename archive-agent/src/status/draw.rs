//! A cluster's timelines drawn along the axis of WAL positions, for a terminal.
//!
//! ```text
//! timeline 1   ---B=====B=====!--B=====
//! timeline 2              `===B=========
//! ```
//!
//! `=` can be recovered, `-` is WAL that no backup reaches, `!` is missing, `B` is a backup, a backquote is a fork.

use std::fmt::Write;
use std::time::Duration;

use walpoint_base::{BackupId, Lsn, SegmentSize, TimelineId};
use walpoint_repo::catalog::status::{BackupDetails, ClusterStatus, LineageStatus, TimelineStatus};
use walpoint_repo::catalog::{Catalog, LineageCatalog};
use walpoint_runtime::human;
use walpoint_storage::error::Result;

/// Columns of the axis.
const WIDTH: u64 = 60;

/// Backups that are listed by name, the newest ones.
const BACKUPS: usize = 20;

/// A stretch of WAL positions and the character that stands for it.
type Mark = (Lsn, Lsn, char);

/// The status for a person: graph, windows, gaps, restore points, backups. Lines end with a newline.
pub(super) async fn text(catalog: &mut Catalog, status: &ClusterStatus) -> Result<String> {
    let mut text = format!("Cluster {} in {} ({})\n", status.cluster, status.repository, status.store);
    let backups: Vec<BackupId> = catalog.backups().iter().map(|b| b.id).collect();
    for (lineage, said) in catalog.lineages_mut().iter_mut().zip(&status.lineages) {
        writeln!(text, "\nLineage {}, PostgreSQL {}", said.lineage, said.postgresql).ok();
        text.push_str(&split_off(said));
        text.push_str(&drawing(lineage, &backups).await?);
        text.push_str(&details(said, lineage.lineage().segment_size));
    }
    for damaged in &status.damaged_lineages {
        writeln!(
            text,
            "\nLineage {}: DAMAGED, nothing else is known of it: {}",
            damaged.lineage, damaged.what
        )
        .ok();
    }
    if status.lineages.is_empty() && status.damaged_lineages.is_empty() {
        text.push_str("\nNothing was archived yet.\n");
    }
    text.push_str(&backup_lines(status));
    Ok(text)
}

async fn drawing(lineage: &mut LineageCatalog, backups: &[BackupId]) -> Result<String> {
    let parts = lineage.parts().await?;
    let size = lineage.lineage().segment_size;
    let mut rows: Vec<(TimelineId, Vec<Mark>)> = Vec::new();
    for part in &parts {
        let mut marks = Vec::new();
        for run in lineage.wal(part.timeline).into_iter().flat_map(|w| w.runs().iter()) {
            marks.push((run.first.start(size), run.last.end(size), '-'));
        }
        marks.extend(part.windows.iter().map(|w| (w.from, w.until, '=')));
        marks.extend(part.gaps.iter().map(|g| (g.first.start(size), g.last.end(size), '!')));
        let own = backups.iter().filter(|id| id.timeline() == part.timeline);
        // Backups of another lineage may bear the same timeline; only those beside WAL of this one are drawn.
        let beside: Vec<Mark> = own
            .map(|id| (id.start(), id.start() + 1, 'B'))
            .filter(|b| marks.iter().any(|m| m.0 <= b.0 && b.0 < m.1))
            .collect();
        marks.extend(beside);
        if let Some(parent) = lineage.facts().graph.history(part.timeline).and_then(|h| h.parent()) {
            marks.push((parent.switch, parent.switch + 1, '`'));
        }
        rows.push((part.timeline, marks));
    }
    Ok(draw(&rows))
}

/// Where a lineage comes from that was split off, and what it still lacks.
fn split_off(status: &LineageStatus) -> String {
    let Some(parent) = &status.parent else { return String::new() };
    let mut text = format!("  split off from lineage {}", parent.lineage);
    match (parent.timeline, &parent.lsn) {
        (Some(timeline), Some(lsn)) => writeln!(text, " at {lsn} on timeline {timeline}").ok(),
        _ => writeln!(text, ", with which no common WAL is known").ok(),
    };
    if !parent.own_backup {
        let lacks = match parent.lsn {
            Some(_) => "until then a restore needs a backup of the parent, from before the fork",
            None => "until then nothing in it can be restored",
        };
        writeln!(text, "  NO BACKUP of its own: take one now (archive-agent backup); {lacks}").ok();
    }
    text
}

/// Rows on one axis. Later marks are drawn over earlier ones.
fn draw(rows: &[(TimelineId, Vec<Mark>)]) -> String {
    let all = || rows.iter().flat_map(|(_, marks)| marks);
    let (Some(first), Some(last)) = (all().map(|m| m.0).min(), all().map(|m| m.1).max()) else {
        return String::new();
    };
    let span = last.since(first).max(1);
    let column = |lsn: Lsn| {
        let at = u128::from(lsn.since(first)) * u128::from(WIDTH) / u128::from(span);
        usize::try_from(at).unwrap_or(usize::MAX)
    };
    let mut text = String::new();
    for (timeline, marks) in rows {
        let mut row = vec![' '; usize::try_from(WIDTH).unwrap_or_default()];
        for &(from, until, c) in marks {
            let end = column(until).max(column(from) + 1);
            row.iter_mut().take(end).skip(column(from)).for_each(|place| *place = c);
        }
        let row: String = row.into_iter().collect();
        writeln!(text, "  timeline {:<4} {}", timeline.get(), row.trim_end()).ok();
    }
    let (from, to) = (first.to_string(), last.to_string());
    let width = usize::try_from(WIDTH).unwrap_or_default().saturating_sub(from.len());
    writeln!(text, "                {from}{to:>width$}").ok();
    text
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
        let made = point.time.as_deref().unwrap_or("time unknown");
        writeln!(text, "    {}  {made}  timeline {}, {}", point.name, point.timeline, point.lsn).ok();
    }
    for problem in &status.problems {
        writeln!(text, "  problem   {problem}").ok();
    }
    for settled in &status.settled {
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
            human::count(timeline.segments, "segment"),
            human::size(size.bytes()),
            human::size(timeline.stored_bytes)
        )
        .ok(),
        _ => writeln!(text, ": no whole segment in the archive").ok(),
    };
    for w in &timeline.windows {
        let known = |time: &Option<String>| time.clone().unwrap_or_else(|| "no commit yet".to_owned());
        let start = if w.continued { "fork" } else { "backup" };
        writeln!(
            text,
            "    window  {} ({start}, {}) to {} ({}), {} backups",
            known(&w.from_time),
            w.from_lsn,
            known(&w.until_time),
            w.until_lsn,
            w.backups
        )
        .ok();
    }
    if timeline.windows.is_empty() && timeline.segments > 0 {
        writeln!(text, "    nothing can be recovered: no complete backup with all its WAL").ok();
    }
    for gap in &timeline.gaps {
        writeln!(text, "    gap     {} to {} ({})", gap.first, gap.last, human::count(gap.count, "segment"))
            .ok();
    }
    for broken in &timeline.breaks {
        let what = if broken.split_brain { "SPLIT BRAIN" } else { "gap" };
        let advice = match (broken.split_brain, broken.passed) {
            (true, _) => "archive-agent verify says more",
            (false, false) => "TAKE A BACKUP NOW: recovery cannot pass it",
            (false, true) => "a backup was taken behind it",
        };
        writeln!(text, "    {what:<7} before {}: {}; {advice}", broken.segment, broken.what).ok();
    }
    for name in &timeline.damaged {
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
        let started = backup.started.clone().unwrap_or_default();
        write!(text, "  {}  {started}  timeline {}  {}", backup.id, backup.timeline, backup.state).ok();
        if let Some(details) = &backup.details {
            text.push_str(&details_of(details));
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
        (human::size(details.bytes), human::size(details.new_bytes), human::size(details.stored_bytes));
    let mut text = format!(", {kind}, {size} ({new} of it new, {stored} stored), {took}");
    // Writing to a String cannot fail.
    if !label.is_empty() {
        write!(text, ", \"{label}\"").ok();
    }
    if let Some(damage) = damage {
        write!(text, ", DAMAGED: {damage}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use walpoint_repo::catalog::status::SegmentsDocument;

    use super::*;

    #[test]
    fn timelines_are_drawn_on_one_axis() {
        let tli = |id| TimelineId::new(id).unwrap();
        let at = |n: u64| Lsn(n * 1000);
        let rows = [
            (
                tli(1),
                vec![
                    (at(0), at(60), '-'),
                    (at(10), at(40), '='),
                    (at(40), at(42), '!'),
                    (at(10), at(10) + 1, 'B'),
                ],
            ),
            (tli(2), vec![(at(30), at(50), '='), (at(30), at(30) + 1, '`')]),
        ];
        assert_eq!(
            draw(&rows),
            "  timeline 1    ----------B=============================!!------------------\n  \
               timeline 2                                  `===================\n                \
               0/0                                                   0/EA60\n"
        );
        assert_eq!(draw(&[]), "");
    }

    #[test]
    fn a_timeline_is_told_with_its_gaps() {
        let name = "00000001000000000000000D".to_owned();
        let timeline = TimelineStatus {
            timeline: 1,
            parent: None,
            first_segment: Some("000000010000000000000001".to_owned()),
            last_segment: Some(name.clone()),
            segments: 12,
            stored_bytes: 3 << 20,
            windows: Vec::new(),
            gaps: vec![SegmentsDocument { first: name.clone(), last: name, count: 1 }],
            breaks: Vec::new(),
            damaged: Vec::new(),
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
