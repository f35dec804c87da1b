//! The page in the audit pack: a summary and every record. It loads nothing, runs nothing, and prints on paper. Everything that comes
//! from a record is escaped.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use jiff::Timestamp;
use walpoint_base::ClusterName;
use walpoint_base::diagnostic::shown;
use walpoint_repo::evidence::{ChainReport, Objective, Record};
use walpoint_runtime::human;

use super::summary::objective;
use super::tally::EvidenceSummary;
use super::verify::message;

/// What the page says besides the records.
pub(super) struct Page<'a> {
    /// The cluster.
    pub(super) cluster: &'a ClusterName,
    /// The repository's id.
    pub(super) repository: String,
    /// When it was made.
    pub(super) time: Timestamp,
    /// What was found when the chain was read.
    pub(super) report: &'a ChainReport,
    /// What the records add up to.
    pub(super) summary: &'a EvidenceSummary,
}

const STYLE: &str = "
body { font: 14px/1.4 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #111; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 0.5em 0 1.5em; }
th, td { border: 1px solid #bbb; padding: 0.25em 0.5em; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { background: #eee; }
code { font-size: 0.85em; overflow-wrap: anywhere; }
.failed, .problem { font-weight: bold; color: #a00; }
@page { size: A4 landscape; margin: 12mm; }
@media print { body { margin: 0; max-width: none; font-size: 9pt; } thead { display: table-header-group; } tr { break-inside: avoid; } }
";

/// A text of others in HTML.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in shown(self.0).chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// Writes the page.
pub(super) fn write(
    out: &mut impl Write,
    page: &Page<'_>,
    records: impl Iterator<Item = io::Result<Record>>,
) -> io::Result<()> {
    let title = format!("Evidence of cluster {}", page.cluster);
    let title = Escaped(&title);
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    )?;
    let head = page.report.head.map_or("none that can be read".to_owned(), |head| head.to_string());
    writeln!(
        out,
        "<p>Repository <code>{}</code>, exported {}.<br>{}. Last record: <code>{head}</code></p>",
        Escaped(&page.repository),
        human::time(page.time),
        human::count(page.report.records, "record")
    )?;
    problems(out, page.report)?;
    overview(out, page.summary)?;
    out.write_all(
        b"<h2>Records</h2>\n<table>\n<thead><tr><th>Number</th><th>Time (UTC)</th><th>Kind</th><th>Outcome</th><th>Recorded \
          by</th><th>Content</th></tr></thead>\n<tbody>\n",
    )?;
    for record in records {
        row(out, &record?)?;
    }
    out.write_all(b"</tbody>\n</table>\n</body>\n</html>\n")
}

fn problems(out: &mut impl Write, report: &ChainReport) -> io::Result<()> {
    if report.faults.is_empty() {
        return out.write_all(b"<p>The chain was verified when it was exported: no problems found.</p>\n");
    }
    out.write_all(b"<h2 class=\"problem\">Problems with the chain</h2>\n<ul>\n")?;
    for fault in &report.faults {
        writeln!(out, "<li>{}</li>", Escaped(&message(fault)))?;
    }
    out.write_all(b"</ul>\n")
}

fn overview(out: &mut impl Write, summary: &EvidenceSummary) -> io::Result<()> {
    out.write_all(
        b"<h2>Summary</h2>\n<table>\n<thead><tr><th>Kind</th><th>Records</th><th>Succeeded</th><th>Partial</th><th>Failed</th>\
          <th>Success rate</th></tr></thead>\n<tbody>\n",
    )?;
    for kind in &summary.kinds {
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}%</td></tr>",
            kind.kind.name(),
            kind.record_count,
            kind.success_count,
            kind.partial_count,
            kind.failed_count,
            kind.success_percent()
        )?;
    }
    out.write_all(b"</tbody>\n</table>\n<ul>\n")?;
    for (name, counts) in [("RTO", summary.rto), ("RPO", summary.rpo)] {
        writeln!(out, "<li>{name}: {}</li>", objective(counts))?;
    }
    out.write_all(b"</ul>\n<h2>Proven backups</h2>\n<table>\n<thead><tr><th>Backup</th><th>Last proof</th></tr></thead>\n<tbody>\n")?;
    for one in &summary.proven_backups {
        let (kind, number, time) = (one.kind.name(), one.number, human::time(one.time));
        writeln!(out, "<tr><td>{}</td><td>{kind}, record {number} at {time}</td></tr>", one.backup)?;
    }
    for backup in &summary.unproven_backups {
        writeln!(out, "<tr><td>{backup}</td><td class=\"problem\">none</td></tr>")?;
    }
    out.write_all(b"</tbody>\n</table>\n")
}

fn row(out: &mut impl Write, record: &Record) -> io::Result<()> {
    let said = &record.said;
    let (kind, outcome, time) = (said.kind.name(), said.outcome.name(), human::time(said.time));
    let (number, by) = (record.number, Escaped(&said.recorded_by));
    write!(
        out,
        "<tr><td>{number}</td><td>{time}</td><td>{kind}</td><td class=\"{outcome}\">{outcome}</td><td>{by}<br>{}</td><td>",
        Escaped(&said.program)
    )?;
    let parts = content(record);
    for (at, (name, text)) in parts.iter().enumerate() {
        let end = if at > 0 { "<br>" } else { "" };
        write!(out, "{end}{name}: {}", Escaped(text))?;
    }
    out.write_all(b"</td></tr>\n")
}

/// What a record says, by name.
fn content(record: &Record) -> Vec<(&'static str, String)> {
    let said = &record.said;
    let mut parts = Vec::new();
    let mut add = |name: &'static str, text: Option<String>| parts.extend(text.map(|text| (name, text)));
    let span = |seconds: f64| human::span(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let measured = |objective: &Objective| {
        let verdict = match objective.met {
            None => String::new(),
            Some(met) => {
                let target = span(objective.target_seconds.unwrap_or_default());
                format!(" (objective {target}: {})", if met { "met" } else { "missed" })
            }
        };
        span(objective.measured_seconds) + &verdict
    };
    add("scenario", said.scenario.clone());
    add("name of the scenario", said.scenario_name.clone());
    add("lineage", said.lineage.map(|lineage| lineage.to_string()));
    for backup in &said.backups {
        add("backup", Some(backup.to_string()));
    }
    add("target", said.target.clone());
    add("took", said.seconds.map(span));
    add("RTO", said.rto.as_ref().map(measured));
    add("RPO", said.rpo.as_ref().map(measured));
    let lists = [("participant", &said.participants), ("issue", &said.issues), ("to do", &said.action_items)];
    for (name, texts) in lists {
        texts.iter().for_each(|text| add(name, Some(text.clone())));
    }
    for file in &said.attachments {
        let size = human::size(file.size_bytes);
        add("attachment", Some(format!("{}, {size}, SHA-256 {}", file.name, file.sha256)));
    }
    add("note", said.note.clone());
    parts
}

#[cfg(test)]
mod tests {
    use walpoint_repo::evidence::{Attachment, Draft, Fault, FaultKind, Kind, Outcome};

    use super::super::period::Period;
    use super::super::tally::Tally;
    use super::*;

    #[test]
    fn nothing_that_others_wrote_is_markup() {
        let hostile = "<script>alert(1)</script>\"'&\n\u{1b}";
        let text = || hostile.to_owned();
        let mut said = Draft::new(Kind::Other, Outcome::Failed, text(), text());
        (said.target, said.scenario, said.note) = (Some(text()), Some(text()), Some(text()));
        (said.participants, said.issues, said.action_items) = (vec![text()], vec![text()], vec![text()]);
        said.attachments = vec![Attachment { name: text(), size_bytes: 1, sha256: text() }];
        (said.rto, said.seconds) = (Some(Objective::of(Some(60.0), f64::MAX)), Some(-1.0));
        let cluster = "main".parse().unwrap();
        let record = Record { number: 1, previous_hash: None, cluster, repository_id: text(), said };
        let fault = Fault { kind: FaultKind::Damaged, first: 1, last: 1, what: text() };
        let report = ChainReport { records: 1, head: None, faults: vec![fault] };
        let mut tally = Tally::of(Period::default());
        tally.add(&record);
        let page = Page {
            cluster: &"main".parse().unwrap(),
            repository: text(),
            time: Timestamp::UNIX_EPOCH,
            report: &report,
            summary: &tally.summary(),
        };
        let mut html = Vec::new();
        write(&mut html, &page, std::iter::once(Ok(record))).unwrap();
        let html = String::from_utf8(html).unwrap();
        assert!(
            !html.contains("<script") && !html.contains('\u{1b}') && !html.contains("alert(1)<"),
            "{html}"
        );
        assert_eq!(
            html.matches("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;").count(),
            12,
            "{html}"
        );
        for part in ["http://", "https://", "url(", "@import", "<img", "<link"] {
            assert!(!html.contains(part), "{part}");
        }
        let tags = |name: &str| {
            (html.matches(&format!("<{name}")).count(), html.matches(&format!("</{name}>")).count())
        };
        for name in ["table", "tr", "td", "li", "ul", "tbody", "style"] {
            let (opened, closed) = tags(name);
            assert_eq!(opened, closed, "{name}");
        }
    }
}
