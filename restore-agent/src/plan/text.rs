//! Plans and refusals for a person.

use std::fmt::Write;

use walpoint_base::diagnostic::shown;
use walpoint_base::{Diagnostic, RecoveryTarget, SegmentSize};
use walpoint_plan::restore::{MomentTarget, RestorePlan, StopRule, Unreachable};
use walpoint_runtime::human;

use super::document::TablespaceDocument;
use super::words::{CommandLine, hints, options, why};
use crate::shell;
use crate::wal::build::built_from;

/// A plan, in lines that end with a newline.
pub(super) fn plan(plan: &RestorePlan, notes: &[String], size: SegmentSize) -> String {
    let mut text = Lines::default();
    text.row("Restore to", &format!("{}, on timeline {}", plan.target, plan.timeline));
    let backup = &plan.backup;
    text.row("Lineage", &plan.lineage.to_string());
    let label =
        if backup.label.is_empty() { String::new() } else { format!("  \"{}\"", shown(&backup.label)) };
    text.row("Backup", &format!("{}{label}", backup.id));
    text.row(
        "",
        &format!("ended {} at {}, {} in files", backup.ended, backup.end, human::size(backup.bytes)),
    );
    let path: Vec<String> = plan
        .path
        .iter()
        .map(|step| match step.end {
            Some(end) => format!("timeline {} up to {end}", step.timeline),
            None => format!("timeline {}", step.timeline),
        })
        .collect();
    if path.len() > 1 {
        text.row("Path", &path.join(", then "));
    }
    let e = &plan.estimate;
    let segments = human::count(e.wal_segments, "segment");
    text.row(
        "WAL",
        &format!("{segments}, {}, from {} to {}", human::size(e.wal_bytes), backup.start(), plan.until),
    );
    for range in &plan.wal {
        text.row("", &range.describe(size));
    }
    if let Some(fork) = &plan.fork {
        text.row("", &format!("{} (built from {} up to {})", fork.name, built_from(fork), fork.cut));
    }
    text.row("Ends", &end(plan));
    text.row("Takes", &format!("about {}", human::span(e.duration)));
    text.row("Settings", &format!("{}, and in postgresql.auto.conf:", plan.signal.file_name()));
    for setting in &plan.settings {
        text.row("", &shown(&setting.line()));
    }
    text.row("Again by", &shell::line(&options::of_plan(plan)));
    for note in notes {
        text.row("Note", note);
    }
    text.0
}

/// Tablespaces that replay creates, in lines that end with a newline.
pub(super) fn tablespaces(created: &[TablespaceDocument]) -> String {
    let mut text = Lines::default();
    for TablespaceDocument { lsn, oid, location, state, note } in created {
        let place = shown(location);
        let known = format!("at {lsn} replay creates tablespace {oid} in {place}: {state}");
        text.row("Tablespace", note.as_ref().unwrap_or(&known));
    }
    text.0
}

/// Where and how recovery ends.
fn end(plan: &RestorePlan) -> String {
    let Some(stop) = &plan.stop else {
        return match plan.target {
            RecoveryTarget::Immediate => {
                format!("at {}, where the backup is consistent", plan.backup.end)
            }
            _ => format!("where the archive ends, at {}", plan.until),
        };
    };
    let replayed = StopRule::of(&plan.target, plan.inclusive).is_some_and(|r| r.applies_the_record());
    let side = if replayed { "after" } else { "before" };
    let what = match (&plan.target, stop.xid) {
        (_, Some(xid)) => format!("the end of transaction {xid}"),
        (RecoveryTarget::Name(_), _) => "the restore point".to_owned(),
        _ => "the record".to_owned(),
    };
    let time = stop.time.map(|t| format!(" of {t}")).unwrap_or_default();
    format!("{side} {what}{time} at {}", stop.record)
}

/// A refusal, in lines that end with a newline. `given`: the command that it is about.
pub(super) fn unreachable(refusal: &Unreachable, given: &CommandLine) -> String {
    let mut text = Lines::default();
    text.0.push_str(&format!("Cannot restore to {} on timeline {}:\n", refusal.target, refusal.timeline));
    let reason = Diagnostic::new(why(&refusal.why));
    text.0.push_str(&format!("{}.\n", reason.message()));
    for detail in reason.details() {
        text.0.push_str(&format!("DETAIL: {detail}\n"));
    }
    for range in &refusal.missing {
        text.row("Missing", &range.describe(refusal.segment_size));
    }
    for moment in &refusal.nearest {
        let side = if moment.earlier { "Before" } else { "After" };
        let time = moment.time.map(|t| format!("{t}, ")).unwrap_or_default();
        text.row(side, &format!("{time}{} on timeline {}", moment.lsn, moment.timeline));
        let rest = match moment.target {
            MomentTarget::End => " and no target: all that is archived; then the server takes writes",
            MomentTarget::Record(_) | MomentTarget::Consistent(_) => "",
        };
        text.row("", &format!("reached by {}{rest}", options::of_moment(moment).join(" ")));
    }
    let hints = refusal.hints.iter().map(|hint| hints::hint(hint, given));
    for hint in reason.hints().iter().cloned().chain(hints) {
        hint.lines().for_each(|line| text.0.push_str(&format!("HINT: {line}\n")));
    }
    text.0
}

/// Rows of a word and a text beside it.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn row(&mut self, word: &str, text: &str) {
        // Writing to a String cannot fail.
        writeln!(self.0, "{}", human::hanging(&format!("{word:<11} "), text)).ok();
    }
}
