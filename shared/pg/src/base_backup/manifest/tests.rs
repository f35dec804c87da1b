use std::io::Write;

use proptest::prelude::*;

use super::*;

fn ledger(files: &[(&[u8], &[u8])]) -> ReceivedFiles {
    let mut ledger = ReceivedFiles::new(tempfile::tempfile().unwrap());
    for (path, content) in files {
        let (size, crc) = (content.len() as u64, crc32c::crc32c(content));
        ledger.note(&Received { path: path.to_vec(), size, crc }).unwrap();
    }
    ledger
}

/// As `src/backend/backup/backup_manifest.c` writes it.
fn written(files: &[(&[u8], &[u8])], version: u32) -> Vec<u8> {
    let mut text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n");
    if version > 1 {
        text += "\"System-Identifier\": 7400000000000000001,\n";
    }
    text += "\"Files\": [";
    for (n, (path, content)) in files.iter().enumerate() {
        let name = match std::str::from_utf8(path) {
            Ok(path) => format!("\"Path\": {}", serde_json::to_string(path).unwrap()),
            Err(_) => format!("\"Encoded-Path\": \"{}\"", encoded(path)),
        };
        text += &format!(
            "{}\n{{ {name}, \"Size\": {}, \"Last-Modified\": \"2026-11-21 10:15:00 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            if n == 0 { "" } else { "," },
            content.len(),
            encoded(&crc32c::crc32c(content).to_le_bytes())
        );
    }
    text += "\n],\n\"WAL-Ranges\": [\n\
             { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
    signed(text.into_bytes())
}

fn encoded(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signed(mut text: Vec<u8>) -> Vec<u8> {
    let sum = aws_lc_rs::digest::digest(&SHA256, &text);
    writeln!(text, "\"Manifest-Checksum\": \"{}\"}}", encoded(sum.as_ref())).unwrap();
    text
}

const FILES: [(&[u8], &[u8]); 4] = [
    (b"backup_label", b"START WAL LOCATION"),
    (b"base/5/16384", &[7; 9000]),
    (b"odd \"name\\\n\xFF", b""),
    (b"global/pg_control", b"control"),
];

fn refused(manifest: &[u8], files: &[(&[u8], &[u8])]) -> String {
    check(manifest, ledger(files)).unwrap_err().to_string()
}

#[test]
fn what_agrees_is_believed() {
    for version in [1, 2] {
        let manifest = check(&written(&FILES, version)[..], ledger(&FILES)).unwrap();
        assert_eq!(manifest.files, 4);
        assert_eq!(manifest.wal, [(TimelineId::FIRST, Lsn(0x200_0028), Lsn(0x200_0100))]);
        assert_eq!(manifest.system_id, (version > 1).then_some(SystemId(7_400_000_000_000_000_001)));
    }
}

#[test]
fn each_disagreement_is_named() {
    let written = written(&FILES, 2);
    let changed = |at: usize, file: (&'static [u8], &'static [u8])| {
        let mut files = FILES;
        files[at] = file;
        files
    };
    let mut flipped = vec![7; 9000];
    flipped[8999] ^= 1;
    let flipped: &'static [u8] = flipped.leak();
    for (files, told) in [
        (changed(1, (b"base/5/16384", flipped)), "base/5/16384 has the CRC-32C"),
        (
            changed(1, (b"base/5/16384", b"short")),
            "base/5/16384 has 9000 bytes in the manifest, 5 were received",
        ),
        (changed(1, (b"base/5/16385", &[7; 9000])), "base/5/16384 is next in the manifest, and base/5/16385"),
    ] {
        let text = refused(&written, &files);
        assert!(text.contains(told), "{told}: {text}");
    }
    let text = refused(&written, &FILES[..3]);
    assert!(text.contains("global/pg_control is in the manifest and was not received"), "{text}");
    let mut more = FILES.to_vec();
    more.push((b"more", b""));
    let text = refused(&written, &more);
    assert!(text.contains("more was received and is not in the manifest"), "{text}");
}

#[test]
fn a_manifest_that_was_changed_is_found_out() {
    let good = String::from_utf8(written(&FILES, 1)).unwrap();
    // Only the time: nothing but the manifest's own checksum shows it.
    let text = refused(good.replace("10:15:00", "10:15:01").as_bytes(), &FILES);
    assert!(text.contains("another checksum"), "{text}");
    for (bad, told) in [
        (
            good.replace(
                "\"PostgreSQL-Backup-Manifest-Version\": 1",
                "\"PostgreSQL-Backup-Manifest-Version\": 3",
            ),
            "version 3",
        ),
        (good.replace("CRC32C\",", "SHA256\","), "not CRC32C"),
        (good.replace("\"Path\": \"backup_label\"", "\"Other\": 1"), "no path"),
        (good.replace("\"Timeline\": 1", "\"Timeline\": 0"), "range of WAL"),
        (good.trim_end().to_owned(), "end with a line"),
        (good[..good.len() / 2].to_owned(), "manifest"),
        (good.replace("\"Manifest-Checksum\"", "\"Another\""), "no checksum of its own"),
        (format!("{good}{{}}\n"), "manifest"),
        (format!("\"{}\n", "x".repeat(MAX_LINE)), "too long"),
    ] {
        let text = refused(bad.as_bytes(), &FILES);
        assert!(text.contains(told), "{told}: {text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error(bytes: Vec<u8>) {
        prop_assert!(check(&bytes[..], ledger(&FILES)).is_err());
    }

    #[test]
    fn any_change_is_found(at: prop::sample::Index, byte: u8) {
        let mut manifest = written(&FILES, 2);
        let at = at.index(manifest.len());
        let case = byte.eq_ignore_ascii_case(&manifest[at]);
        // The last line's blanks and the case of its digits mean nothing.
        let last = manifest.len() - 90;
        prop_assume!(manifest[at] != byte && !case && (at < last || !byte.is_ascii_whitespace() && manifest[at] != b' ' && manifest[at] != b'\n'));
        manifest[at] = byte;
        prop_assert!(check(&manifest[..], ledger(&FILES)).is_err(), "{} {}", at, byte);
    }
}
