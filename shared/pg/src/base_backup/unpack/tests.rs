use ::tar::{EntryType, Header};

use super::*;

fn header(path: &str, kind: EntryType, size: usize) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o640 });
    header.set_uid(26);
    header.set_gid(26);
    header.set_mtime(1);
    if kind == EntryType::Symlink {
        header.as_mut_bytes()[157..160].copy_from_slice(b"/to");
    }
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// Names that end with a slash are directories, those with an arrow links; files contain their own name.
fn archive(names: &[&str]) -> Vec<u8> {
    let mut archive = Vec::new();
    for name in names {
        if name.ends_with('/') {
            archive.extend(header(name, EntryType::Directory, 0));
        } else if let Some(name) = name.strip_suffix("->") {
            archive.extend(header(name, EntryType::Symlink, 0));
        } else {
            archive.extend(header(name, EntryType::Regular, name.len()));
            archive.extend(name.as_bytes());
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
    }
    archive
}

const DATA: [&str; 12] = [
    "backup_label",
    "base/",
    "global/",
    "pg_commit_ts/",
    "pg_logical/",
    "pg_multixact/",
    "pg_stat/",
    "pg_tblspc/",
    "pg_twophase/",
    "pg_xact/",
    "pg_wal/",
    "global/pg_control",
];

fn space(archive: StreamArchive, location: &str) -> Space {
    Space { archive, location: location.into(), bytes: 0 }
}

fn unpack(
    spaces: &[Space],
    archives: &[(StreamArchive, Vec<&str>)],
) -> Result<(Vec<String>, Unpacked), BaseBackupError> {
    let ledger = ReceivedFiles::new(tempfile::tempfile().unwrap());
    let mut unpacker = Unpacker::new(spaces, Path::new("/data"), ledger);
    let mut told = Vec::new();
    for (place, names) in archives {
        unpacker.archive(*place)?;
        unpacker.data(&archive(names), &mut |event| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            match event {
                Event::Directory { path, status } => {
                    assert_eq!(status.mode, 0o750);
                    told.push(format!("{}/", text(path)));
                }
                Event::LinkedDirectory { path, target, .. } => {
                    told.push(format!("{}=>{}", text(path), text(target)))
                }
                Event::Link { path, target, .. } => told.push(format!("{}->{}", text(path), text(target))),
                Event::File { path, size, .. } => told.push(format!("{} {size}", text(path))),
                Event::Data(_) | Event::FileEnd => {}
            }
            Ok::<_, BaseBackupError>(())
        })?;
    }
    Ok((told, unpacker.finish()?))
}

#[test]
fn the_rules_of_the_local_reader_hold() {
    let mut names = DATA.to_vec();
    names.extend([
        "tablespace_map",
        "base/5/",
        "base/5/16384",
        "base/5/t3_1",
        "base/5/pg_internal.init",
        "base/pgsql_tmp/",
        "pg_wal/archive_status/",
        "pg_replslot/",
        "pg_replslot/slot/",
        "pg_replslot/slot/state",
        "postmaster.pid",
        "walpoint-spool/",
        "walpoint-spool/x",
        "conf/",
        "conf/backup_label",
        "./dotted",
        "elsewhere->",
    ]);
    let (told, unpacked) =
        unpack(&[space(StreamArchive::Data, "")], &[(StreamArchive::Data, names)]).unwrap();
    for kept in [
        "base/5/16384 12",
        "base/5/",
        "pg_wal/",
        "pg_replslot/",
        "conf/backup_label 17",
        "dotted 8",
        "global/pg_control 17",
        "elsewhere->/to",
    ] {
        assert!(told.contains(&kept.to_owned()), "{kept}: {told:?}");
    }
    for left_out in [
        "t3_1",
        "pg_internal",
        "pgsql_tmp",
        "archive_status",
        "slot/",
        "postmaster",
        "spool",
        "tablespace_map",
    ] {
        assert!(
            !told.iter().any(|name| name.contains(left_out) && name != "pg_replslot/"),
            "{left_out}: {told:?}"
        );
    }
    assert!(!told.contains(&"backup_label 12".to_owned()));
    assert_eq!(
        (&unpacked.label[..], &unpacked.tablespace_map[..]),
        (&b"backup_label"[..], &b"tablespace_map"[..])
    );
    assert_eq!((&unpacked.control[..], unpacked.root.mode), (&b"global/pg_control"[..], 0o750));
    // What stays out was received all the same, and is checked.
    let (mut reader, mut paths) = (unpacked.ledger.read().unwrap(), Vec::new());
    while let Some(received) = reader.next().unwrap() {
        let content = if received.path == b"dotted" { b"./dotted" } else { received.path.as_slice() };
        assert_eq!(received.crc, crc32c::crc32c(content));
        paths.push(String::from_utf8(received.path).unwrap());
    }
    assert_eq!(paths.first().map(String::as_str), Some("backup_label"));
    assert!(paths.contains(&"base/5/t3_1".to_owned()) && paths.contains(&"tablespace_map".to_owned()));
}

#[test]
fn tablespaces_lie_below_their_links() {
    let spaces = [
        space(StreamArchive::Tablespace(16400), "/mnt/fast"),
        space(StreamArchive::Tablespace(16401), "pg_tblspc/16401"),
        space(StreamArchive::Tablespace(16402), "/data/inside"),
        space(StreamArchive::Tablespace(16403), "/gone"),
        space(StreamArchive::Data, ""),
    ];
    let files = || vec!["PG_17_202406281/", "PG_17_202406281/5/", "PG_17_202406281/5/1"];
    let mut data = DATA.to_vec();
    data.extend(["pg_tblspc/16400->", "pg_tblspc/16401/", "pg_tblspc/99->", "inside/"]);
    let archives = [
        (StreamArchive::Tablespace(16400), files()),
        (StreamArchive::Tablespace(16401), files()),
        (StreamArchive::Tablespace(16402), files()),
        (StreamArchive::Tablespace(16403), vec![]),
        (StreamArchive::Data, data),
    ];
    let (told, _) = unpack(&spaces, &archives).unwrap();
    for kept in [
        "pg_tblspc/16400=>/mnt/fast",
        "pg_tblspc/16400/PG_17_202406281/5/1 19",
        "pg_tblspc/16401/",
        "pg_tblspc/16401/PG_17_202406281/",
        "pg_tblspc/16402=>/data/inside",
        "pg_tblspc/99->/to",
    ] {
        assert_eq!(told.iter().filter(|name| *name == kept).count(), 1, "{kept}: {told:?}");
    }
    assert!(
        !told
            .iter()
            .any(|name| name == "inside/" || name.contains("16403") || name == "pg_tblspc/16400->/to")
    );
}

#[test]
fn a_cluster_that_lacks_something_is_none() {
    for missing in ["pg_xact/", "base/"] {
        let names = DATA.iter().copied().filter(|name| *name != missing).collect();
        let error = unpack(&[space(StreamArchive::Data, "")], &[(StreamArchive::Data, names)])
            .unwrap_err()
            .to_string();
        assert!(error.contains(missing.trim_end_matches('/')) && error.contains("symbolic link"), "{error}");
    }
    for missing in ["backup_label", "global/pg_control"] {
        let names = DATA.iter().copied().filter(|name| *name != missing).collect();
        let error = unpack(&[space(StreamArchive::Data, "")], &[(StreamArchive::Data, names)])
            .unwrap_err()
            .to_string();
        assert!(error.contains(missing), "{error}");
    }
}
