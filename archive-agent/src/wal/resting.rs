//! Which repositories failed a moment ago that do not have to acknowledge, for the process that stands in for the daemon with the next
//! file: PostgreSQL starts one for each, and not each of them is to wait as long as the first one did.
//!
//! A line for each repository in a file in `pg_wal`: its name and when it failed, in seconds since 1970. A line that is old, cut off
//! or of another name means nothing. The file is replaced as a whole.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use walpoint_base::durable;

use super::upload::REST;

/// Its name in `pg_wal`.
pub(super) const FILE: &str = "walpoint-resting";

/// The repositories that are left out still, and for how long. A file that cannot be read says nothing. Blocks.
pub(super) fn read(wal: &Path) -> Vec<(String, Duration)> {
    let now = Timestamp::now().as_second();
    let bytes = std::fs::read(wal.join(FILE)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.filter_map(|line| parse(line, now)).map(|(name, left)| (name.to_owned(), left)).collect()
}

/// A repository failed now. Blocks.
pub(super) fn note(wal: &Path, repository: &str) -> io::Result<()> {
    let now = Timestamp::now().as_second();
    let bytes = match std::fs::read(wal.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let others = text.lines().filter(|line| parse(line, now).is_some_and(|(name, _)| name != repository));
    let mut lines: String = others.map(|line| format!("{line}\n")).collect();
    lines += &format!("{repository} {now}\n");
    durable::replace_for_owner(&wal.join(FILE), lines.as_bytes(), 0o600)
}

fn parse(line: &str, now: i64) -> Option<(&str, Duration)> {
    let (name, at) = line.rsplit_once(' ')?;
    let age = u64::try_from(now.checked_sub(at.parse().ok()?)?).ok()?;
    let left = REST.checked_sub(Duration::from_secs(age)).filter(|left| !left.is_zero())?;
    Some((name, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_failed_rests_for_a_minute_whatever_process_asks() {
        let dir = tempfile::tempdir().unwrap();
        let names = || read(dir.path()).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names().is_empty());
        note(dir.path(), "far").unwrap();
        note(dir.path(), "farther").unwrap();
        note(dir.path(), "far").unwrap();
        assert_eq!(names(), ["farther", "far"]);
        assert!(read(dir.path()).iter().all(|(_, left)| *left > REST / 2 && *left <= REST));
        let now = Timestamp::now().as_second();
        let rest = i64::try_from(REST.as_secs()).unwrap();
        for (text, expected) in [
            (format!("far {}\n", now - rest), 0),
            (format!("far {}\n", now + 100), 0),
            (format!("far {now}"), 0),
            ("far\n\n x\n".to_owned(), 0),
            (format!("far {now}\nfarther {}\n", now - 1), 2),
        ] {
            durable::replace(&dir.path().join(FILE), text.as_bytes(), 0o600).unwrap();
            assert_eq!(names().len(), expected, "{text:?}");
        }
        durable::replace(&dir.path().join(FILE), b"\xFF\xFE 1\n", 0o600).unwrap();
        note(dir.path(), "far").unwrap();
        assert_eq!(names(), ["far"]);
    }
}
