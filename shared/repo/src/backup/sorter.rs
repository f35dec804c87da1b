//! Sorts rows in bounded memory, whatever order and number they come in: of the file table by path, and others.
//!
//! Rows are held encoded. When they fill their share of memory they are sorted and written to a scratch file as a run;
//! at the end the runs are merged. The scratch file has no name, so a crash leaves nothing behind.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Memory for rows that are not in a run yet.
const HELD: usize = 4 << 20;
/// What is read of a run at a time: a thousand runs are 16 MiB, and as many as 4 GiB of rows.
const READ: usize = 16 << 10;

/// A row; what of its bytes is the sort key says its [`RowOrder`].
type Row = Vec<u8>;

/// How rows sort.
pub(super) trait RowOrder {
    fn compare(a: &[u8], b: &[u8]) -> Ordering;
}

/// By the root and path that the row begins with; rows of the same path in no order.
#[derive(Debug)]
pub(super) struct ByPath;

/// By the root and path that the row begins with, then as bytes.
#[derive(Debug)]
pub(super) struct ByPathAndRest;

#[derive(Debug)]
pub(super) struct AsBytes;

impl RowOrder for ByPath {
    fn compare(a: &[u8], b: &[u8]) -> Ordering {
        let ((root_a, a), (root_b, b)) = (key_of(a), key_of(b));
        root_a.cmp(&root_b).then_with(|| a.cmp(b))
    }
}

impl RowOrder for ByPathAndRest {
    fn compare(a: &[u8], b: &[u8]) -> Ordering {
        // Of one path the bytes before the rest are the same.
        ByPath::compare(a, b).then_with(|| a.cmp(b))
    }
}

impl RowOrder for AsBytes {
    fn compare(a: &[u8], b: &[u8]) -> Ordering {
        a.cmp(b)
    }
}

#[derive(Debug)]
pub(super) struct Sorter<O> {
    directory: PathBuf,
    rows: Vec<Row>,
    held: usize,
    limit: usize,
    scratch: Option<File>,
    /// Where each run lies in the scratch file.
    runs: Vec<Range<u64>>,
    order: PhantomData<O>,
}

/// Root and path of an encoded row as it sorts: `/` before every other byte.
fn key_of(row: &[u8]) -> (u16, impl Iterator<Item = u8> + '_) {
    let (root, rest) = row.split_first_chunk::<2>().unwrap_or((&[0, 0], &[]));
    let (len, path) = rest.split_first_chunk::<2>().unwrap_or((&[0, 0], &[]));
    let path = path.get(..usize::from(u16::from_le_bytes(*len))).unwrap_or(path);
    (u16::from_le_bytes(*root), path.iter().map(|&b| if b == b'/' { 0 } else { b }))
}

impl<O: RowOrder> Sorter<O> {
    /// Writes to `directory`, and only if there is much.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            rows: Vec::new(),
            held: 0,
            limit: HELD,
            scratch: None,
            runs: Vec::new(),
            order: PhantomData,
        }
    }

    pub(super) fn push(&mut self, row: Row) -> io::Result<()> {
        self.held += row.len() + size_of::<Row>();
        self.rows.push(row);
        if self.held < self.limit { Ok(()) } else { self.spill() }
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.scratch {
            Some(file) => file,
            none => none.insert(nameless_file(&self.directory)?),
        };
        self.rows.sort_unstable_by(|a, b| O::compare(a, b));
        let start = self.runs.last().map_or(0, |run| run.end);
        let mut end = start;
        let mut out = io::BufWriter::new(file);
        for row in self.rows.drain(..) {
            let len = u32::try_from(row.len()).map_err(io::Error::other)?;
            out.write_all(&len.to_le_bytes())?;
            out.write_all(&row)?;
            end += 4 + u64::from(len);
        }
        out.flush()?;
        self.runs.push(start..end);
        self.held = 0;
        Ok(())
    }

    /// All rows in order.
    pub(super) fn into_sorted(mut self) -> io::Result<Sorted<O>> {
        self.rows.sort_unstable_by(|a, b| O::compare(a, b));
        let mut sorted = Sorted { scratch: self.scratch, sources: Vec::new(), heap: BinaryHeap::new() };
        sorted.sources.push(Source::Held(self.rows.into_iter()));
        for run in self.runs {
            sorted.sources.push(Source::Run { unread: run, buffer: Vec::new(), at: 0 });
        }
        for source in 0..sorted.sources.len() {
            sorted.refill(source)?;
        }
        Ok(sorted)
    }
}

/// Created for this process alone and unlinked at once.
pub(super) fn nameless_file(directory: &Path) -> io::Result<File> {
    let path = walpoint_base::durable::temporary_beside(&directory.join("file-table"));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Rows in order.
#[derive(Debug)]
pub(super) struct Sorted<O> {
    scratch: Option<File>,
    sources: Vec<Source>,
    /// The next row of each source that has one.
    heap: BinaryHeap<Reverse<Next<O>>>,
}

#[derive(Debug)]
enum Source {
    Held(std::vec::IntoIter<Row>),
    Run { unread: Range<u64>, buffer: Vec<u8>, at: usize },
}

#[derive(Debug)]
struct Next<O> {
    row: Row,
    source: usize,
    order: PhantomData<O>,
}

impl<O: RowOrder> Ord for Next<O> {
    fn cmp(&self, other: &Self) -> Ordering {
        O::compare(&self.row, &other.row).then(self.source.cmp(&other.source))
    }
}

impl<O: RowOrder> PartialOrd for Next<O> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<O: RowOrder> PartialEq for Next<O> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<O: RowOrder> Eq for Next<O> {}

impl<O: RowOrder> Sorted<O> {
    /// The next row; `None` after the last one.
    pub(super) fn next(&mut self) -> io::Result<Option<Row>> {
        let Some(Reverse(Next { row, source, .. })) = self.heap.pop() else { return Ok(None) };
        self.refill(source)?;
        Ok(Some(row))
    }

    fn refill(&mut self, source: usize) -> io::Result<()> {
        let row = match (self.sources.get_mut(source), &self.scratch) {
            (Some(Source::Held(rows)), _) => rows.next(),
            (Some(Source::Run { unread, buffer, at }), Some(file)) => read_row(file, unread, buffer, at)?,
            _ => None,
        };
        self.heap.extend(row.map(|row| Reverse(Next { row, source, order: PhantomData })));
        Ok(())
    }
}

/// The next row of a run: from its buffer, filled up from the file as far as needed.
fn read_row(
    file: &File,
    unread: &mut Range<u64>,
    buffer: &mut Vec<u8>,
    at: &mut usize,
) -> io::Result<Option<Row>> {
    let mut have = |need: usize, buffer: &mut Vec<u8>, at: &mut usize| -> io::Result<bool> {
        if buffer.len() - *at >= need {
            return Ok(true);
        }
        buffer.drain(..*at);
        *at = 0;
        let held = buffer.len();
        let left = usize::try_from(unread.end - unread.start).unwrap_or(usize::MAX);
        let more = left.min(need.max(READ).saturating_sub(held));
        buffer.resize(held + more, 0);
        file.read_exact_at(buffer.get_mut(held..).unwrap_or_default(), unread.start)?;
        unread.start += u64::try_from(more).map_err(io::Error::other)?;
        Ok(buffer.len() >= need)
    };
    if !have(4, buffer, at)? {
        return Ok(None);
    }
    let len = buffer.get(*at..).and_then(|b| b.first_chunk()).map_or(0, |len| u32::from_le_bytes(*len));
    let len = usize::try_from(len).map_err(io::Error::other)?;
    if !have(4 + len, buffer, at)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let row = buffer.get(*at + 4..*at + 4 + len).unwrap_or_default().to_vec();
    *at += 4 + len;
    Ok(Some(row))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::path::{RelativePath, Root, TablePath};
    use super::*;

    fn row(path: &TablePath, rest: usize) -> Row {
        let mut row = Vec::new();
        path.encode(&mut row);
        row.resize(row.len() + rest, 7);
        row
    }

    proptest! {
        #[test]
        fn rows_come_out_in_the_order_of_their_paths(
            names in proptest::collection::vec(("[a-c-]{1,3}(/[a-c.]{3,4}){0,2}", 0u16..3, 0usize..40_000), 0..60),
            limit in 1usize..200_000,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::<ByPath> { limit, ..Sorter::new(dir.path()) };
            let mut expected = Vec::new();
            for (name, root, rest) in names {
                let root = Root::from_code(root);
                let Ok(path) = RelativePath::new(name) else { continue };
                let path = TablePath { root, path };
                sorter.push(row(&path, rest)).unwrap();
                expected.push((path, rest));
            }
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            let mut sorted = sorter.into_sorted().unwrap();
            let mut got = Vec::new();
            while let Some(row) = sorted.next().unwrap() {
                got.push(row);
            }
            prop_assert_eq!(got.len(), expected.len());
            for (got, (path, _)) in got.iter().zip(&expected) {
                let mut key = Vec::new();
                path.encode(&mut key);
                prop_assert!(got.starts_with(&key));
            }
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
