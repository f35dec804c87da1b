//! The recovery settings of a restored cluster, in `postgresql.auto.conf`.
//!
//! That file is read last, so what stands there overrides `postgresql.conf`, wherever it lies. Settings of an earlier
//! recovery are neutralised, the user's own are kept. Lines that are taken out stay as comments, so that nothing that
//! somebody wrote is lost.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use walpoint_plan::restore::quote;

/// Parameters that steer a recovery. Each is set here, if only to its default: a value left over from an earlier
/// recovery, in this file or in `postgresql.conf`, would end this one somewhere else.
const NEUTRALISED: [(&str, &str); 13] = [
    ("recovery_target", ""),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_xid", ""),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_timeline", "latest"),
    ("recovery_target_action", "pause"),
    ("recovery_end_command", ""),
    ("recovery_min_apply_delay", "0"),
    ("archive_cleanup_command", ""),
    ("promote_trigger_file", ""),
    ("restore_command", ""),
];

/// Parameters of [`NEUTRALISED`] that a later major version dropped, with the first version without them. An unknown
/// parameter would keep the server from starting.
const DROPPED: [(&str, u8); 1] = [("promote_trigger_file", 16)];

/// Marks what a restore wrote.
const BANNER: &str = "# Recovery settings written by walpoint restore";

/// How lines that were taken out begin.
const TAKEN_OUT: &str = "# walpoint: ";

/// The new content of `postgresql.auto.conf`: `existing` without other recovery settings, then `settings` in order.
///
/// `settings` are names and plain values of parameters; quoting is done here. The parameters that select the target come
/// last: PostgreSQL refuses a second target even if it is empty and follows a real one (`assign_recovery_target_*`). What stays does so
/// byte for byte: PostgreSQL takes a configuration in any encoding.
pub(crate) fn rewrite(existing: &[u8], settings: &[(String, String)], major: u8) -> Vec<u8> {
    let known = |name: &str| DROPPED.iter().all(|(dropped, since)| *dropped != name || major < *since);
    let given = |name: &str| settings.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut kept = Vec::new();
    for line in existing.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let shown = String::from_utf8_lossy(line);
        let ours = shown == BANNER || shown.starts_with(TAKEN_OUT);
        let steers =
            |name: &str| NEUTRALISED.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) || given(name);
        match parameter(&shown) {
            Some(name) if steers(name) => kept.extend_from_slice(TAKEN_OUT.as_bytes()),
            _ if ours => continue,
            _ => {}
        }
        kept.extend_from_slice(line);
        kept.push(b'\n');
    }
    let mut text = format!("{BANNER}\n");
    for (name, default) in NEUTRALISED {
        if known(name) && !given(name) {
            push(&mut text, name, default);
        }
    }
    for (name, value) in settings {
        push(&mut text, name, value);
    }
    kept.extend_from_slice(text.as_bytes());
    kept
}

fn push(text: &mut String, name: &str, value: &str) {
    text.push_str(&format!("{name} = {}\n", quote(value)));
}

/// The text of a configuration file. Values and comments may be in any encoding: what is no UTF-8 is replaced.
pub(crate) fn text(path: &Path) -> std::io::Result<String> {
    std::fs::read(path).map(|content| String::from_utf8_lossy(&content).into_owned())
}

/// The settings in a `postgresql.auto.conf` that say where recovery stops, each as it is written: of several the last one
/// counts, and empty ones are left out.
pub(crate) fn targets(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some(name) = parameter(line).map(str::to_ascii_lowercase) else { continue };
        if name.starts_with("recovery_target") && name != "recovery_target_action" {
            let value = line.trim_start().split_at(name.len()).1.trim_start();
            let value = value.strip_prefix('=').unwrap_or(value).trim().to_owned();
            if value == "''" {
                found.remove(&name)
            } else {
                found.insert(name, value)
            };
        }
    }
    found
}

/// The configuration of a data directory as PostgreSQL reads it, as one text: `postgresql.conf` with what it includes in place,
/// and `postgresql.auto.conf` at the end. What cannot be read is left out. Source of the rules: `guc-file.l` and
/// `conffiles.c` of PostgreSQL.
pub(crate) fn configuration(pgdata: &Path) -> String {
    configuration_of(&pgdata.join("postgresql.conf"), pgdata)
}

/// The same where `postgresql.conf` lies elsewhere.
pub(crate) fn configuration_of(main: &Path, pgdata: &Path) -> String {
    joined(&[main, &pgdata.join("postgresql.auto.conf")])
}

/// `postgresql.conf` with what it includes in place, and without `postgresql.auto.conf`: from nowhere else does PostgreSQL take
/// `data_directory` (`ProcessConfigFileInternal`).
pub(crate) fn without_auto(main: &Path) -> String {
    joined(&[main])
}

fn joined(files: &[&Path]) -> String {
    let (mut text, mut left) = (String::new(), LONGEST);
    files.iter().for_each(|file| include(file, 0, &mut left, &mut text));
    text
}

/// Files that include one another are followed to this depth (`CONF_FILE_MAX_DEPTH`).
const DEPTH: usize = 10;

/// Bytes that are read altogether: a backup may name any file, and name it again and again.
const LONGEST: u64 = 16 << 20;

/// Reads a regular file of at most `left` bytes, and takes them off. Comments may be in any encoding.
fn read(path: &Path, left: &mut u64) -> Option<String> {
    let length = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?.len();
    let rest = left.checked_sub(length.max(1))?;
    let mut content = Vec::new();
    std::fs::File::open(path).ok()?.take(length).read_to_end(&mut content).ok()?;
    *left = rest;
    Some(String::from_utf8_lossy(&content).into_owned())
}

fn include(path: &Path, depth: usize, left: &mut u64, text: &mut String) {
    let Some(content) = (depth <= DEPTH).then(|| read(path, left)).flatten() else { return };
    let directory = path.parent().unwrap_or(Path::new(""));
    for line in content.lines() {
        let argument = |name: &str| {
            let is_this = parameter(line).is_some_and(|found| found.eq_ignore_ascii_case(name));
            is_this.then(|| value(line, name)).flatten().map(|argument| directory.join(argument))
        };
        if let Some(file) = argument("include").or_else(|| argument("include_if_exists")) {
            include(&file, depth + 1, left, text);
        } else if let Some(directory) = argument("include_dir") {
            let entries =
                std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
            let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
            let counts = |path: &PathBuf| {
                name(path).is_some_and(|name| name.ends_with(".conf") && !name.starts_with('.'))
                    && path.is_file()
            };
            let mut files: Vec<PathBuf> = entries.filter(counts).collect();
            files.sort();
            files.iter().for_each(|file| include(file, depth + 1, left, text));
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
}

/// The last value that a configuration file gives a parameter, without its quotes.
pub(crate) fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().rfind(|line| parameter(line).is_some_and(|n| n.eq_ignore_ascii_case(name)))?;
    let value = line.trim_start().get(name.len()..)?.trim_start();
    let value = value.strip_prefix('=').unwrap_or(value).trim_start();
    Some(match value.strip_prefix('\'') {
        Some(quoted) => quoted.split('\'').next().unwrap_or_default(),
        None => value.split(|c: char| c == '#' || c.is_whitespace()).next().unwrap_or_default(),
    })
}

/// A parameter that is a number as a configuration has it.
pub(crate) fn number(configuration: &str, name: &str, default: u32) -> u32 {
    value(configuration, name).and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Whether a configuration switches a parameter off that is on by default. Source of the spellings: `parse_bool_with_len` of PostgreSQL.
pub(crate) fn is_off(configuration: &str, name: &str) -> bool {
    let value = value(configuration, name).unwrap_or_default().to_ascii_lowercase();
    let is = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    value == "0" || is("false", 1) || is("no", 1) || is("off", 2)
}

/// The standbys that commits wait for by a configuration; `None` if they wait for none.
pub(crate) fn synchronous_standbys(configuration: &str) -> Option<&str> {
    value(configuration, "synchronous_standby_names").filter(|names| !names.trim().is_empty())
}

/// `wal_keep_size` in MB as a configuration has it; 0, its default, if that does not say.
pub(crate) fn wal_keep_size(configuration: &str) -> u64 {
    let Some(value) = value(configuration, "wal_keep_size") else { return 0 };
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let number: u64 = number.parse().unwrap_or(0);
    match unit.trim() {
        "kB" => number >> 10,
        "GB" => number << 10,
        "TB" => number << 20,
        _ => number,
    }
}

/// The parameter that a line of a configuration file sets. Source of the syntax: `guc-file.l` of PostgreSQL.
fn parameter(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$')))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (starts && rest.starts_with(|c: char| c == '=' || c.is_whitespace())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_wal_keep_size_counts() {
        for (texts, expected) in [
            (&[""][..], 0),
            (&["wal_keep_size = 64"], 64),
            (&["wal_keep_size = '2GB' # much\n", "work_mem = 1"], 2048),
            (&["wal_keep_size=2GB\nWAL_KEEP_SIZE 4096kB # little", "x = 1"], 4),
            (&["wal_keep_size = 64", "wal_keep_size = '0'"], 0),
            (&["#wal_keep_size = 64"], 0),
        ] {
            assert_eq!(wal_keep_size(&texts.join("\n")), expected, "{texts:?}");
        }
    }

    #[test]
    fn what_is_switched_off_is_off_however_that_is_spelled() {
        for line in ["x = off", "x = OFF", "x='of' # why", "x=on\nx f", "x = n", "x = 0", "X = 'False'"] {
            assert!(is_off(line, "x"), "{line}");
        }
        for line in [
            "",
            "x = on",
            "x = o",
            "x = ''",
            "x = 1",
            "#x = off",
            "x = off\nx = yes",
            "y = off",
            "x = offline",
        ] {
            assert!(!is_off(line, "x"), "{line}");
        }
    }

    #[test]
    fn what_a_configuration_includes_counts_where_it_is_included() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            walpoint_base::durable::create(&path, text.as_bytes()).unwrap();
        };
        let main = "max_connections = 10\ninclude_dir = 'conf.d'\nmax_wal_senders = 7\ninclude_if_exists 'none.conf'\n\
                    include 'more/one.conf'\n";
        file("postgresql.conf", main);
        file("conf.d/b.conf", "max_connections = 30\nmax_wal_senders = 3\n");
        file("conf.d/a.conf", "max_connections = 20\n");
        file("conf.d/c.txt", "max_connections = 99\n");
        file("conf.d/.d.conf", "max_connections = 99\n");
        file("more/one.conf", "include 'two.conf'\nwork_mem = 1\n");
        file("more/two.conf", "include 'two.conf'\nmax_worker_processes = 5\n");
        let text = configuration(dir.path());
        let read = |name| number(&text, name, 1);
        assert_eq!(read("max_connections"), 30, "{text}");
        assert_eq!((read("max_wal_senders"), read("max_worker_processes"), read("work_mem")), (7, 5, 1));
        file("postgresql.auto.conf", "max_connections = 40\n");
        assert_eq!(number(&configuration(dir.path()), "max_connections", 1), 40);
        assert_eq!(number(&without_auto(&dir.path().join("postgresql.conf")), "max_connections", 1), 30);
    }

    #[test]
    fn a_configuration_that_includes_without_end_is_read_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let again = "include 'postgresql.conf'\n".repeat(100);
        let text = format!("# caf\u{e9}\nmax_connections = 7\ninclude '/dev/zero'\n{again}");
        let latin = text.chars().map(|c| u8::try_from(c).unwrap()).collect::<Vec<u8>>();
        walpoint_base::durable::create(&dir.path().join("postgresql.conf"), &latin).unwrap();
        assert_eq!(number(&configuration(dir.path()), "max_connections", 1), 7);
    }

    fn rewritten(existing: &str, pairs: &[(&str, &str)], major: u8) -> String {
        String::from_utf8(rewrite(existing.as_bytes(), &settings(pairs), major)).unwrap()
    }

    #[test]
    fn what_is_in_another_encoding_stays_as_it_is() {
        let existing = b"cluster_name = 'caf\xe9'\r\nrecovery_target_name = '\xe9'\nwork_mem = '64MB' # \xfc";
        let text = rewrite(existing, &[], 17);
        let kept = b"cluster_name = 'caf\xe9'\r\n# walpoint: recovery_target_name = '\xe9'\nwork_mem = '64MB' # \xfc\n# Recov";
        assert!(text.starts_with(kept), "{}", String::from_utf8_lossy(&text));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postgresql.auto.conf");
        walpoint_base::durable::create(&path, b"# \xe9\nrecovery_target_timeline = 'current'\n").unwrap();
        let found = targets(&super::text(&path).unwrap());
        assert_eq!(found.get("recovery_target_timeline").map(String::as_str), Some("'current'"));
    }

    fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn earlier_targets_go_and_the_users_settings_stay() {
        let existing = "# Do not edit this file manually!\nwork_mem = '64MB'\nRecovery_Target_Time='2020-01-01'\n  restore_command   'cp %f %p'\n";
        let given = [("restore_command", "fetch '%f'"), ("recovery_target_lsn", "0/1")];
        let text = rewritten(existing, &given, 17);
        let active: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert!(active.contains(&"work_mem = '64MB'"));
        assert!(active.contains(&"recovery_target_time = ''"));
        assert!(active.contains(&"restore_command = 'fetch ''%f'''"));
        assert_eq!(
            active.last(),
            Some(&"recovery_target_lsn = '0/1'"),
            "a target comes after the empty ones"
        );
        assert_eq!(
            active.iter().filter(|l| l.to_lowercase().starts_with("recovery_target_time ")).count(),
            1
        );
        assert!(text.contains("# walpoint: Recovery_Target_Time='2020-01-01'"));
    }

    #[test]
    fn a_second_restore_replaces_the_first() {
        let one = rewritten("a = 1\n", &[("recovery_target_xid", "7"), ("archive_mode", "off")], 15);
        let two = rewritten(&one, &[("recovery_target_name", "x")], 15);
        let active: Vec<&str> = two.lines().filter(|l| !l.starts_with('#')).collect();
        assert!(active.contains(&"recovery_target_xid = ''"));
        assert!(!active.contains(&"recovery_target_xid = '7'"));
        assert_eq!(two.matches(BANNER).count(), 1);
        assert_eq!(active.last(), Some(&"recovery_target_name = 'x'"));
    }

    #[test]
    fn parameters_that_a_version_does_not_know_are_left_out() {
        assert!(rewritten("", &[], 15).contains("promote_trigger_file"));
        assert!(!rewritten("", &[], 16).contains("promote_trigger_file"));
    }

    #[test]
    fn the_targets_are_those_that_count() {
        let text = rewritten("", &[("recovery_target_name", "it's"), ("archive_mode", "off")], 17);
        let mut expected = BTreeMap::from([
            ("recovery_target_inclusive".to_owned(), "'on'".to_owned()),
            ("recovery_target_name".to_owned(), "'it''s'".to_owned()),
            ("recovery_target_timeline".to_owned(), "'latest'".to_owned()),
        ]);
        assert_eq!(targets(&text), expected);
        expected.insert("recovery_target_inclusive".to_owned(), "off".to_owned());
        assert_eq!(
            targets(&(text + "Recovery_Target_Inclusive=off\nrecovery_target_action = promote\n")),
            expected
        );
    }

    #[test]
    fn only_settings_are_settings() {
        assert_eq!(parameter("restore_command='x'"), Some("restore_command"));
        assert_eq!(parameter("  a.b 1"), Some("a.b"));
        for line in ["", "# restore_command = 1", "restore_command", "1x = 2", "'x' = 1"] {
            assert_eq!(parameter(line), None, "{line:?}");
        }
    }
}
