//! What `verify` tells a person.

use std::fmt::Write as _;
use std::time::Duration;

use walpoint_base::diagnostic::shown as printable;
use walpoint_repo::verify::Verified;
use walpoint_runtime::human;

use super::document::explained;

/// Findings that are told; the JSON has more.
const NAMED: usize = 50;

/// Everything that was looked at and found.
pub(super) fn of(verified: &Verified) -> String {
    let mut text =
        format!("Verified cluster {} in {} ({})\n", verified.cluster, verified.repository, verified.depth);
    // Writing to a String cannot fail.
    let mut line = |what: &str, said: String| {
        writeln!(text, "{}", human::hanging(&format!("  {what:<9} "), &said)).ok();
    };
    line(
        "kept",
        format!(
            "{}, {}, {}",
            human::count(verified.backup_count, "backup"),
            human::count(verified.pack_count, "pack"),
            human::count(verified.segment_count, "segment")
        ),
    );
    if verified.verified_bytes > 0 {
        line("read", format!("{} before compression", human::size(verified.verified_bytes)));
    }
    if verified.known_damaged_page_count > 0 {
        line(
            "pages",
            format!(
                "{} were damaged when they were backed up, as recorded then",
                verified.known_damaged_page_count
            ),
        );
    }
    if verified.backup_count == 0 {
        line(
            "NO BACKUP",
            "nothing can be restored\nHINT: Take one with \"archive-agent backup\".".to_owned(),
        );
    }
    line("took", human::span(Duration::try_from_secs_f64(verified.seconds).unwrap_or_default()));
    match verified.finding_count {
        0 => line("found", "no problems".to_owned()),
        n => line("FOUND", human::count(n, "problem")),
    }
    for finding in verified.findings.iter().take(NAMED) {
        writeln!(text, "\n  {}: {}", finding.kind, printable(&finding.object)).ok();
        let explained = explained(finding);
        writeln!(text, "    {}", explained.message()).ok();
        if !finding.backups.is_empty() {
            writeln!(text, "    backups: {}", finding.backups.join(", ")).ok();
        }
        if let Some(moments) = &finding.moments {
            writeln!(text, "    moments: {moments}").ok();
        }
        for part in explained.lines().skip(1) {
            writeln!(text, "    {part}").ok();
        }
    }
    let shown = u64::try_from(verified.findings.len().min(NAMED)).unwrap_or(u64::MAX);
    if verified.finding_count > shown {
        writeln!(text, "\n  and {} more", verified.finding_count - shown).ok();
    }
    for note in &verified.notes {
        writeln!(text, "{}", human::hanging("  note: ", note)).ok();
    }
    text
}
