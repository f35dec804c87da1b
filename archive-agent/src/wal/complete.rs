//! Up to where a repository that does not have to acknowledge lacks nothing, for the daemon after this one: of what was being stored
//! there when a daemon ended any part may be missing, in any order, and by then the repository's newest backup may be younger.
//!
//! A line for each repository in a file in `pg_wal`: its ID and a segment. An old one costs a longer comparison. A line that cannot be
//! read means nothing. The file is replaced as a whole.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use walpoint_base::{SegmentName, durable};
use walpoint_storage::object::RepositoryId;

/// Its name in `pg_wal`.
pub(super) const FILE: &str = "walpoint-complete";

/// The segment that is noted of a repository. A file that cannot be read says nothing. Blocks.
pub(super) fn read(wal: &Path, repository: RepositoryId) -> Option<SegmentName> {
    let bytes = std::fs::read(wal.join(FILE)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let id = repository.to_string();
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n')?.split_once(' '))
        .find_map(|(of, segment)| if of == id { segment.parse().ok() } else { None })
}

/// A repository lacks nothing up to that segment. Blocks.
pub(super) fn note(wal: &Path, repository: RepositoryId, segment: SegmentName) -> io::Result<()> {
    // Each repository has a task of its own, and the file is one.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = match std::fs::read(wal.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let (text, id) = (String::from_utf8_lossy(&bytes), repository.to_string());
    let others = text.lines().filter(|line| line.split_once(' ').is_some_and(|(of, _)| of != id));
    let mut lines: String = others.map(|line| format!("{line}\n")).collect();
    lines += &format!("{id} {segment}\n");
    durable::replace_for_owner(&wal.join(FILE), lines.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repository_has_its_segment() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path();
        let (first, second) = (RepositoryId::random(), RepositoryId::random());
        let name = |text: &str| text.parse::<SegmentName>().unwrap();
        assert_eq!(read(wal, first), None);
        note(wal, first, name("000000010000000000000005")).unwrap();
        note(wal, second, name("000000020000000000000006")).unwrap();
        note(wal, first, name("000000010000000000000007")).unwrap();
        assert_eq!(read(wal, first), Some(name("000000010000000000000007")));
        assert_eq!(read(wal, second), Some(name("000000020000000000000006")));
        for damage in
            [format!("{first} 0000000100000"), format!("{first} x\n"), format!("{first}\n"), "\n".to_owned()]
        {
            durable::replace(&wal.join(FILE), damage.as_bytes(), 0o600).unwrap();
            assert_eq!(read(wal, first), None, "{damage:?}");
        }
        note(wal, second, name("000000020000000000000006")).unwrap();
        assert_eq!(read(wal, second), Some(name("000000020000000000000006")));
    }
}
