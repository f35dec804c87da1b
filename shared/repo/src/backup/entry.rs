//! One row of the file table: a file, directory or link of the cluster.

use walpoint_storage::object::ContentHash;

use super::blocks::BlockList;
use super::geometry::{BlockSize, INLINE_BLOCKS, MAX_FILE};
use super::location::{BackupRef, FrameRef, RefWriter};
use super::path::{MAX_PATH, Shown, TablePath};
use super::wire::{Input, Malformed, Output};

/// A file, directory or link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEntry {
    /// Its name.
    pub path: TablePath,
    /// Owner, mode and time.
    pub attributes: Attributes,
    /// What it is, and where its content is.
    pub content: EntryContent,
}

/// What the file system says about a file beside its content.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Attributes {
    /// The permission bits, at most `0o7777`.
    pub mode: u16,
    /// The owner's number. The manifest names the numbers that occur.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Time of the last change of content, in nanoseconds since 1970-01-01 UTC.
    pub mtime: i64,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryContent {
    /// A regular file.
    File(FileContent),
    /// A directory.
    Directory,
    /// A directory that the cluster reaches through a symbolic link: a tablespace (`pg_tblspc/<oid>`), or `pg_wal` on a
    /// disk of its own. What is in it has entries below this path.
    LinkedDirectory {
        /// Where the link led, any bytes. A restore decides anew where it leads.
        target: Vec<u8>,
    },
    /// Any other symbolic link. Nothing can have an entry below it.
    Link {
        /// Where it led, any bytes.
        target: Vec<u8>,
    },
}

impl EntryContent {
    /// Whether there can be entries below it.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory | Self::LinkedDirectory { .. })
    }
}

/// The content of a regular file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileContent {
    /// Its exact length in bytes.
    pub length: u64,
    /// The hash of its content: see [`super::hash::FileHasher`].
    pub hash: ContentHash,
    /// Pages that failed PostgreSQL's checksum while they were read; the manifest's findings name the first ones.
    pub bad_pages: u32,
    /// Where its blocks are.
    pub blocks: Blocks,
}

/// Where the blocks of a file are. Which of the three is the writer's choice; all describe the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Blocks {
    /// Listed here: at most [`INLINE_BLOCKS`].
    Inline(BlockList),
    /// Listed in leaves.
    Leaves(Vec<LeafRun>),
    /// Listed in leaves that are listed in nodes.
    Nodes(Vec<NodeRef>),
}

/// The most runs of leaves in an entry or a node; a file with more has nodes.
pub(super) const MAX_LEAF_RUNS: usize = 1024;

/// One or more consecutive leaves of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeafRun {
    /// That many leaves without a byte other than zero.
    Zero(u32),
    /// One leaf.
    Stored {
        /// Where it is.
        at: FrameRef,
        /// The hash of the bytes it describes.
        hash: ContentHash,
    },
}

impl LeafRun {
    /// How many leaves it stands for.
    pub fn leaves(self) -> u64 {
        match self {
            Self::Zero(n) => u64::from(n),
            Self::Stored { .. } => 1,
        }
    }
}

/// A list of leaf runs that is stored as a frame of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeRef {
    /// Where it is.
    pub at: FrameRef,
    /// How many leaves it stands for.
    pub leaves: u32,
}

/// The numbers that say what an entry is.
mod tag {
    pub(super) const DIRECTORY: u8 = 1;
    pub(super) const LINKED_DIRECTORY: u8 = 2;
    pub(super) const LINK: u8 = 3;
    pub(super) const INLINE: u8 = 4;
    pub(super) const LEAVES: u8 = 5;
    pub(super) const NODES: u8 = 6;
}

impl FileEntry {
    /// Path, tag, attributes, then what belongs to the tag.
    pub(super) fn encode(&self, out: &mut Vec<u8>, refs: &mut RefWriter) {
        self.path.encode(out);
        out.put_u8(match &self.content {
            EntryContent::Directory => tag::DIRECTORY,
            EntryContent::LinkedDirectory { .. } => tag::LINKED_DIRECTORY,
            EntryContent::Link { .. } => tag::LINK,
            EntryContent::File(file) => match file.blocks {
                Blocks::Inline(_) => tag::INLINE,
                Blocks::Leaves(_) => tag::LEAVES,
                Blocks::Nodes(_) => tag::NODES,
            },
        });
        let Attributes { mode, uid, gid, mtime } = self.attributes;
        out.put_u16(mode);
        out.put_u32(uid);
        out.put_u32(gid);
        out.put_i64(mtime);
        match &self.content {
            EntryContent::Directory => {}
            EntryContent::LinkedDirectory { target } | EntryContent::Link { target } => {
                out.put_short_bytes(target)
            }
            EntryContent::File(file) => file.encode(out, refs),
        }
    }

    pub(super) fn decode(
        input: &mut Input<'_>,
        refs: &[BackupRef],
        block_size: BlockSize,
    ) -> Result<Self, Malformed> {
        let path = TablePath::decode(input)?;
        let tag = input.u8()?;
        let (mode, uid, gid) = (input.u16()?, input.u32()?, input.u32()?);
        let attributes = Attributes { mode, uid, gid, mtime: input.i64()? };
        if mode > 0o7777 {
            return Err(Malformed(format!("{path} has the impossible mode {mode:o}")));
        }
        let content = match tag {
            tag::DIRECTORY => EntryContent::Directory,
            tag::LINKED_DIRECTORY => EntryContent::LinkedDirectory { target: target(input)? },
            tag::LINK => EntryContent::Link { target: target(input)? },
            _ => {
                let file = FileContent::decode(input, refs, block_size, tag);
                EntryContent::File(file.map_err(|e| Malformed(format!("{path}: {e}")))?)
            }
        };
        if path.path.is_root() && matches!(content, EntryContent::Link { .. }) {
            return Err(Malformed(format!("{path} is a link where a root should be")));
        }
        Ok(Self { path, attributes, content })
    }
}

fn target(input: &mut Input<'_>) -> Result<Vec<u8>, Malformed> {
    let bytes = input.short_bytes()?;
    if bytes.is_empty() || bytes.len() > MAX_PATH || bytes.contains(&0) {
        return Err(Malformed(format!("{:?} cannot be where a link leads", Shown(bytes))));
    }
    Ok(bytes.to_vec())
}

impl FileContent {
    fn encode(&self, out: &mut Vec<u8>, refs: &mut RefWriter) {
        out.put_u64(self.length);
        out.put(&self.hash.0);
        out.put_u32(self.bad_pages);
        match &self.blocks {
            Blocks::Inline(list) => list.encode(out, refs),
            Blocks::Leaves(runs) => encode_leaf_runs(runs, out, refs),
            Blocks::Nodes(nodes) => {
                out.put_count(nodes.len());
                for node in nodes {
                    out.put_u32(node.leaves);
                    node.at.encode(out, refs);
                }
            }
        }
    }

    fn decode(
        input: &mut Input<'_>,
        refs: &[BackupRef],
        block_size: BlockSize,
        tag: u8,
    ) -> Result<Self, Malformed> {
        let (length, hash, bad_pages) = (input.u64()?, ContentHash(input.hash()?), input.u32()?);
        if length > MAX_FILE {
            return Err(Malformed(format!("a length of {length} bytes is impossible")));
        }
        let blocks = match tag {
            tag::INLINE => {
                let count = block_size.blocks(length);
                let count = u32::try_from(count).ok().filter(|_| count <= INLINE_BLOCKS);
                let count = count.ok_or_else(|| Malformed::new("too many blocks are listed in the table"))?;
                Blocks::Inline(BlockList::decode(input, refs, count)?)
            }
            tag::LEAVES => Blocks::Leaves(decode_leaf_runs(input, refs, block_size.leaves(length))?),
            tag::NODES => {
                let count = input.count(4 + FrameRef::ENCODED)?;
                let mut nodes = Vec::with_capacity(count);
                for _ in 0..count {
                    nodes.push(NodeRef { leaves: input.u32()?, at: FrameRef::decode(input, refs)? });
                }
                let sum = nodes.iter().fold(0u64, |sum, n| sum.saturating_add(u64::from(n.leaves)));
                if sum != block_size.leaves(length) || nodes.iter().any(|n| n.leaves == 0) {
                    return Err(Malformed::new("its nodes do not describe its length"));
                }
                Blocks::Nodes(nodes)
            }
            other => return Err(Malformed(format!("{other} is no kind of entry"))),
        };
        Ok(Self { length, hash, bad_pages, blocks })
    }
}

/// Count (32 bits), then for each run: 0 and the number of zero leaves (32 bits), or 1, the frame and the hash.
pub(super) fn encode_leaf_runs(runs: &[LeafRun], out: &mut Vec<u8>, refs: &mut RefWriter) {
    out.put_count(runs.len());
    for run in runs {
        match run {
            LeafRun::Zero(leaves) => {
                out.put_u8(0);
                out.put_u32(*leaves);
            }
            LeafRun::Stored { at, hash } => {
                out.put_u8(1);
                at.encode(out, refs);
                out.put(&hash.0);
            }
        }
    }
}

/// Reads runs that stand for exactly `leaves` leaves.
pub(super) fn decode_leaf_runs(
    input: &mut Input<'_>,
    refs: &[BackupRef],
    leaves: u64,
) -> Result<Vec<LeafRun>, Malformed> {
    let count = input.count(5)?;
    if count > MAX_LEAF_RUNS {
        return Err(Malformed(format!("{count} runs of leaves are too many")));
    }
    let mut runs = Vec::with_capacity(count);
    let mut sum = 0u64;
    for _ in 0..count {
        let run = match input.u8()? {
            0 => LeafRun::Zero(input.u32()?),
            1 => LeafRun::Stored { at: FrameRef::decode(input, refs)?, hash: ContentHash(input.hash()?) },
            other => return Err(Malformed(format!("{other} is no kind of leaf"))),
        };
        sum = sum.saturating_add(run.leaves());
        runs.push(run);
    }
    if sum != leaves || runs.contains(&LeafRun::Zero(0)) {
        return Err(Malformed(format!("{sum} leaves are listed, there should be {leaves}")));
    }
    Ok(runs)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::blocks::tests::{any_place, at};
    use super::super::blocks::{BlockLocation, tests::id};
    use super::super::location::{PackNo, read_refs};
    use super::*;

    fn size() -> BlockSize {
        BlockSize::new(1024).unwrap()
    }

    fn frame() -> impl Strategy<Value = FrameRef> {
        (0u16..3, any::<u32>(), 1u16..).prop_map(|(b, pack, frame)| FrameRef {
            backup: BackupRef(b),
            pack: PackNo(pack),
            frame,
        })
    }

    fn leaf_run() -> impl Strategy<Value = LeafRun> {
        prop_oneof![
            (1u32..1000).prop_map(LeafRun::Zero),
            (frame(), any::<[u8; 32]>())
                .prop_map(|(at, hash)| LeafRun::Stored { at, hash: ContentHash(hash) }),
        ]
    }

    fn blocks() -> impl Strategy<Value = (u64, Blocks)> {
        let leaf_bytes = size().leaf_bytes();
        prop_oneof![
            proptest::collection::vec((any_place(), any::<u64>()), 0..64).prop_map(|blocks| {
                let mut list = BlockList::default();
                blocks.iter().for_each(|(place, hash)| list.push(*place, *hash));
                (u64::from(list.len()) * 1024, Blocks::Inline(list))
            }),
            proptest::collection::vec(leaf_run(), 1..9).prop_map(move |runs| {
                let leaves: u64 = runs.iter().map(|r| r.leaves()).sum();
                (leaves * leaf_bytes - 5, Blocks::Leaves(runs))
            }),
            proptest::collection::vec((frame(), 1u32..10000), 1..9).prop_map(move |nodes| {
                let nodes: Vec<_> = nodes.into_iter().map(|(at, leaves)| NodeRef { at, leaves }).collect();
                let leaves: u64 = nodes.iter().map(|n| u64::from(n.leaves)).sum();
                (leaves * leaf_bytes, Blocks::Nodes(nodes))
            }),
        ]
    }

    fn content() -> impl Strategy<Value = EntryContent> {
        let target = || proptest::collection::vec(1u8.., 1..20);
        prop_oneof![
            Just(EntryContent::Directory),
            target().prop_map(|target| EntryContent::LinkedDirectory { target }),
            target().prop_map(|target| EntryContent::Link { target }),
            (blocks(), any::<[u8; 32]>(), any::<u32>()).prop_map(|((length, blocks), hash, bad_pages)| {
                EntryContent::File(FileContent { length, hash: ContentHash(hash), bad_pages, blocks })
            }),
        ]
    }

    prop_compose! {
        pub(crate) fn any_entry()(name in "[a-z]{1,8}(/[a-zA-Z0-9_. ]{3,9}){0,2}", mode in 0u16..0o10000, uid: u32, gid: u32, mtime: i64, content in content()) -> FileEntry {
            let attributes = Attributes { mode, uid, gid, mtime };
            FileEntry { path: TablePath::data(name).unwrap(), attributes, content }
        }
    }

    fn encode(entry: &FileEntry) -> Vec<u8> {
        let (mut refs, mut body, mut out) = (RefWriter::default(), Vec::new(), Vec::new());
        entry.encode(&mut body, &mut refs);
        refs.encode(&mut out, &[id(0), id(1), id(2)]).unwrap();
        [out, body].concat()
    }

    fn decode(bytes: &[u8]) -> Result<FileEntry, Malformed> {
        let mut input = Input::new(bytes);
        let refs = read_refs(&mut input, &[id(0), id(1), id(2)])?;
        let entry = FileEntry::decode(&mut input, &refs, size())?;
        input.end().map(|()| entry)
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        let mut list = BlockList::default();
        list.push(at(0, 1, 1, 0), 7);
        list.push(BlockLocation::Zero, 0);
        let file = |length| FileContent {
            length,
            hash: ContentHash([1; 32]),
            bad_pages: 0,
            blocks: Blocks::Inline(list.clone()),
        };
        let entry = |length| FileEntry {
            path: TablePath::data("x").unwrap(),
            attributes: Attributes::default(),
            content: EntryContent::File(file(length)),
        };
        assert!(decode(&encode(&entry(1025))).is_ok() && decode(&encode(&entry(2048))).is_ok());
        for lie in [0, 1024, 2049, 1 << 40, MAX_FILE + 1, u64::MAX] {
            assert!(decode(&encode(&entry(lie))).is_err(), "{lie}");
        }
    }

    proptest! {
        #[test]
        fn entries_come_back(entry in any_entry()) {
            prop_assert_eq!(decode(&encode(&entry)), Ok(entry));
        }

        #[test]
        fn a_changed_byte_never_panics(entry in any_entry(), at: usize, value: u8) {
            let mut bytes = encode(&entry);
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(other) = decode(&bytes) {
                prop_assert!(TablePath::data(other.path.path.as_bytes()).is_ok());
            }
        }
    }
}
