//! What both agents show of a cluster's lineages: timelines drawn along the axis of WAL positions, for a terminal, and where a lineage
//! comes from.
//!
//! ```text
//! timeline 1   ---B=====B=====!--B=====
//! timeline 2              `===B=========
//! ```
//!
//! `=` can be recovered, `-` is WAL that no backup reaches, `!` is missing, `B` is a backup, a backquote is a fork.

use std::fmt::Write;

use walpoint_base::{BackupId, Lsn, PgTimestamp, TimelineId};
use walpoint_repo::catalog::LineageCatalog;
use walpoint_repo::catalog::status::{DamagedLineageStatus, LineageStatus, WindowStatus};
use walpoint_runtime::human;
use walpoint_storage::error::Result;

/// Columns of the axis.
const WIDTH: u64 = 60;

/// A range of WAL positions and the character that stands for it.
type Mark = (Lsn, Lsn, char);

/// The timelines of a lineage on one axis, with those of the backups that begin in its WAL.
pub async fn drawing(lineage: &mut LineageCatalog, backups: &[BackupId]) -> Result<String> {
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

/// Which lineage it is; of one that was split off also where it comes from, and what it still lacks.
pub fn heading(status: &LineageStatus) -> String {
    let mut text = format!("\nLineage {}, PostgreSQL {}\n", status.lineage, status.postgresql_major);
    let Some(parent) = &status.parent else { return text };
    write!(text, "  split off from lineage {}", parent.lineage).ok();
    match (parent.timeline, parent.lsn) {
        (Some(timeline), Some(lsn)) => writeln!(text, " at {lsn} on timeline {timeline}").ok(),
        _ => writeln!(text, ", with which no common WAL is known").ok(),
    };
    if !parent.has_own_backup {
        let lacks = match parent.lsn {
            Some(_) => "until then a restore needs a backup of the parent, from before the fork",
            None => "until then nothing in it can be restored",
        };
        let lacks = format!("{lacks}\nHINT: Take a backup now (archive-agent backup).");
        writeln!(text, "{}", human::hanging("  NO BACKUP of its own: ", &lacks)).ok();
    }
    text
}

/// A lineage of which nothing else is known.
pub fn damaged(status: &DamagedLineageStatus) -> String {
    let lead = format!("Lineage {}: DAMAGED, nothing else is known of it: ", status.lineage);
    format!("\n{lead}{}\n", status.error)
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

/// From when to when every moment can be recovered.
pub fn window(w: &WindowStatus) -> String {
    // Where no transaction has ended, the position alone tells where it is.
    let at = |time: Option<PgTimestamp>, what: &str, lsn: Lsn| match time {
        Some(time) => format!("{} ({what}{lsn})", time.to_time()),
        None => format!("{what}{lsn}"),
    };
    // What the last transaction before a backup's end ended at says nothing about where the window ends.
    let until = match w.until_time.filter(|until| w.from_time.is_none_or(|from| *until >= from)) {
        Some(time) => at(Some(time), "", w.until_lsn),
        None => format!("{} (no transaction has ended since)", w.until_lsn),
    };
    let start = if w.continues_parent { "fork, " } else { "backup, " };
    format!(
        "{} to {}, {}",
        at(w.from_time, start, w.from_lsn),
        until,
        human::count(w.backup_count as u64, "backup")
    )
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
