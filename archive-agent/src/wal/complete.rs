//! Up to where a repository that does not have to acknowledge lacks nothing, for the daemon after this one: of what was being stored
//! there when a daemon ended any part may be missing, in any order, and by then the repository's newest backup may be younger.
//!
//! A line for each repository in a file in `pg_wal`: its ID, the cluster, the lineage and a segment. In another lineage nothing is known
//! to be there. Where files were left that could not be copied, it is the segment from which they have to be looked for again. An old one
//! costs a longer comparison. A line that cannot be read means nothing. The file is replaced as a whole.
//!
//! Besides, a line for each damaged object that keeps a file from being stored ([`blocked`](super::blocked)): `damaged`, the file and the
//! object's key in place of the segment.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use walpoint_base::{SegmentName, WalFileName, durable};
use walpoint_repo::Lineage;
use walpoint_storage::layout::Key;
use walpoint_storage::object::RepositoryId;

/// Its name in `pg_wal`.
pub(super) const FILE: &str = "walpoint-complete";

/// What follows the place in a line of a damaged object.
const DAMAGED: &str = " damaged ";

/// Each repository has a task of its own, and the file is one.
static WRITING: Mutex<()> = Mutex::new(());

/// How a line begins.
pub(super) fn place(repository: RepositoryId, lineage: &Lineage) -> String {
    format!("{repository} {} {}", lineage.cluster, lineage.id)
}

/// The segment that is noted of a lineage in a repository. A file that cannot be read says nothing. Blocks.
pub(super) fn read(wal: &Path, place: &str) -> Option<SegmentName> {
    let bytes = std::fs::read(wal.join(FILE)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n')?.rsplit_once(' '))
        .find_map(|(of, segment)| if of == place { segment.parse().ok() } else { None })
}

/// A lineage in a repository lacks nothing up to that segment. Blocks.
pub(super) fn note(wal: &Path, place: &str, segment: SegmentName) -> io::Result<()> {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let text = content(wal)?;
    let others = text.lines().filter(|line| line.rsplit_once(' ').is_some_and(|(of, _)| of != place));
    let mut lines: String = others.map(|line| format!("{line}\n")).collect();
    lines += &format!("{place} {segment}\n");
    durable::replace_for_owner(&wal.join(FILE), lines.as_bytes(), 0o600)
}

/// The damaged objects that are noted of a lineage in a repository, and their files. Blocks.
pub(super) fn read_damaged(wal: &Path, place: &str) -> io::Result<BTreeMap<Key, WalFileName>> {
    Ok(damaged_in(&content(wal)?, place))
}

/// Notes damaged objects of a lineage in a repository beside those that are noted, except for those that are gone. Blocks.
pub(super) fn note_damaged(
    wal: &Path,
    place: &str,
    objects: BTreeMap<Key, WalFileName>,
    gone: &[Key],
) -> io::Result<()> {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let text = content(wal)?;
    let before = damaged_in(&text, place);
    let mut now = before.clone();
    now.extend(objects);
    now.retain(|key, _| !gone.contains(key));
    if now == before {
        return Ok(());
    }
    let others = text.lines().filter(|line| damaged(line, place).is_none());
    let mut lines: String = others.map(|line| format!("{line}\n")).collect();
    lines.extend(now.iter().map(|(key, name)| format!("{place}{DAMAGED}{name} {key}\n")));
    durable::replace_for_owner(&wal.join(FILE), lines.as_bytes(), 0o600)
}

fn content(wal: &Path) -> io::Result<String> {
    let bytes = match std::fs::read(wal.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn damaged_in(text: &str, place: &str) -> BTreeMap<Key, WalFileName> {
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.filter_map(|line| damaged(line, place)).collect()
}

fn damaged(line: &str, place: &str) -> Option<(Key, WalFileName)> {
    let (name, key) = line.strip_prefix(place)?.strip_prefix(DAMAGED)?.split_once(' ')?;
    Some((key.parse().ok()?, name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use walpoint_base::LineageId;

    use super::super::fixtures::Bed;
    use super::*;

    #[test]
    fn each_repository_has_its_segment() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path();
        let (first, second) = (&RepositoryId::random().to_string(), &RepositoryId::random().to_string());
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

    #[test]
    fn damaged_objects_are_noted_beside_the_segments() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path();
        let name: WalFileName = "000000010000000000000005".parse().unwrap();
        let keys = ["clusters/main/5", "clusters/main/6"].map(|key| key.parse::<Key>().unwrap());
        let all = BTreeMap::from(keys.clone().map(|key| (key, name)));
        let first = BTreeMap::from([(keys[0].clone(), name)]);
        note(wal, "id main 7-1", name.segment().unwrap()).unwrap();
        note_damaged(wal, "id main 7-1", all.clone(), &[]).unwrap();
        note_damaged(wal, "id main 7-12", first.clone(), &[]).unwrap();
        note(wal, "id main 7-1", name.segment().unwrap()).unwrap();
        assert_eq!(read(wal, "id main 7-1"), name.segment());
        let read = |place| read_damaged(wal, place).unwrap();
        assert_eq!((read("id main 7-1"), read("id main 7-12")), (all, first.clone()));
        // By a process that knows of none of them.
        note_damaged(wal, "id main 7-1", BTreeMap::new(), &keys[1..]).unwrap();
        assert_eq!(read("id main 7-1"), first);
        assert_eq!(super::read(wal, "id main 7-1"), name.segment());
    }

    #[tokio::test]
    async fn of_another_lineage_nothing_is_noted() {
        let bed = Bed::new().await;
        let (id, lineage) = (bed.archive.repository().id(), bed.archive.lineage().clone());
        let wal = bed.pgdata().join("pg_wal");
        note(&wal, &place(id, &lineage), "000000010000000000000005".parse().unwrap()).unwrap();
        assert!(read(&wal, &place(id, &lineage)).is_some());
        let next = Lineage { id: LineageId { n: lineage.id.n + 1, ..lineage.id }, ..lineage };
        assert_eq!(read(&wal, &place(id, &next)), None);
    }
}
