//! What a hostile or damaged slot can do.

use serde_json::{Value, json};

use super::slot::NewSlot;
use super::stretch::Cost;
use super::*;
use crate::error::RepoError;
use crate::object::{MasterKey, RepositoryId, Salt};

/// A document as the format has it, with members replaced and a check that fits.
fn tampered(bytes: &[u8], member: &str, value: Value) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    let old: Value = serde_json::from_str(text).unwrap();
    let (old, new) = (format!("\"{member}\":{}", old[member]), format!("\"{member}\":{value}"));
    assert!(text.contains(&old), "{text}");
    let text = text.replace(&old, &new);
    let body = text.split(",\"check\":").next().unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"keys/0\0").update(body.as_bytes());
    format!("{body},\"check\":\"{}\"}}\n", hasher.finalize().to_hex()).into_bytes()
}

fn new_slot(kind: SlotKind) -> Vec<u8> {
    let new = NewSlot {
        number: 0,
        repository: RepositoryId([3; 16]),
        comment: "a \"quoted\" ,\"wrapped\": comment",
        kind,
        salt: Salt([4; 16]),
    };
    new.wrap(&[5; 32], &MasterKey::new([6; 32])).unwrap().bytes.to_vec()
}

#[test]
fn whatever_is_changed_in_a_slot_it_does_not_open() {
    let cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };
    for kind in [SlotKind::Passphrase(cost), SlotKind::Key, SlotKind::Command { blob: b"blob".to_vec() }] {
        let bytes = new_slot(kind.clone());
        let slot = Slot::parse(0, &bytes).unwrap();
        assert_eq!(slot.kind, kind);
        assert_eq!(slot.unwrap(&[5; 32]).unwrap().unwrap().expose(), &[6; 32]);
        assert!(slot.unwrap(&[7; 32]).unwrap().is_none());
        assert!(Slot::parse(1, &bytes).is_err(), "under another name");
        for at in 0..bytes.len() {
            for bit in [1, 0x20] {
                let mut bytes = bytes.clone();
                bytes[at] ^= bit;
                assert!(Slot::parse(0, &bytes).is_err(), "byte {at}");
            }
            assert!(Slot::parse(0, &bytes[..at]).is_err(), "cut at {at}");
        }
        // With a check that fits, by somebody who knows the format and not the secret.
        let mut changes = vec![
            ("repository", json!(RepositoryId([8; 16]).to_string())),
            ("created", json!("2001-01-01T00:00:00Z")),
            ("comment", json!("harmless")),
            ("salt", json!("00".repeat(16))),
            ("wrapped", json!("00".repeat(48))),
        ];
        match &kind {
            SlotKind::Passphrase(_) => changes.push(("passes", json!(2))),
            SlotKind::Key => {}
            SlotKind::Command { .. } => changes.push(("blob", json!("00"))),
        }
        for (member, value) in changes {
            let slot = Slot::parse(0, &tampered(&bytes, member, value)).unwrap();
            assert!(slot.unwrap(&[5; 32]).unwrap().is_none(), "{member}");
        }
    }
}

#[test]
fn hostile_slots_are_refused_before_anything_is_allocated() {
    let cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };
    let passphrase = new_slot(SlotKind::Passphrase(cost));
    for (member, value) in [
        ("memory_kib", json!(u32::MAX)),
        ("memory_kib", json!(1 << 20)),
        ("memory_kib", json!(0)),
        ("memory_kib", json!(-1)),
        ("memory_kib", json!(null)),
        ("passes", json!(u32::MAX)),
        ("passes", json!(0)),
        ("lanes", json!(1 << 20)),
        ("kind", json!("quantum")),
        ("kind", json!("command")),
        ("format", json!(2)),
        ("salt", json!("00")),
        ("wrapped", json!("00")),
        ("wrapped", json!(null)),
        ("comment", json!("x".repeat(300))),
    ] {
        let error = Slot::parse(0, &tampered(&passphrase, member, value.clone())).unwrap_err();
        assert!(matches!(error, RepoError::Corrupt { .. }), "{member} {value}: {error}");
    }
    let command = new_slot(SlotKind::Command { blob: vec![1] });
    for value in [json!(""), json!("0"), json!("zz"), json!("00".repeat((16 << 10) + 1))] {
        assert!(Slot::parse(0, &tampered(&command, "blob", value)).is_err());
    }
}
