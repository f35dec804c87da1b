//! The test vectors of `FORMAT.md`, which were made by another implementation.

use std::collections::BTreeMap;

use walpoint_base::{Secret, SecretSource};

use super::slot::{Slot, SlotKind};
use super::source::{KeySource, SlotSecret};
use crate::object::sealer::hkdf_sha256;
use crate::object::{MasterKey, ObjectKind, ObjectReader, Sealer};

/// The lines `name = value` between the fences of the last chapter.
fn values() -> BTreeMap<&'static str, &'static str> {
    let chapter = include_str!("../../../repo/FORMAT.md").split("Test vectors\n").nth(1).unwrap();
    let lines = chapter.split("```").nth(1).unwrap().lines();
    lines.filter_map(|line| line.split_once(" = ")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn keys_objects_and_slots_are_as_the_specification_says() {
    let values = values();
    let of = |name: &str| bytes(values[name]);
    let master: [u8; 32] = of("master").try_into().unwrap();
    let sealer = Sealer::encrypted(values["repository"].parse().unwrap(), MasterKey::new(master)).unwrap();
    assert_eq!(sealer.block_key(), of("block").as_slice());
    assert_eq!(sealer.derive_key("content").unwrap(), of("content").as_slice());
    assert_eq!(sealer.derive_key("document").unwrap(), of("document").as_slice());
    assert_eq!(sealer.derive_key("key check").unwrap(), of("key_check").as_slice());
    let kind: u16 = values["kind"].parse().unwrap();
    for (purpose, name) in [("frame", "frame_key"), ("header", "header_key")] {
        let info = [format!("walpoint 1 {purpose}").into_bytes(), kind.to_le_bytes().to_vec()].concat();
        assert_eq!(hkdf_sha256(&master, &of("salt"), &[&info]).unwrap(), of(name).as_slice(), "{name}");
    }

    let key = values["object_name"].parse().unwrap();
    let reader = ObjectReader::open(&sealer, &[ObjectKind::History], &key, of("object").into()).unwrap();
    assert_eq!(reader.meta(), of("object_meta"));
    let mut content = Vec::new();
    reader.read_all(1 << 20, &mut content).unwrap();
    assert_eq!(content, of("object_content"));

    for name in ["key", "passphrase", "command"] {
        let value = |what: &str| values[format!("{name}_slot{what}").as_str()];
        let slot =
            Slot::parse(value("_number").parse().unwrap(), format!("{}\n", value("")).as_bytes()).unwrap();
        let command = format!("printf %s '{}'", value("_secret"));
        let secret = match slot.kind {
            SlotKind::Passphrase(_) => SlotSecret::Passphrase(Secret::new(value("_secret").to_owned())),
            SlotKind::Key => KeySource::Key(SecretSource::Command(command)).read().unwrap(),
            SlotKind::Command { .. } => SlotSecret::Command(format!("grep -qx opaque && {command}")),
        };
        let secret = secret.of_slot(&slot.kind, slot.salt).unwrap();
        assert_eq!(slot.unwrap(&secret).unwrap().unwrap().expose(), &master, "{name}");
    }
}
