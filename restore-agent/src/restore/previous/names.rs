//! Where data directories lie that were moved aside, and which one was moved last.
//!
//! The name says when: `<pgdata>.walpoint-old-<time>`, with a number behind it within a second. The order of the names is the
//! order of the moves, also where the clock was set back. A record is believed only of the directory that it names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use jiff::Timestamp;

use super::Record;

/// What its name gets, before the time.
pub(in crate::restore) const SUFFIX: &str = ".walpoint-old-";

/// The data directory that was moved aside from there last.
pub(crate) fn latest(pgdata: &Path) -> anyhow::Result<Option<Record>> {
    let candidates = candidates(pgdata).with_context(|| pgdata.display().to_string())?;
    for aside in candidates {
        if let Some(record) = at(&aside, pgdata)? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// All data directories that were moved aside from there, the latest first.
pub(crate) fn all(pgdata: &Path) -> anyhow::Result<Vec<Record>> {
    let candidates = candidates(pgdata).with_context(|| pgdata.display().to_string())?;
    let mut found = Vec::new();
    for aside in candidates {
        let Some(of) = Record::read(&aside)?.map(|record| record.pgdata) else { continue };
        match at(&aside, pgdata)? {
            Some(record) => found.push(record),
            None => tell_not_used(&aside, &of),
        }
    }
    Ok(found)
}

/// Says that what an earlier restore put away is not used, because its record is of a data directory at another path.
pub(crate) fn tell_not_used(directory: &Path, pgdata: &Path) {
    tracing::warn!(
        "{} is not used: an earlier restore made it of {}, and nothing shows that it is of this data directory\nHINT: If it is, WAL in it \
         may be nowhere else. Make the data directory reachable under that path again, and run this command with it.",
        directory.display(),
        pgdata.display()
    );
}

/// What could be data directories that were moved aside from there, the latest first.
pub(super) fn candidates(pgdata: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(parent), Some(name)) = (pgdata.parent(), pgdata.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}{SUFFIX}", name.to_string_lossy());
    let entries = match fs::read_dir(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?.collect::<io::Result<Vec<_>>>()?,
    };
    let named = entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let mut found: Vec<PathBuf> = named.map(fs::DirEntry::path).collect();
    found.sort_by_cached_key(|aside| std::cmp::Reverse(moment(aside, pgdata)));
    Ok(found)
}

/// How a name says when.
pub(super) fn second(time: Timestamp) -> String {
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// When a data directory was moved aside, by its name: the second, and which one it was within that.
pub(super) fn moment(aside: &Path, pgdata: &Path) -> Option<(String, u32)> {
    let name = pgdata.file_name()?.to_string_lossy();
    let aside = aside.file_name()?.to_str()?;
    let time = aside.strip_prefix(&*name)?.strip_prefix(SUFFIX)?;
    let (time, n) = time.split_once('-').unwrap_or((time, "0"));
    let digits = time.strip_suffix('Z')?.replacen('T', "", 1);
    let is_time = digits.len() == 14 && digits.bytes().all(|b| b.is_ascii_digit());
    Some((time.to_owned(), n.parse().ok()?)).filter(|_| is_time)
}

/// The record of the data directory that was moved aside to there. An error if it is that one, and it is not known by now which directories
/// outside it belong to it: an older one would be taken for the latest, and WAL be left out.
pub(crate) fn at(aside: &Path, pgdata: &Path) -> anyhow::Result<Option<Record>> {
    let Some(record) = Record::read(aside)? else { return Ok(None) };
    let (is_it, of) = (record.is_at(aside), record.pgdata.clone());
    match record.respelled(pgdata, aside) {
        None if is_it => bail!(
            "{} was moved aside with directories outside it when the data directory was {}, and it is not known which directories these \
             are by now: nothing was changed\nHINT: Make the data directory reachable under that path again, and run this command with \
             it. If that directory is not needed any more, with WAL that may be nowhere else, move it to another place.",
            aside.display(),
            of.display()
        ),
        // One that was copied or renamed says something else of itself.
        record => Ok(record.filter(|record| record.aside == aside)),
    }
}

/// The record of a directory that is in place although a record says that it was to be moved.
pub(crate) fn left_in(pgdata: &Path) -> anyhow::Result<Option<Record>> {
    let record = Record::read(pgdata)?.and_then(|record| record.respelled(pgdata, pgdata));
    Ok(record.filter(Record::is_in_place))
}

pub(super) fn beside(directory: &Path, time: &str) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(format!("{SUFFIX}{time}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use walpoint_base::durable;

    use super::*;

    /// An older one would be taken for the latest, and WAL in this one be left out.
    #[test]
    fn the_latest_is_refused_where_its_directories_outside_are_not_known() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [before, now] = ["before", "now"].map(|name| dir.path().join(name));
        let (pgdata, space) = (before.join("data"), outside.path().join("space"));
        for directories in [Vec::new(), vec![(space.clone(), Some("pg_tblspc/1".into()))]] {
            fs::create_dir_all(pgdata.join("pg_tblspc")).unwrap();
            fs::create_dir_all(&space).unwrap();
            symlink(&space, pgdata.join("pg_tblspc/1")).unwrap();
            Record::plan(&pgdata, directories, None, Timestamp::now()).unwrap().go().unwrap();
        }
        assert_eq!(all(&pgdata).unwrap().len(), 2);
        let newest = latest(&pgdata).unwrap().unwrap().aside;
        for is_left in [false, true] {
            durable::rename(&before, &now).unwrap();
            if is_left {
                fs::create_dir(&before).unwrap();
            }
            let moved = now.join("data");
            let refused = [latest(&moved).map(drop), all(&moved).map(drop)];
            for refused in refused.map(|refused| format!("{:#}", refused.unwrap_err())) {
                let named = now.join(newest.file_name().unwrap());
                assert!(refused.starts_with(&named.display().to_string()), "{refused}");
                assert!(refused.contains("Make the data directory reachable"), "{refused}");
            }
            if is_left {
                fs::remove_dir(&before).unwrap();
            }
            durable::rename(&now, &before).unwrap();
            assert_eq!(latest(&pgdata).unwrap().unwrap().aside, newest);
        }
    }
}
