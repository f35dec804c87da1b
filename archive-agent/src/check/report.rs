//! What was found: one line for each thing that was looked at, with what to do where something is wrong.

use schemars::JsonSchema;
use serde::Serialize;

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
    /// What to do about it.
    #[serde(rename = "hint", skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

impl Line {
    /// Which part of a repository it is about, if it is about that one: none is all of it.
    fn part_of(&self, repository: &str) -> Option<&str> {
        let part = self.what.strip_prefix("repository ")?.strip_prefix(repository)?;
        if part.is_empty() { Some(part) } else { part.strip_prefix(": ") }
    }

    /// What was found and what to do, for an error message.
    fn text_about(&self, what: &str) -> String {
        let advice = self.advice.iter().map(|advice| format!("; {advice}"));
        let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
        format!("{what}{}{}", self.found, advice.collect::<String>())
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
        self.add(what.into(), Grade::Ok, found.into(), None);
    }

    /// It works, but somebody should know.
    pub(crate) fn warning(&mut self, what: impl Into<String>, found: impl Into<String>, advice: &str) {
        self.add(what.into(), Grade::Warning, found.into(), Some(advice));
    }

    /// It does not work.
    pub(crate) fn failed(&mut self, what: impl Into<String>, found: impl Into<String>, advice: &str) {
        self.add(what.into(), Grade::Failed, found.into(), Some(advice));
    }

    /// It does not work, and the error says itself what to do.
    pub(crate) fn error(&mut self, what: impl Into<String>, error: &anyhow::Error) {
        self.add(what.into(), Grade::Failed, walpoint_words::told(error), None);
    }

    /// Adds what a fallible look found; its value if it went well.
    pub(crate) fn take<T>(&mut self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        result.inspect_err(|error| self.error(what, error)).ok()
    }

    fn add(&mut self, what: String, grade: Grade, found: String, advice: Option<&str>) {
        let advice = advice.filter(|advice| !advice.is_empty()).map(str::to_owned);
        self.lines.push(Line { what, grade, found, advice });
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// How many lines are of that grade.
    pub(crate) fn count(&self, grade: Grade) -> usize {
        self.lines.iter().filter(|line| line.grade == grade).count()
    }

    /// The lines of that grade in one text, for an error message.
    pub(crate) fn text_of(&self, grade: Grade) -> String {
        let lines = self.lines.iter().filter(|line| line.grade == grade);
        lines.map(|line| line.text_about(&line.what)).collect::<Vec<_>>().join("\n")
    }

    /// Takes out what does not work in a repository; `None` if all of it does.
    pub(crate) fn take_failures_of(&mut self, repository: &str) -> Option<String> {
        let fails = |line: &mut Line| line.grade == Grade::Failed && line.part_of(repository).is_some();
        let taken = self.lines.extract_if(.., fails);
        let texts = taken.map(|line| line.text_about(line.part_of(repository).unwrap_or_default()));
        Some(texts.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
    }

    /// For a person.
    pub(crate) fn text(&self) -> String {
        let width = self.lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(&format!("{:<7}  {:<width$}  {}\n", line.grade.name(), line.what, line.found));
            if let Some(advice) = &line.advice {
                text.push_str(&format!("{:9}{:width$}  {advice}\n", "", ""));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_with_their_advice() {
        let mut report = CheckReport::default();
        report.ok("connection", "PostgreSQL 17.5");
        report.failed("archive_mode", "it is off", "set archive_mode = on and restart PostgreSQL");
        report.warning("extra_paths", "/etc/x is not covered", "");
        assert_eq!(report.take::<()>("disk", Err(anyhow::anyhow!("full"))), None);
        assert_eq!((report.count(Grade::Failed), report.count(Grade::Warning)), (2, 1));
        let text = report.text_of(Grade::Failed);
        assert_eq!(text, "archive_mode: it is off; set archive_mode = on and restart PostgreSQL\ndisk: full");
        let text = report.text();
        assert!(text.contains("failed   archive_mode  it is off\n"), "{text}");
        assert!(text.contains("\n                       set archive_mode = on"), "{text}");
    }

    #[test]
    fn what_fails_in_a_repository_is_told_apart() {
        let mut report = CheckReport::default();
        report.ok("repository far: lineage", "1 of cluster main");
        report.failed("repository far", "it does not answer", "");
        report.failed("repository far: space", "none", "make room");
        report.failed("repository farther", "it is gone", "");
        assert_eq!(report.take_failures_of("main"), None);
        assert_eq!(
            report.take_failures_of("far").as_deref(),
            Some("it does not answer; space: none; make room")
        );
        assert_eq!((report.take_failures_of("far"), report.lines().len()), (None, 2));
        assert_eq!(report.text_of(Grade::Failed), "repository farther: it is gone");
    }
}
