use ::tar::{Builder, EntryType, Header};
use proptest::prelude::*;

use super::*;

/// An item with its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Owned {
    Entry(TarEntry),
    File(Vec<u8>),
}

/// Reads an archive given in pieces of these lengths, again and again.
fn read(archive: &[u8], pieces: &[usize]) -> Result<Vec<Owned>, BaseBackupError> {
    let (mut tar, mut all, mut content) = (Tar::default(), Vec::new(), Vec::new());
    let mut act = |item: Item<'_>| {
        match item {
            Item::Entry(entry) => all.push(Owned::Entry(entry)),
            Item::Data(bytes) => content.extend_from_slice(bytes),
            Item::FileEnd => all.push(Owned::File(std::mem::take(&mut content))),
        }
        Ok::<_, BaseBackupError>(())
    };
    let (mut rest, mut lengths) = (archive, pieces.iter().cycle());
    while !rest.is_empty() {
        let length = lengths.next().copied().unwrap_or(usize::MAX).clamp(1, rest.len());
        let (now, later) = rest.split_at(length);
        tar.feed(now, &mut act)?;
        rest = later;
    }
    tar.finish()?;
    Ok(all)
}

fn header(path: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o100_600);
    header.set_uid(26);
    header.set_gid(70);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    header
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.resize(content.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn file(path: &[u8], content: &[u8]) -> Vec<u8> {
    let header = header(path, EntryType::Regular, content.len() as u64);
    [header.as_bytes().to_vec(), padded(content)].concat()
}

fn link(path: &[u8], target: &[u8]) -> Vec<u8> {
    let mut header = header(path, EntryType::Symlink, 0);
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
    header.set_cksum();
    header.as_bytes().to_vec()
}

const STATUS: Status = Status { mode: 0o600, uid: 26, gid: 70, mtime: 1_700_000_000 };

fn entry(path: &[u8], kind: EntryKind) -> Owned {
    Owned::Entry(TarEntry { path: path.to_vec(), kind, status: STATUS })
}

#[test]
fn directories_links_and_files_in_pieces_of_any_size() {
    let directory = header(b"base/", EntryType::Directory, 0).as_bytes().to_vec();
    let content: Vec<u8> = (0..2000u32).map(|n| (n % 251) as u8).collect();
    let archive = [
        directory,
        file(b"base/1", &content),
        file(b"base/\xFFempty", b""),
        link(b"pg_tblspc/16384/", b"/space"),
        file(b"x", b"x"),
    ]
    .concat();
    let expected = vec![
        entry(b"base", EntryKind::Directory),
        entry(b"base/1", EntryKind::File(2000)),
        Owned::File(content),
        entry(b"base/\xFFempty", EntryKind::File(0)),
        Owned::File(Vec::new()),
        entry(b"pg_tblspc/16384", EntryKind::Link(b"/space".to_vec())),
        entry(b"x", EntryKind::File(1)),
        Owned::File(b"x".to_vec()),
    ];
    // As 13 and 14 end it, and as tar does.
    for end in [0, 1024] {
        let archive = [archive.clone(), vec![0; end]].concat();
        for pieces in [&[usize::MAX][..], &[1], &[512], &[511, 2], &[32 << 10]] {
            assert_eq!(read(&archive, pieces).unwrap(), expected, "{pieces:?}");
        }
    }
    assert_eq!(read(b"", &[]).unwrap(), [], "an empty archive");
    for cut in 1..archive.len() {
        let at_a_header = read(&archive[..cut], &[usize::MAX]).is_ok();
        assert!(!at_a_header || cut % BLOCK == 0, "{cut}");
    }
}

#[test]
fn sizes_beyond_octal_and_names_beyond_a_header() {
    let size = 9 << 30;
    let mut tar = Tar::default();
    let mut found = Vec::new();
    let mut act = |item: Item<'_>| {
        if let Item::Entry(entry) = item {
            found.push(entry.kind);
        }
        Ok::<_, BaseBackupError>(())
    };
    tar.feed(header(b"big", EntryType::Regular, size).as_bytes(), &mut act).unwrap();
    assert_eq!(found, [EntryKind::File(size)], "base-256");
    assert!(tar.finish().is_err());

    let long: Vec<u8> =
        (0..299u32).map(|n| if n % 20 == 19 { b'/' } else { b'a' + (n % 26) as u8 }).collect();
    // GNU's way, written by the crate itself.
    let mut builder = Builder::new(Vec::new());
    let mut plain = Header::new_gnu();
    plain.set_size(3);
    plain.set_mode(0o600);
    plain.set_uid(0);
    plain.set_gid(0);
    plain.set_mtime(0);
    let name = std::str::from_utf8(&long).unwrap();
    builder.append_data(&mut plain, name, &b"abc"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let Owned::Entry(read_back) = &read(&archive, &[100]).unwrap()[0] else { panic!() };
    assert_eq!(read_back.path, long);
    // pax, and ustar's prefix.
    let record = |key: &str, value: &[u8]| {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    };
    let records = [record("path", &long), record("size", b"3"), record("mtime", b"1.5")].concat();
    let pax = header(b"PaxHeaders/x", EntryType::XHeader, records.len() as u64);
    let archive = [
        pax.as_bytes().to_vec(),
        padded(&records),
        header(b"short", EntryType::Regular, 0).as_bytes().to_vec(),
        padded(b"abc"),
    ]
    .concat();
    let all = read(&archive, &[7]).unwrap();
    let Owned::Entry(read_back) = &all[0] else { panic!() };
    assert_eq!(
        (&read_back.path, &read_back.kind, &all[1]),
        (&long, &EntryKind::File(3), &Owned::File(b"abc".to_vec()))
    );
    let mut prefixed = header(b"name", EntryType::Regular, 0);
    prefixed.as_mut_bytes()[345..349].copy_from_slice(b"base");
    prefixed.set_cksum();
    assert_eq!(read(prefixed.as_bytes(), &[]).unwrap()[0], entry(b"base/name", EntryKind::File(0)));
}

#[test]
fn what_no_archive_holds_is_refused() {
    let mut wrong_sum = file(b"a", b"x");
    wrong_sum[0] = b'b';
    let huge = header(b"a", EntryType::Regular, u64::MAX).as_bytes().to_vec();
    let huge_extension = header(b"a", EntryType::XHeader, 1 << 20).as_bytes().to_vec();
    let full_directory = [header(b"a", EntryType::Directory, 1).as_bytes().to_vec(), padded(b"x")].concat();
    let after_the_end = [vec![0; BLOCK], file(b"a", b"x")].concat();
    for (bad, what) in [
        (wrong_sum, "checksum"),
        (huge, "size"),
        (huge_extension, "extension"),
        (full_directory, "content"),
        (after_the_end, "after the end"),
        (header(b"a", EntryType::Link, 0).as_bytes().to_vec(), "kind"),
        (header(b"", EntryType::Regular, 0).as_bytes().to_vec(), "name"),
    ] {
        let error = read(&bad, &[]).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_entries_or_an_error(bytes: Vec<u8>, pieces in proptest::collection::vec(1..700usize, 0..4)) {
        drop(read(&bytes, &pieces));
    }

    #[test]
    fn what_was_written_is_read_however_it_is_cut(
        files in proptest::collection::vec(("[a-z]{1,90}", proptest::collection::vec(any::<u8>(), 0..1500)), 0..6),
        pieces in proptest::collection::vec(1..3000usize, 1..6),
        end in prop_oneof![Just(0usize), Just(1024), Just(5120)],
    ) {
        let mut archive: Vec<u8> = files.iter().flat_map(|(name, content)| file(name.as_bytes(), content)).collect();
        archive.resize(archive.len() + end, 0);
        let expected: Vec<Owned> = files.iter().flat_map(|(name, content)| {
            [entry(name.as_bytes(), EntryKind::File(content.len() as u64)), Owned::File(content.clone())]
        }).collect();
        prop_assert_eq!(read(&archive, &pieces).unwrap(), expected);
    }

    #[test]
    fn a_changed_archive_is_entries_or_an_error(
        content in proptest::collection::vec(any::<u8>(), 0..1500),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        sum: bool,
    ) {
        let mut archive = [file(b"base/5/16384", &content), link(b"pg_tblspc/1", b"/x"), file(b"b", b"y")].concat();
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        if sum {
            // So that what is behind the checksum is tried too.
            let mut header = Header::from_byte_slice(&archive[..BLOCK]).clone();
            header.set_cksum();
            archive[..BLOCK].copy_from_slice(header.as_bytes());
        }
        drop(read(&archive, &[usize::MAX]));
    }
}
