//! The tables `[cluster.NAME.drill.SCENARIO]`: drills that have a name, so that they are always made in the same way and their results
//! can be compared.
//!
//! Only what is written in the file is here, under the names that the options of `restore-agent drill` and `extract` have. What can be
//! read by itself is read here, so that a wrong value is an error of its line; the file of checks is not opened.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;
use jiff::{SignedDuration, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use walpoint_base::target::{parse_time, parse_xid};
use walpoint_base::{BackupId, LineageId, Lsn, ScenarioName, TargetTimeline, span};

use crate::args;

/// The longest name of a restore point: `MAXFNAMELEN` of PostgreSQL, without its final zero.
const LONGEST_NAME: usize = 63;

/// A drill with a name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillScenario {
    /// What is proven.
    pub kind: DrillKind,
    /// Recover up to this time, which was looked at; a relative one is read again at each run.
    #[serde(default, deserialize_with = "time")]
    pub target_time: Option<String>,
    /// Recover up to this position.
    #[serde(default, deserialize_with = "parsed")]
    pub target_lsn: Option<Lsn>,
    /// Recover up to the end of this transaction, whose id was looked at.
    #[serde(default, deserialize_with = "xid")]
    pub target_xid: Option<String>,
    /// Recover up to this restore point.
    #[serde(default, deserialize_with = "restore_point")]
    pub target_name: Option<String>,
    /// Recover only until the backup is consistent.
    #[serde(default)]
    pub target_immediate: bool,
    /// Stop right before the target.
    #[serde(default)]
    pub target_exclusive: bool,
    /// Follow this timeline.
    #[serde(default, deserialize_with = "parsed")]
    pub target_timeline: Option<TargetTimeline>,
    /// Recover to the end of a timeline that ends in the middle of a segment.
    #[serde(default)]
    pub use_partial: bool,
    /// Recover in this lineage.
    #[serde(default, deserialize_with = "parsed")]
    pub lineage: Option<LineageId>,
    /// Start from this backup.
    #[serde(default, deserialize_with = "parsed")]
    pub backup: Option<BackupId>,
    /// The most that the recovery time may be.
    #[serde(default, deserialize_with = "span::deserialize_some")]
    pub rto: Option<SignedDuration>,
    /// The most that the recovery point may be.
    #[serde(default, deserialize_with = "span::deserialize_some")]
    pub rpo: Option<SignedDuration>,
    /// A file of checks.
    #[serde(default)]
    pub checks: Option<PathBuf>,
    /// Checks that are left out.
    #[serde(default)]
    pub skip: Vec<SkippedCheck>,
    /// The role whose rights checks and extraction have.
    #[serde(default, deserialize_with = "line")]
    pub role: Option<String>,
    /// A file for the report, as an HTML page.
    #[serde(default)]
    pub report: Option<PathBuf>,
    /// How long recovery may take.
    #[serde(default, deserialize_with = "span::deserialize_some")]
    pub recovery_timeout: Option<SignedDuration>,
    /// Where PostgreSQL's programs are.
    #[serde(default)]
    pub pg_bindir: Option<PathBuf>,
    /// Libraries that are loaded although they may run jobs.
    #[serde(default)]
    pub preload: Vec<String>,
    /// Extract from this database.
    #[serde(default)]
    pub database: Option<String>,
    /// Extract only tables that match these patterns of `pg_dump`.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Extract only schemas that match these patterns.
    #[serde(default)]
    pub schemas: Vec<String>,
    /// Extract the rows of this query instead.
    #[serde(default)]
    pub query: Option<String>,
    /// Where `pg_dump` or `psql` is.
    #[serde(default)]
    pub client_bindir: Option<PathBuf>,
    /// The least size of what is extracted.
    #[serde(default)]
    pub output_min: Option<ByteSize>,
}

/// What a drill proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillKind {
    /// That a moment of the past can be recovered.
    Pitr,
    /// That a backup can be restored and becomes consistent.
    Backup,
    /// That tables, a database or the rows of a query can be extracted.
    Extract,
}

impl DrillKind {
    /// Its name in the configuration and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pitr => "pitr",
            Self::Backup => "backup",
            Self::Extract => "extract",
        }
    }
}

/// A check that every drill makes unless it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkippedCheck {
    /// Structure of tables and indexes, with `pg_amcheck`.
    Amcheck,
    /// Checksums of all data pages.
    PageChecksums,
    /// Sizes and rows of the largest tables.
    Tables,
}

impl DrillScenario {
    /// What its keys contradict: a key, and what is wrong with it.
    pub(super) fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut refuse = |key: &'static str, what: String| found.push((key, format!("\"{key}\" {what}")));
        let given = self.given_targets();
        if self.kind == DrillKind::Backup {
            let others = [("target_timeline", self.target_timeline.is_some())];
            let others = others.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| key);
            let exclusive = Some("target_exclusive").filter(|_| self.target_exclusive);
            let partial = Some("use_partial").filter(|_| self.use_partial);
            for key in given.iter().copied().chain(others).chain(exclusive).chain(partial) {
                refuse(
                    key,
                    "is no key of a scenario of kind \"backup\"\nDETAIL: It recovers until the backup is consistent, and no \
                     further.\nHINT: Remove it, or write kind = \"pitr\"."
                        .to_owned(),
                );
            }
        } else {
            if let [first, others @ ..] = &given[..] {
                for other in others {
                    refuse(other, format!("and \"{first}\" are two targets\nHINT: Remove one of them."));
                }
            }
            let has_no_end =
                !given.iter().any(|key| matches!(*key, "target_time" | "target_lsn" | "target_xid"));
            if self.target_exclusive && has_no_end {
                let what =
                    "needs \"target_time\", \"target_lsn\" or \"target_xid\": it stops right before that";
                refuse("target_exclusive", what.to_owned());
            }
            if let Some(target) = given.first().filter(|_| self.use_partial) {
                let what = format!("is about the end of a timeline, and \"{target}\" is a target before it");
                refuse("use_partial", what);
            }
        }
        found.extend(self.wrong_extraction());
        found.extend(self.wrong_values());
        found
    }

    /// The keys of targets that are set.
    fn given_targets(&self) -> Vec<&'static str> {
        let keys = [
            ("target_time", self.target_time.is_some()),
            ("target_lsn", self.target_lsn.is_some()),
            ("target_xid", self.target_xid.is_some()),
            ("target_name", self.target_name.is_some()),
            ("target_immediate", self.target_immediate),
        ];
        keys.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| key).collect()
    }

    /// What is missing for an extraction, what it does not have, and what only it has.
    fn wrong_extraction(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut refuse = |key: &'static str, what: &str| found.push((key, format!("\"{key}\" {what}")));
        let patterns = [("tables", !self.tables.is_empty()), ("schemas", !self.schemas.is_empty())];
        if self.kind != DrillKind::Extract {
            let keys = [
                ("database", self.database.is_some()),
                ("query", self.query.is_some()),
                ("client_bindir", self.client_bindir.is_some()),
                ("output_min", self.output_min.is_some()),
            ];
            for (key, _) in keys.into_iter().chain(patterns).filter(|(_, is_set)| *is_set) {
                refuse(key, "is a key of scenarios of kind \"extract\" only");
            }
            return found;
        }
        if self.database.as_ref().is_none_or(String::is_empty) {
            refuse("database", "is missing: a scenario of kind \"extract\" needs the database");
        }
        if let Some(query) = &self.query {
            if query.trim_end_matches(|c: char| c.is_whitespace() || c == ';').is_empty() {
                refuse("query", "is empty");
            }
            for (key, _) in patterns.into_iter().filter(|(_, is_set)| *is_set) {
                refuse(key, "and \"query\" exclude each other\nHINT: Remove one of them.");
            }
        }
        if !self.skip.is_empty() {
            refuse(
                "skip",
                "is no key of a scenario of kind \"extract\", which makes none of these checks\nHINT: Remove it.",
            );
        }
        found
    }

    /// Values that are wrong by themselves.
    fn wrong_values(&self) -> Vec<(&'static str, String)> {
        let spans = [("rto", self.rto), ("rpo", self.rpo), ("recovery_timeout", self.recovery_timeout)];
        let spans: Vec<_> = spans.into_iter().filter_map(|(key, span)| Some((key, span?))).collect();
        let mut found = super::not_above_zero(&spans);
        let paths = [
            ("checks", &self.checks),
            ("report", &self.report),
            ("pg_bindir", &self.pg_bindir),
            ("client_bindir", &self.client_bindir),
        ];
        for (key, _) in paths.into_iter().filter(|(_, path)| path.as_ref().is_some_and(|p| !p.is_absolute()))
        {
            found.push((key, format!("\"{key}\" must be an absolute path")));
        }
        let lists = [("preload", &self.preload), ("tables", &self.tables), ("schemas", &self.schemas)];
        for (key, texts) in lists {
            if let Some(why) = texts.iter().find_map(|text| args::line(text).err()) {
                found.push((key, format!("\"{key}\": {why}")));
            }
            if texts.iter().any(|text| text.trim().is_empty()) {
                found.push((key, format!("\"{key}\" names nothing in one of its texts")));
            }
        }
        found
    }
}

/// Scenarios whose report would replace that of another one: the scenario, and what is wrong.
pub(super) fn shared_reports(drills: &BTreeMap<ScenarioName, DrillScenario>) -> Vec<(&ScenarioName, String)> {
    let mut known: BTreeMap<&PathBuf, &ScenarioName> = BTreeMap::new();
    let mut found = Vec::new();
    for (name, scenario) in drills {
        let Some(report) = &scenario.report else { continue };
        match known.get(report) {
            Some(other) => found.push((
                name,
                format!(
                    "\"report\" is that of scenario \"{other}\", too: each would replace the other's page"
                ),
            )),
            None => drop(known.insert(report, name)),
        }
    }
    found
}

/// Reads the scenarios with an error that says which name is wrong.
pub(super) fn read<'de, D>(deserializer: D) -> Result<BTreeMap<ScenarioName, DrillScenario>, D::Error>
where
    D: Deserializer<'de>,
{
    let plain = BTreeMap::<String, DrillScenario>::deserialize(deserializer)?;
    let parsed = plain.into_iter().map(|(name, scenario)| Ok((name.parse()?, scenario)));
    parsed.collect::<Result<_, walpoint_base::ParseError>>().map_err(D::Error::custom)
}

fn parsed<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().eq_ignore_ascii_case("latest") {
        return Err(D::Error::custom(
            "\"latest\" is no time\nHINT: Remove \"target_time\": without a target, recovery goes to the end of the archive.",
        ));
    }
    match parse_time(&text, Timestamp::now()) {
        Ok(_) => Ok(Some(text)),
        Err(error) => Err(D::Error::custom(error)),
    }
}

fn xid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_xid(&text).map_err(D::Error::custom)?;
    Ok(Some(text))
}

fn restore_point<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match (1..=LONGEST_NAME).contains(&text.len()) {
        true => Ok(Some(text)),
        false => Err(D::Error::custom(format!("a restore point has 1 to {LONGEST_NAME} bytes"))),
    }
}

fn line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Err(D::Error::custom("it is empty"));
    }
    args::line(&text).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DrillScenario, String> {
        let scenario: DrillScenario = toml::from_str(text).map_err(|e| e.to_string())?;
        match scenario.contradictions()[..] {
            [] => Ok(scenario),
            [(_, ref what), ..] => Err(what.clone()),
        }
    }

    #[test]
    fn the_usual_is_accepted() {
        let nightly = read(
            "kind = \"pitr\"\ntarget_time = \"1 hour ago\"\nrto = \"1h\"\nrpo = \"5m\"\nchecks = \"/etc/walpoint/checks.toml\"\n\
             skip = [\"amcheck\", \"page-checksums\"]\nrole = \"a reader\"\nrecovery_timeout = \"2h\"\nreport = \"/var/www/d.html\"\n",
        )
        .unwrap();
        assert_eq!((nightly.kind, nightly.rto), (DrillKind::Pitr, Some(SignedDuration::from_hours(1))));
        assert_eq!(nightly.skip, [SkippedCheck::Amcheck, SkippedCheck::PageChecksums]);
        for text in [
            "kind = \"pitr\"",
            "kind = \"pitr\"\nuse_partial = true\ntarget_timeline = \"current\"",
            "kind = \"pitr\"\ntarget_lsn = \"0/5000148\"\ntarget_exclusive = true\ntarget_timeline = \"2\"",
            "kind = \"pitr\"\ntarget_xid = \"1:703\"",
            "kind = \"pitr\"\ntarget_name = \"before the upgrade\"\ntarget_immediate = false",
            "kind = \"backup\"\nbackup = \"20261121T101500Z-00000001-0000000002000028-9f3a0c11\"\nrto = \"30m\"",
            "kind = \"extract\"\ndatabase = \"shop\"\ntables = [\"orders\"]\nschemas = [\"s\"]\noutput_min = \"10MiB\"",
            "kind = \"extract\"\ndatabase = \"shop\"\nquery = \"select 1\"\ntarget_immediate = true",
        ] {
            read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let pitr = "kind = \"pitr\"\n";
        let backup = "kind = \"backup\"\n";
        let extract = "kind = \"extract\"\ndatabase = \"shop\"\n";
        for (kind, keys, part) in [
            ("", "", "missing field `kind`"),
            ("", "kind = \"latest\"", "unknown variant `latest`"),
            (
                pitr,
                "target_time = \"1 hour ago\"\ntarget_lsn = \"0/1\"",
                "\"target_lsn\" and \"target_time\" are two",
            ),
            (pitr, "target_time = \"2026-11-21 10:00:00\"", "a time with a zone"),
            (pitr, "target_time = \"latest\"", "\"latest\" is no time\nHINT: Remove \"target_time\""),
            (pitr, "target_lsn = \"12\"", "LSN"),
            (pitr, "target_xid = \"2\"", "none has one of the numbers 0 to 2"),
            (pitr, "target_name = \"\"", "1 to 63 bytes"),
            (pitr, "target_timeline = \"newest\"", "latest, current or a number"),
            (pitr, "target_exclusive = true", "\"target_exclusive\" needs \"target_time\""),
            (
                pitr,
                "target_exclusive = true\ntarget_name = \"x\"",
                "\"target_exclusive\" needs \"target_time\"",
            ),
            (
                pitr,
                "target_time = \"now\"\nuse_partial = true",
                "\"use_partial\" is about the end of a timeline",
            ),
            (pitr, "rto = \"0s\"", "\"rto\" must be a span of time above zero"),
            (pitr, "checks = \"checks.toml\"", "\"checks\" must be an absolute path"),
            (pitr, "database = \"shop\"", "\"database\" is a key of scenarios of kind \"extract\" only"),
            (pitr, "output_min = \"1MiB\"", "\"output_min\" is a key of"),
            (pitr, "role = \"a\\nb\"", "control character"),
            (pitr, "preload = [\"\"]", "\"preload\" names nothing"),
            (pitr, "schedule = \"@daily\"", "unknown field `schedule`"),
            (pitr, "skip = [\"everything\"]", "unknown variant `everything`"),
            (
                backup,
                "target_time = \"1 hour ago\"",
                "\"target_time\" is no key of a scenario of kind \"backup\"",
            ),
            (backup, "target_immediate = true", "\"target_immediate\" is no key"),
            (backup, "target_timeline = \"2\"", "\"target_timeline\" is no key"),
            (backup, "use_partial = true", "\"use_partial\" is no key"),
            (backup, "tables = [\"orders\"]", "\"tables\" is a key of"),
            ("", "kind = \"extract\"", "\"database\" is missing"),
            (
                extract,
                "query = \"select 1\"\ntables = [\"orders\"]",
                "\"tables\" and \"query\" exclude each other",
            ),
            (extract, "query = \" ; \"", "\"query\" is empty"),
            (extract, "skip = [\"tables\"]", "\"skip\" is no key"),
        ] {
            let error = read(&format!("{kind}{keys}")).unwrap_err();
            assert!(error.contains(part), "{kind}{keys}: {error}");
        }
    }
}
