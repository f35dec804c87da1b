//! A cluster's timelines drawn along the axis of WAL positions, for a terminal.
//!
//! ```text
//! timeline 1   ---B=====B=====!--B=====
//! timeline 2              `===B=========
//! ```
//!
//! `=` can be recovered, `-` is WAL that no backup reaches, `!` is missing, `B` is a backup, a backquote is a fork.

use std::fmt::Write;

use walpoint_base::{BackupId, Lsn, SegmentSize, TimelineId};
use walpoint_plan::restore::text::bytes;
use walpoint_storage::error::Result;

use super::status::{BackupDetails, ClusterStatus, LineageStatus};
use super::{Catalog, LineageCatalog};

/// Columns of the axis.
const WIDTH: u64 = 60;

/// Backups that are listed by name, the newest ones.
const BACKUPS: usize = 20;

/// A stretch of WAL positions and the character that stands for it.
type Mark = (Lsn, Lsn, char);

impl Catalog {
    /// The status for a person: graph, windows, gaps, restore points, backups. Lines end with a newline.
    pub async fn status_text(&mut self, status: &ClusterStatus) -> Result<String> {
        let mut text = format!("Cluster {} in {} ({})\n", status.cluster, status.repository, status.store);
        let backups: Vec<BackupId> = self.backups().iter().map(|b| b.id).collect();
        for (lineage, said) in self.lineages_mut().iter_mut().zip(&status.lineages) {
            writeln!(text, "\nLineage {}, PostgreSQL {}", said.lineage, said.postgresql).ok();
            text.push_str(&split_off(said));
            text.push_str(&lineage.drawing(&backups).await?);
            text.push_str(&details(said, lineage.lineage().segment_size));
        }
        if status.lineages.is_empty() {
            text.push_str("\nNothing was archived yet.\n");
        }
        text.push_str(&backup_lines(status));
        Ok(text)
    }
}

impl LineageCatalog {
    async fn drawing(&mut self, backups: &[BackupId]) -> Result<String> {
        let parts = self.parts().await?;
        let size = self.lineage().segment_size;
        let mut rows: Vec<(TimelineId, Vec<Mark>)> = Vec::new();
        for part in &parts {
            let mut marks = Vec::new();
            for run in self.wal(part.timeline).into_iter().flat_map(|w| w.runs().iter()) {
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
            if let Some(parent) = self.facts().graph.history(part.timeline).and_then(|h| h.parent()) {
                marks.push((parent.switch, parent.switch + 1, '`'));
            }
            rows.push((part.timeline, marks));
        }
        Ok(draw(&rows))
    }
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
        write!(text, "\n  Timeline {}", timeline.timeline).ok();
        if let Some(parent) = &timeline.parent {
            write!(text, ", from timeline {} at {}", parent.timeline, parent.lsn).ok();
        }
        match (&timeline.first_segment, &timeline.last_segment) {
            (Some(first), Some(last)) => writeln!(
                text,
                ": {} segments of {}, {first} to {last}, {} stored",
                timeline.segments,
                bytes(size.bytes()),
                bytes(timeline.stored_bytes)
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
            writeln!(text, "    gap     {} to {} ({} segments)", gap.first, gap.last, gap.count).ok();
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
    let (size, new, stored) = (bytes(details.bytes), bytes(details.new_bytes), bytes(details.stored_bytes));
    let mut text = format!(", {kind}, {size} ({new} of it new, {stored} stored), {seconds:.0} s");
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
}
