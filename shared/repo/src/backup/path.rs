//! Names of files in a backup: any bytes, but never a way out of the directory they are restored into.
//!
//! A path is relative to a [`Root`]. Paths sort so that a directory comes before what is in it and its whole content
//! is contiguous: as bytes, with `/` before every other byte. [`TreeCheck`] relies on that to prove, with no memory
//! but the chain of open directories, that a table holds no path twice and none below something that is not a directory.

use std::cmp::Ordering;
use std::fmt;

use super::wire::{Input, Malformed, Output};

/// The longest path in bytes, PostgreSQL and Linux allow no longer one.
pub const MAX_PATH: usize = 4095;
/// The longest name of one file, as every Linux filesystem has it.
const MAX_COMPONENT: usize = 255;

/// A relative path that is safe to join to a directory: components of 1 to 255 bytes without NUL, none of them `.` or
/// `..`, separated by single slashes. Empty for the root itself.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RelativePath(Vec<u8>);

impl RelativePath {
    /// Checks a path. The message says what is wrong with it.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Malformed> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let bad = |what: &str| Malformed(format!("the path {:?} {what}", Shown(&bytes)));
        if bytes.len() > MAX_PATH {
            return Err(bad("is longer than 4095 bytes"));
        }
        if bytes.contains(&0) {
            return Err(bad("contains a NUL"));
        }
        if bytes.starts_with(b"/") {
            return Err(bad("is absolute"));
        }
        for component in bytes.split(|&b| b == b'/') {
            match component {
                b"" => return Err(bad("has an empty component")),
                b"." | b".." => return Err(bad("has a component '.' or '..'")),
                _ if component.len() > MAX_COMPONENT => {
                    return Err(bad("has a component of more than 255 bytes"));
                }
                _ => {}
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes, without a leading or trailing slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For the calls of the operating system.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of the parent's path; `None` for the root.
    fn parent_bytes(&self) -> Option<&[u8]> {
        if self.is_root() {
            return None;
        }
        let slash = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        self.0.get(..slash)
    }

    /// The path of a file in this directory.
    pub fn join(&self, name: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self::new(bytes)
    }
}

impl Ord for RelativePath {
    fn cmp(&self, other: &Self) -> Ordering {
        // No path holds a NUL, so it can stand for the slash, and subtrees are contiguous.
        let key = |&b: &u8| if b == b'/' { 0 } else { b };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl PartialOrd for RelativePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Shown(&self.0), f)
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Shown(&self.0), f)
    }
}

/// Bytes of a path as readable text of bounded length: control and non-ASCII bytes escaped.
pub(super) struct Shown<'a>(pub(super) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.get(..300).unwrap_or(self.0);
        match std::str::from_utf8(text) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", text.escape_ascii()),
        }
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// What a path is relative to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Root {
    /// The data directory. Tablespaces are seen through `pg_tblspc/<oid>`.
    Data,
    /// The file or directory outside of it with that place in the manifest's list of extra paths.
    Extra(u16),
}

impl Root {
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Data => 0,
            Self::Extra(n) => n.saturating_add(1),
        }
    }

    pub(super) fn from_code(code: u16) -> Self {
        code.checked_sub(1).map_or(Self::Data, Self::Extra)
    }
}

/// The full name of a file in a backup. Sorts by root, then by path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TablePath {
    /// Where the path starts.
    pub root: Root,
    /// The way from there.
    pub path: RelativePath,
}

impl TablePath {
    /// A file of the data directory.
    pub fn data(path: impl Into<Vec<u8>>) -> Result<Self, Malformed> {
        Ok(Self { root: Root::Data, path: RelativePath::new(path)? })
    }

    /// A path that nothing was checked of: for tests that write what a reader has to refuse.
    #[cfg(feature = "conformance")]
    pub fn unchecked(root: Root, path: impl Into<Vec<u8>>) -> Self {
        Self { root, path: RelativePath(path.into()) }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.root.code());
        out.put_short_bytes(self.path.as_bytes());
    }

    pub(super) fn decode(input: &mut Input<'_>) -> Result<Self, Malformed> {
        let root = Root::from_code(input.u16()?);
        Ok(Self { root, path: RelativePath::new(input.short_bytes()?)? })
    }
}

impl fmt::Display for TablePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.root {
            Root::Data => write!(f, "{}", self.path),
            Root::Extra(n) => write!(f, "(extra path {n})/{}", self.path),
        }
    }
}

/// Proves of a table, entry by entry, that paths ascend without a duplicate and that the parent of each is a directory
/// of the same table. So nothing is ever created through a link that the table itself put there.
#[derive(Default, Debug)]
pub struct TreeCheck {
    last: Option<TablePath>,
    /// The directories that contain the last entry, outermost first, and that entry if it is one.
    open: Vec<TablePath>,
}

impl TreeCheck {
    /// Takes the next entry of the table.
    pub fn next(&mut self, path: &TablePath, is_directory: bool) -> Result<(), Malformed> {
        match self.last.as_ref().map(|last| last.cmp(path)) {
            Some(Ordering::Equal) => return Err(Malformed(format!("the path {path} is there twice"))),
            Some(Ordering::Greater) => return Err(Malformed(format!("the path {path} is out of order"))),
            _ => {}
        }
        if let Some(parent) = path.path.parent_bytes() {
            let holds = |dir: &TablePath| dir.root == path.root && dir.path.as_bytes() == parent;
            while self.open.last().is_some_and(|dir| !holds(dir)) {
                self.open.pop();
            }
            if self.open.is_empty() {
                return Err(Malformed(format!("the parent of {path} is not a directory of the backup")));
            }
        } else {
            self.open.clear();
        }
        if is_directory {
            self.open.push(path.clone());
        }
        self.last = Some(path.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> RelativePath {
        RelativePath::new(text).unwrap()
    }

    #[test]
    fn only_paths_that_stay_inside() {
        let long = "x".repeat(255);
        for good in ["", "a", "a/b", "base/1/1259_fsm", "...", "..a", " ", "a\nb", "-rf", "\\", "ä", &long] {
            assert_eq!(path(good).as_bytes(), good.as_bytes());
        }
        assert!(RelativePath::new(vec![0xFF, 0xFE, b'/', 0x80]).is_ok(), "any bytes are a name");
        let (component, whole) = ("x".repeat(256), "x/".repeat(2048) + "x");
        for bad in [
            "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../b", "./a", "a/.", "a\0b", &component,
            &whole,
        ] {
            assert!(RelativePath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_directory_comes_first_and_its_content_is_contiguous() {
        let mut paths = ["a-b", "a/z", "a", "", "a.b", "a/b/c", "a/b", "b"].map(path);
        paths.sort();
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a/z", "a-b", "a.b", "b"].map(path));
    }

    fn check(entries: &[(&str, bool)]) -> Result<(), Malformed> {
        let mut check = TreeCheck::default();
        entries.iter().try_for_each(|(path, dir)| check.next(&TablePath::data(*path)?, *dir))
    }

    #[test]
    fn every_parent_is_a_directory_of_the_table() {
        let good = [("", true), ("a", true), ("a/b", true), ("a/b/c", false), ("a/d", false), ("e", false)];
        assert_eq!(check(&good), Ok(()));
        for bad in [
            &[("", true), ("link", false), ("link/x", false)][..],
            &[("", true), ("a/b", false)],
            &[("a", false)],
            &[("", true), ("a", true), ("a", true)],
            &[("", true), ("b", true), ("a", true)],
            &[("", true), ("a", true), ("b", true), ("a/x", false)],
            &[("", false), ("a", false)],
            &[("", true), ("a", true), ("ab/x", false)],
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roots_are_trees_of_their_own() {
        let mut check = TreeCheck::default();
        let extra = |path| TablePath { root: Root::Extra(0), path: self::path(path) };
        check.next(&TablePath::data("").unwrap(), true).unwrap();
        assert!(check.next(&extra("a"), false).is_err(), "the root of an extra path was not given");
        let mut check = TreeCheck::default();
        check.next(&extra(""), false).unwrap();
        assert!(check.next(&extra("a"), false).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_safe_path_or_an_error(bytes in proptest::collection::vec(
            prop_oneof![Just(b'.'), Just(b'/'), Just(b'a'), any::<u8>()], 0..12)) {
            if let Ok(path) = RelativePath::new(bytes.clone()) {
                prop_assert_eq!(path.as_bytes(), &bytes[..]);
                let joined = std::path::Path::new("/target").join(path.as_path());
                prop_assert!(joined.starts_with("/target"));
                prop_assert!(joined.components().all(|c| c != std::path::Component::ParentDir));
                prop_assert!(!bytes.contains(&0));
            }
        }

        #[test]
        fn tables_in_order_with_parents_pass(names in proptest::collection::btree_set("[a-c]{1,2}(/[a-c-]{1,2}){0,3}", 1..20)) {
            let mut all = std::collections::BTreeSet::from([path("")]);
            for name in &names {
                for (at, _) in name.match_indices('/') {
                    all.insert(path(&name[..at]));
                }
                all.insert(path(name));
            }
            let mut check = TreeCheck::default();
            for path in all {
                prop_assert_eq!(check.next(&TablePath { root: Root::Data, path }, true), Ok(()));
            }
        }
    }
}
