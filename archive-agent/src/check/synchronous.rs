//! Synchronous commit: what the server's settings mean where the stream may confirm commits. They are PostgreSQL's, and say nothing
//! while they are wrong: commits hang, or are confirmed without being stored.

use std::time::Duration;

use walpoint_base::{ClusterName, diagnostic};
use walpoint_pg::server::{CommitException, Server, ServerIdentity};
use walpoint_pg::synchronous::{CommitLevel, Confirmation, StandbyNames};
use walpoint_runtime::config::{self, ClusterSettings};
use walpoint_runtime::human;

use super::report::{CheckReport, Grade};
use crate::session;

const WHAT: &str = "synchronous commit";

/// The way out when commits hang.
const RELEASE: &str = "To release commits that wait, run as a superuser: psql -c \"alter system set synchronous_standby_names = ''\" \
    -c \"select pg_reload_conf()\". They are confirmed then, stored or not.";

/// What the settings are held against.
#[derive(Debug)]
struct Facts {
    cluster: ClusterName,
    /// The name by which the server knows the stream.
    name: String,
    /// `synchronous_standby_names`, as it is written.
    written: String,
    /// Whether this configuration streams, and stores at once what it receives.
    streams: bool,
    at_once: bool,
    flush_interval: Duration,
    /// The names of the clients that receive WAL now.
    receivers: Vec<String>,
    /// Whether this is a standby, where no commit waits.
    in_recovery: bool,
    /// Whether nothing limits the WAL that the slot keeps, although the configuration has a limit for WAL that waits.
    unlimited: bool,
    /// `synchronous_commit`: where it is set, and to what.
    levels: Vec<(String, String)>,
}

/// Reports what a commit waits for, if the cluster streams or the stream's name stands in `synchronous_standby_names`.
pub(super) async fn settings(
    report: &mut CheckReport,
    server: &mut Server,
    identity: &ServerIdentity,
    (cluster, settings): (&ClusterName, &ClusterSettings),
) {
    let Some(facts) = report.take(WHAT, gather(server, identity, (cluster, settings)).await) else { return };
    report_all(report, &facts);
}

fn report_all(report: &mut CheckReport, facts: &Facts) {
    // No commit waits there, and the settings may be a copy of another server's.
    if facts.in_recovery {
        return;
    }
    match StandbyNames::parse(&facts.written) {
        Ok(Some(names)) => judge(report, facts, &names),
        Ok(None) => unused(report, facts),
        Err(error) => {
            let found = format!("{} cannot be read: {error}", facts.setting());
            let advice = "Check that this version of Walpoint is the newest one that knows this PostgreSQL.";
            report.warning(WHAT, found, advice);
        }
    }
    if facts.unlimited {
        report.warning(
            WHAT,
            "queue_max does not limit the WAL that the replication slot keeps\nDETAIL: With synchronous = true the daemon releases no \
             WAL that is not stored, and max_slot_wal_keep_size is not set in PostgreSQL."
                .to_owned(),
            "Set max_slot_wal_keep_size: beyond it, the server removes WAL that was not streamed.",
        );
    }
}

async fn gather(
    server: &mut Server,
    identity: &ServerIdentity,
    (cluster, settings): (&ClusterName, &ClusterSettings),
) -> anyhow::Result<Facts> {
    let rules = settings.stream.clone().unwrap_or_default();
    let name = session::conninfo(settings)?.application_name().to_owned();
    let mut facts = Facts {
        cluster: cluster.clone(),
        written: server.synchronous_standby_names().await?,
        streams: rules.enabled,
        at_once: rules.synchronous,
        flush_interval: config::duration(rules.flush_interval),
        receivers: Vec::new(),
        in_recovery: identity.in_recovery,
        unlimited: false,
        levels: Vec::new(),
        name,
    };
    if facts.in_recovery {
        return Ok(facts);
    }
    if facts.streams && facts.at_once && settings.queue_max.is_some() {
        facts.unlimited = server.setting("max_slot_wal_keep_size").await?.is_some_and(|limit| limit == "-1");
    }
    let names = StandbyNames::parse(&facts.written).ok().flatten();
    // A standby that carries the name is not looked for where nothing says that it is this stream.
    let concerned =
        names.is_some_and(|names| names.has(&facts.name) || (facts.streams && facts.confirms(&names)));
    if !concerned {
        return Ok(facts);
    }
    facts.receivers = server.receivers().await?.into_iter().filter_map(|one| one.name).collect();
    if facts.streams {
        let exceptions = server.commit_exceptions().await?;
        let mut walsender = session::walsender(settings, server).await?;
        facts.levels.push(("on this server".to_owned(), walsender.synchronous_commit().await?));
        walsender.close().await;
        facts.levels.extend(exceptions.into_iter().map(|exception| (place(&exception), exception.value)));
    }
    Ok(facts)
}

/// Where an exception counts.
fn place(exception: &CommitException) -> String {
    let quoted = |kind: &str, name: &String| format!("{kind} \"{}\"", diagnostic::shown(name));
    match (&exception.role, &exception.database) {
        (Some(role), Some(database)) => {
            format!("for {} in {}", quoted("role", role), quoted("database", database))
        }
        (Some(role), None) => format!("for {}", quoted("role", role)),
        (None, Some(database)) => format!("in {}", quoted("database", database)),
        (None, None) => "for all roles".to_owned(),
    }
}

impl Facts {
    fn setting(&self) -> String {
        format!("synchronous_standby_names = '{}'", diagnostic::shown(&self.written))
    }

    fn confirms(&self, names: &StandbyNames) -> bool {
        names.confirmation(&self.name, &self.receivers) != Confirmation::NotNamed
    }

    /// Whether a client of the stream's name receives WAL now.
    fn is_connected(&self) -> bool {
        self.receivers.iter().any(|name| name.eq_ignore_ascii_case(&self.name))
    }
}

fn judge(report: &mut CheckReport, facts: &Facts, names: &StandbyNames) {
    let confirmation = names.confirmation(&facts.name, &facts.receivers);
    if !facts.streams {
        if names.has(&facts.name) {
            not_streaming(report, facts, confirmation);
        }
        return;
    }
    if confirmation == Confirmation::NotNamed {
        return unused(report, facts);
    }
    let (grade, means) = meaning(confirmation);
    let waits = if confirmation == Confirmation::Always {
        format!(
            "\nDETAIL: While the daemon is stopped, or a repository in ack is away, commits hang.\nHINT: {RELEASE}"
        )
    } else {
        String::new()
    };
    report.graded(WHAT, grade, format!("{means} ({}){waits}", facts.setting()));
    if !facts.is_connected() {
        away(report, facts, confirmation);
    }
    if !facts.at_once {
        let found = format!(
            "\"synchronous\" is not set in [cluster.{}.stream]: a commit that waits for Walpoint waits up to {} \
             (flush_interval) longer",
            facts.cluster,
            human::span(facts.flush_interval)
        );
        report.warning(WHAT, found, "Set synchronous = true there, and reload the daemon.");
    }
    for (place, value) in &facts.levels {
        level(report, (place, value), names.applies_without(&facts.name, &facts.receivers));
    }
}

/// What a setting means that names the stream.
fn meaning(confirmation: Confirmation) -> (Grade, &'static str) {
    match confirmation {
        Confirmation::Always | Confirmation::NotNamed => {
            (Grade::Ok, "every commit waits until its WAL is stored")
        }
        Confirmation::WhileConnected => (
            Grade::Ok,
            "commits wait for Walpoint while it is connected; otherwise other standbys confirm them without Walpoint",
        ),
        Confirmation::InPlaceOfOthers => (
            Grade::Ok,
            "a commit may be confirmed without Walpoint: commits wait for it only while a standby before it in the list is not \
             connected",
        ),
        Confirmation::AmongOthers => (
            Grade::Ok,
            "a commit may be confirmed without Walpoint: after a disaster, the repositories alone may lack it",
        ),
        Confirmation::TooFew => {
            (Grade::Failed, "no commit is confirmed: the list has fewer names than a commit waits for")
        }
    }
}

/// Nothing streams here, and commits may wait for it.
fn not_streaming(report: &mut CheckReport, facts: &Facts, confirmation: Confirmation) {
    if facts.is_connected() {
        // Another program, or another configuration, has the name.
        return;
    }
    let found = format!(
        "{} names \"{}\", but [cluster.{}.stream] is not enabled",
        facts.setting(),
        facts.name,
        facts.cluster
    );
    let advice = format!(
        "Set enabled = true and synchronous = true in [cluster.{}.stream] and reload the daemon, or remove the name.\nHINT: {RELEASE}",
        facts.cluster
    );
    match confirmation {
        Confirmation::Always | Confirmation::TooFew => {
            report.failed(WHAT, format!("{found}: commits hang"), &advice);
        }
        _ => report.warning(WHAT, format!("{found}: it confirms no commit"), &advice),
    }
}

/// The stream should confirm commits, and is not connected.
fn away(report: &mut CheckReport, facts: &Facts, confirmation: Confirmation) {
    let found = format!("no client named \"{}\" receives WAL from this server", facts.name);
    let start =
        "Start \"archive-agent run\"; \"archive-agent health\" reports what keeps the stream from working.";
    match confirmation {
        Confirmation::Always | Confirmation::TooFew => {
            report.failed(WHAT, format!("{found}: commits hang"), &format!("{start}\nHINT: {RELEASE}"));
        }
        _ => report.warning(WHAT, format!("{found}: commits are confirmed without Walpoint, or hang"), start),
    }
}

/// Whether what is set in one place waits for the stream.
fn level(report: &mut CheckReport, (place, value): (&str, &str), applies_without: bool) {
    let set = format!("synchronous_commit = {} {place}", diagnostic::shown(value));
    let Some(level) = CommitLevel::parse(value) else {
        return report.warning(WHAT, format!("{set} is not a value that Walpoint knows"), "");
    };
    match level {
        CommitLevel::On => {}
        CommitLevel::RemoteWrite => report.ok(
            WHAT,
            format!("{set} waits for Walpoint like on: WAL is reported as written when it is stored"),
        ),
        CommitLevel::RemoteApply if applies_without => report.warning(
            WHAT,
            format!(
                "{set} waits for other standbys only: Walpoint applies nothing, so it confirms no such commit"
            ),
            "Set synchronous_commit = on where Walpoint is to count.",
        ),
        CommitLevel::RemoteApply => report.failed(
            WHAT,
            format!(
                "{set} waits for Walpoint forever: Walpoint applies nothing and never reports that it did"
            ),
            &format!("Set synchronous_commit = on there.\nHINT: {RELEASE}"),
        ),
        CommitLevel::Local | CommitLevel::Off => report.warning(
            WHAT,
            format!("{set} does not wait for Walpoint: after a disaster, such commits may be missing"),
            "Set synchronous_commit = on there, unless that is intended.",
        ),
    }
}

/// No commit waits for the stream.
fn unused(report: &mut CheckReport, facts: &Facts) {
    if !facts.streams {
        return;
    }
    let found = format!("no commit waits for Walpoint ({})", facts.setting());
    if facts.at_once {
        let advice = format!(
            "Set synchronous_standby_names = '{}' and reload PostgreSQL, or remove \"synchronous\" from [cluster.{}.stream].",
            written(&facts.name),
            facts.cluster
        );
        report.warning(WHAT, format!("{found}, though synchronous = true"), &advice);
    } else {
        let span = human::span(facts.flush_interval);
        report.ok(
            WHAT,
            format!(
                "{found}: a disaster may cost the last {span} (flush_interval) and what is being uploaded"
            ),
        );
    }
}

/// A name as it stands in the setting: in quotes unless it is a plain word.
fn written(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !["any", "first"].iter().any(|word| name.eq_ignore_ascii_case(word));
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")).replace('\'', "''") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(written: &str) -> Facts {
        Facts {
            cluster: "main".parse().unwrap(),
            name: "walpoint".to_owned(),
            written: written.to_owned(),
            streams: true,
            at_once: true,
            flush_interval: Duration::from_secs(1),
            receivers: vec!["walpoint".to_owned()],
            in_recovery: false,
            unlimited: false,
            levels: vec![("on this server".to_owned(), "on".to_owned())],
        }
    }

    fn lines(facts: &Facts) -> Vec<(Grade, String)> {
        let mut report = CheckReport::default();
        report_all(&mut report, facts);
        report.lines().iter().map(|line| (line.grade, line.found.clone())).collect()
    }

    #[track_caller]
    fn has(facts: &Facts, grade: Grade, text: &str) {
        let lines = lines(facts);
        assert!(lines.iter().any(|(is, found)| *is == grade && found.contains(text)), "{text}: {lines:#?}");
    }

    #[test]
    fn the_setting_in_force_is_put_into_words() {
        for (written, grade, text) in [
            (
                "walpoint",
                Grade::Ok,
                "every commit waits until its WAL is stored (synchronous_standby_names = 'walpoint')",
            ),
            ("FIRST 1 (walpoint, replica1)", Grade::Ok, "while it is connected; otherwise other standbys"),
            ("replica1, walpoint", Grade::Ok, "only while a standby before it"),
            ("ANY 1 (walpoint, replica1)", Grade::Ok, "may be confirmed without Walpoint: after a disaster"),
            ("*", Grade::Ok, "may be confirmed without Walpoint"),
            ("FIRST 2 (walpoint)", Grade::Failed, "no commit is confirmed"),
            (
                "replica1",
                Grade::Warning,
                "no commit waits for Walpoint (synchronous_standby_names = 'replica1'), though",
            ),
            ("", Grade::Warning, "no commit waits for Walpoint"),
        ] {
            let facts = facts(written);
            assert_eq!(lines(&facts).len(), 1, "{written}");
            has(&facts, grade, text);
        }
        let slow = Facts { at_once: false, ..facts("walpoint") };
        has(&slow, Grade::Warning, "up to 1s (flush_interval) longer");
        let none = Facts { at_once: false, ..facts("") };
        has(&none, Grade::Ok, "may cost the last 1s");
    }

    #[test]
    fn levels_that_do_not_wait_or_wait_for_ever_are_found() {
        let with = |written: &str, value: &str| Facts {
            levels: vec![("for role \"r\"".to_owned(), value.to_owned())],
            ..facts(written)
        };
        for (written, value, grade, text) in [
            ("walpoint", "remote_apply", Grade::Failed, "for role \"r\" waits for Walpoint forever"),
            ("ANY 1 (walpoint, a)", "remote_apply", Grade::Warning, "other standbys only"),
            ("walpoint, a", "remote_apply", Grade::Failed, "forever"),
            ("walpoint", "local", Grade::Warning, "does not wait"),
            ("walpoint", "OFF", Grade::Warning, "does not wait"),
            ("walpoint", "remote_write", Grade::Ok, "like on"),
            ("walpoint", "remote_fsync", Grade::Warning, "not a value"),
        ] {
            has(&with(written, value), grade, text);
        }
        assert_eq!(lines(&with("walpoint", "true")).len(), 1);
    }

    #[test]
    fn commits_that_hang_now_are_a_failure() {
        let away = |written: &str| Facts { receivers: Vec::new(), ..facts(written) };
        has(&away("walpoint"), Grade::Failed, "receives WAL from this server: commits hang");
        has(&away("ANY 1 (walpoint, a)"), Grade::Warning, "confirmed without Walpoint, or hang");
        let off = |written: &str| Facts { streams: false, ..away(written) };
        has(&off("walpoint"), Grade::Failed, "is not enabled: commits hang");
        has(&off("a, walpoint"), Grade::Warning, "confirms no commit");
        assert_eq!(lines(&Facts { streams: false, ..facts("walpoint") }), []);
        assert_eq!(lines(&off("*")), [], "any other standby confirms them");
        assert_eq!(lines(&off("")), []);
    }

    #[test]
    fn on_a_standby_no_commit_waits() {
        for streams in [false, true] {
            let away = Facts { streams, receivers: Vec::new(), ..facts("walpoint") };
            assert!(!lines(&away).is_empty());
            assert_eq!(lines(&Facts { in_recovery: true, ..away }), []);
        }
    }

    #[test]
    fn standbys_under_one_name_confirm_in_its_place() {
        let receivers = ["walpoint", "walreceiver", "walreceiver"].map(str::to_owned).to_vec();
        let both = Facts { receivers, ..facts("FIRST 2 (walreceiver, walpoint)") };
        has(&both, Grade::Ok, "only while a standby before it");
    }

    #[test]
    fn a_slot_without_a_limit_is_found() {
        has(&Facts { unlimited: true, ..facts("walpoint") }, Grade::Warning, "queue_max does not limit");
    }

    #[test]
    fn a_name_is_quoted_where_it_has_to_be() {
        for (name, expected) in [
            ("walpoint", "walpoint"),
            ("any", "\"any\""),
            ("wal-point", "\"wal-point\""),
            ("a\"'b", "\"a\"\"''b\""),
        ] {
            assert_eq!(written(name), expected);
        }
    }
}
