//! What a drill found, as one HTML page that stands alone and prints well.
//!
//! Names of clusters, databases, tables and checks are others' words, and so are a server's messages: everything that is put into the
//! page is escaped, and the page runs no script and loads nothing.

use jiff::Timestamp;
use walpoint_base::ClusterName;
use walpoint_runtime::human;

use super::document::{DrillReport, DrillResult, span};
use crate::checks::CheckOutcome;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1c1f23}\
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}\
table{border-collapse:collapse;width:100%}th,td{border-bottom:1px solid #d5d9de;padding:.35rem .6rem;text-align:left;\
vertical-align:top;overflow-wrap:anywhere}th{font-weight:600}td.n{text-align:right;white-space:nowrap}\
.passed{color:#12692f}.failed{color:#b3151c;font-weight:600}.skipped{color:#6a4f00}p.sub{margin:0;color:#4c535b}\
@media print{body{margin:0;max-width:none;font-size:10pt}h2{break-after:avoid}tr{break-inside:avoid}thead{display:table-header-group}}";

/// The page.
pub(super) fn page(report: &DrillReport) -> String {
    let verdict = match report.result {
        DrillResult::Passed => ("passed", "Passed"),
        DrillResult::Failed => ("failed", "Failed"),
    };
    let mut page = begin(Some(&report.moment.cluster), verdict, report.start_time);
    facts(&mut page, report);
    checks(&mut page, report);
    tables(&mut page, report);
    if !report.notes.is_empty() {
        page.push_str("<h2>Notes</h2>\n<ul>\n");
        for note in &report.notes {
            page.push_str(&format!("<li>{}</li>\n", escaped(note).replace('\n', "<br>")));
        }
        page.push_str("</ul>\n");
    }
    page.push_str(END);
    page
}

/// The page of a drill that could not be made: the page of an earlier one would be taken for it.
pub(super) fn not_run(cluster: Option<&ClusterName>, started: Timestamp, why: &str) -> String {
    let mut page = begin(cluster, ("failed", "Could not run"), started);
    page.push_str(&format!("<p>{}</p>\n{END}", escaped(why).replace('\n', "<br>")));
    page
}

const END: &str = "</body>\n</html>\n";

/// The beginning of a page.
fn begin(cluster: Option<&ClusterName>, (class, verdict): (&str, &str), started: Timestamp) -> String {
    let title = cluster.map_or_else(
        || "Restore drill".to_owned(),
        |cluster| format!("Restore drill of {}", escaped(cluster.as_str())),
    );
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}: <span class=\"{class}\">{verdict}</span></h1>\n\
         <p class=\"sub\">{}</p>\n",
        human::time(started)
    )
}

fn facts(page: &mut String, report: &DrillReport) {
    let measured = |seconds: Option<f64>, target: Option<f64>| {
        let value = seconds.map_or_else(|| "unknown".to_owned(), |seconds| human::span(span(seconds)));
        value + &target.map_or(String::new(), |target| format!(" (target: {})", human::span(span(target))))
    };
    let newest = report.newest_commit_time.map_or_else(|| "unknown".to_owned(), human::time);
    let rows = [
        ("Recovery time", measured(report.rto_seconds, report.rto_target_seconds)),
        ("Recovery point", measured(report.rpo_seconds, report.rpo_target_seconds)),
        ("Newest recoverable commit", newest),
        ("Target", format!("{} on timeline {}", report.moment.target, report.moment.timeline)),
        ("Recovered to", report.moment.replayed_lsn.to_string()),
        ("Backup", report.moment.backup.to_string()),
        ("Repository", report.moment.repository.clone()),
        ("Lineage", report.moment.lineage.to_string()),
        ("PostgreSQL", report.server_version.clone()),
        (
            "Restored",
            format!(
                "{} in {}, in {}",
                human::size(report.restored_bytes),
                human::count(report.file_count, "file"),
                human::span(span(report.restore_seconds))
            ),
        ),
        ("Recovery", human::span(span(report.recovery_seconds))),
        ("Checks", human::span(span(report.check_seconds))),
    ];
    page.push_str("<h2>Summary</h2>\n<table>\n");
    let scenario = report.scenario.as_ref().map(|scenario| ("Scenario", scenario.to_string()));
    for (name, value) in scenario.into_iter().chain(rows) {
        page.push_str(&format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n", escaped(&value)));
    }
    page.push_str("</table>\n");
}

fn checks(page: &mut String, report: &DrillReport) {
    page.push_str(
        "<h2>Checks</h2>\n<table>\n<thead><tr><th>Check</th><th>Result</th><th>Details</th><th>Took</th></tr></thead>\n",
    );
    for check in &report.checks {
        let (class, result) = match check.result {
            CheckOutcome::Passed => ("passed", "passed"),
            CheckOutcome::Failed => ("failed", "failed"),
            CheckOutcome::Skipped => ("skipped", "skipped"),
        };
        let name = match &check.database {
            Some(database) => format!("{} (database {database})", check.name),
            None => check.name.clone(),
        };
        let row = format!(
            "<tr><td>{}</td><td class=\"{class}\">{result}</td><td>{}</td><td class=\"n\">{}</td></tr>\n",
            escaped(&name),
            escaped(check.message.as_deref().unwrap_or_default()).replace('\n', "<br>"),
            human::span(span(check.seconds))
        );
        page.push_str(&row);
    }
    for missed in &report.missed {
        let row = format!(
            "<tr><td>target</td><td class=\"failed\">missed</td><td>{}</td><td></td></tr>\n",
            escaped(missed)
        );
        page.push_str(&row);
    }
    page.push_str("</table>\n");
}

fn tables(page: &mut String, report: &DrillReport) {
    if report.tables.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Largest tables</h2>\n<table>\n<thead><tr><th>Database</th><th>Schema</th><th>Table</th><th>Size</th><th>Rows</th>\
         </tr></thead>\n",
    );
    for table in &report.tables {
        let about = if table.counted { "" } else { "about " };
        let row = format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{about}{}</td></tr>\n",
            escaped(&table.database),
            escaped(&table.schema),
            escaped(&table.table),
            human::size(table.total_bytes),
            table.row_count
        );
        page.push_str(&row);
    }
    page.push_str("</table>\n");
}

/// A text as HTML, within an element or a quoted attribute. What could control the direction of text or a terminal becomes visible.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' => escaped.push('\n'),
            '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => escaped.extend(c.escape_unicode()),
            c if c.is_control() => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_text() {
        let hostile = "<script>alert(1)</script>&\"'\u{202E}\u{7}\n";
        let text = escaped(hostile);
        assert_eq!(text, "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;\\u{202e}\\u{7}\n");
    }

    #[test]
    fn a_drill_that_could_not_be_made_has_a_page_that_says_why() {
        let (cluster, time) = ("main".parse().unwrap(), "2026-11-21T10:00:00Z".parse().unwrap());
        let page = not_run(Some(&cluster), time, "no space\nHINT: <b>");
        assert!(
            page.contains("<h1>Restore drill of main: <span class=\"failed\">Could not run</span></h1>"),
            "{page}"
        );
        assert!(page.contains("<p>no space<br>HINT: &lt;b&gt;</p>") && page.ends_with("</html>\n"), "{page}");
        assert!(not_run(None, time, "x").contains("<title>Restore drill</title>"));
    }
}
