//! What was found: one line for each thing that was looked at, with what to do where something is wrong.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::Diagnostic;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "CheckResult")]
pub(crate) enum Grade {
    /// It works.
    Ok,
    /// It works, but the operator should know.
    Warning,
    /// It does not work.
    Failed,
}

impl Grade {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// A check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Check")]
pub(crate) struct Line {
    /// What was checked, such as `connection` or `repository main: lineage`.
    #[serde(rename = "check")]
    pub(crate) what: String,
    /// Its result.
    #[serde(rename = "result")]
    pub(crate) grade: Grade,
    /// What was found.
    #[serde(rename = "message")]
    pub(crate) found: String,
    /// Facts about it, as full sentences; several are lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    /// What to do about it, as full sentences; several are lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

impl Line {
    /// Which part of a repository it is about, if it is about that one: none is all of it.
    fn part_of(&self, repository: &str) -> Option<&str> {
        let part = self.what.strip_prefix("repository ")?.strip_prefix(repository)?;
        if part.is_empty() { Some(part) } else { part.strip_prefix(": ") }
    }

    /// What was found and what to do, behind `what`.
    fn diagnostic(&self, what: &str) -> Diagnostic {
        let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
        let found = Diagnostic::new(format!("{what}{}", self.found));
        let found = self.detail.iter().flat_map(|detail| detail.lines()).fold(found, Diagnostic::detail);
        self.hint.iter().flat_map(|hint| hint.lines()).fold(found, Diagnostic::hint)
    }
}

/// Everything that was looked at, in order.
#[derive(Debug, Default)]
pub(crate) struct CheckReport {
    lines: Vec<Line>,
}

impl CheckReport {
    /// As it should be.
    pub(crate) fn ok(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.add(what.into(), Grade::Ok, found.into(), "");
    }

    /// It works, but somebody should know.
    pub(crate) fn warning(&mut self, what: impl Into<String>, found: impl Into<String>, hint: &str) {
        self.add(what.into(), Grade::Warning, found.into(), hint);
    }

    /// It does not work.
    pub(crate) fn failed(&mut self, what: impl Into<String>, found: impl Into<String>, hint: &str) {
        self.add(what.into(), Grade::Failed, found.into(), hint);
    }

    /// With a grade that was found, too.
    pub(crate) fn graded(&mut self, what: impl Into<String>, grade: Grade, found: impl Into<String>) {
        self.add(what.into(), grade, found.into(), "");
    }

    /// It does not work, and the error says itself what to do.
    pub(crate) fn error(&mut self, what: impl Into<String>, error: &anyhow::Error) {
        self.add(what.into(), Grade::Failed, walpoint_words::format_chain(error), "");
    }

    /// Adds what a fallible look found; its value if it went well.
    pub(crate) fn take<T>(&mut self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        result.inspect_err(|error| self.error(what, error)).ok()
    }

    /// What was found may have details and hints of its own.
    fn add(&mut self, what: String, grade: Grade, found: String, hint: &str) {
        let found = Diagnostic::new(if hint.is_empty() { found } else { format!("{found}\nHINT: {hint}") });
        let lines = |parts: &[String]| (!parts.is_empty()).then(|| parts.join("\n"));
        let (detail, hint) = (lines(found.details()), lines(found.hints()));
        self.lines.push(Line { what, grade, found: found.message().to_owned(), detail, hint });
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// How many lines are of that grade.
    pub(crate) fn count(&self, grade: Grade) -> usize {
        self.lines.iter().filter(|line| line.grade == grade).count()
    }

    /// The lines of that grade.
    pub(crate) fn diagnostics(&self, grade: Grade) -> Vec<Diagnostic> {
        let lines = self.lines.iter().filter(|line| line.grade == grade);
        lines.map(|line| line.diagnostic(&line.what)).collect()
    }

    /// An error about all that does not work.
    pub(crate) fn failure(&self, lead: &str) -> Diagnostic {
        Diagnostic::gather(lead, self.diagnostics(Grade::Failed).iter().map(Diagnostic::to_string))
    }

    /// Takes out what does not work in a repository; `None` if all of it does.
    pub(crate) fn take_failures_of(&mut self, repository: &str) -> Option<String> {
        let fails = |line: &mut Line| line.grade == Grade::Failed && line.part_of(repository).is_some();
        let taken = self.lines.extract_if(.., fails);
        let taken =
            taken.map(|line| line.diagnostic(line.part_of(repository).unwrap_or_default()).to_string());
        Some(Diagnostic::gather("", taken).to_string()).filter(|taken| !taken.is_empty())
    }

    /// For a person.
    pub(crate) fn text(&self) -> String {
        let width = self.lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(&format!("{:<7}  {:<width$}  {}\n", line.grade.name(), line.what, line.found));
            for part in line.diagnostic("").lines().skip(1) {
                text.push_str(&format!("{:9}{:width$}  {part}\n", "", ""));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_hints() {
        let mut report = CheckReport::default();
        report.ok("connection", "PostgreSQL 17.5");
        report.failed("archive_mode", "it is off", "Set archive_mode = on and restart PostgreSQL.");
        report.warning("extra_paths", "/etc/x is not covered", "");
        assert_eq!(report.take::<()>("disk", Err(anyhow::anyhow!("full"))), None);
        assert_eq!((report.count(Grade::Failed), report.count(Grade::Warning)), (2, 1));
        assert_eq!(
            report.failure("no backup").to_string(),
            "no backup: archive_mode: it is off; disk: full\nHINT: Set archive_mode = on and restart PostgreSQL."
        );
        let text = report.text();
        assert!(text.contains("failed   archive_mode  it is off\n"), "{text}");
        assert!(text.contains("\n                       HINT: Set archive_mode = on"), "{text}");
        report.failed("disk", "slow\nDETAIL: It hangs.\nHINT: Look at it.", "Replace it.");
        let line = serde_json::to_value(report.lines().last().unwrap()).unwrap();
        assert_eq!(
            line,
            serde_json::json!({
                "check": "disk",
                "result": "failed",
                "message": "slow",
                "detail": "It hangs.",
                "hint": "Look at it.\nReplace it.",
            })
        );
    }

    #[test]
    fn what_fails_in_a_repository_is_taken_out() {
        let mut report = CheckReport::default();
        report.ok("repository far: lineage", "1 of cluster main");
        report.failed("repository far", "it does not answer", "");
        report.failed("repository far: space", "none", "Make room.");
        report.failed("repository farther", "it is gone", "");
        assert_eq!(report.take_failures_of("main"), None);
        assert_eq!(
            report.take_failures_of("far").as_deref(),
            Some("it does not answer; space: none\nHINT: Make room.")
        );
        assert_eq!((report.take_failures_of("far"), report.lines().len()), (None, 2));
        assert_eq!(report.failure("").to_string(), "repository farther: it is gone");
    }
}
