use ::bytes::Bytes;
use proptest::prelude::*;

use super::testing::sealers;
use super::*;
use crate::layout::Key;

fn key() -> Key {
    "clusters/main/7-1/history/00000002.history".parse().unwrap()
}

fn write(sealer: &Sealer, meta: &[u8], frames: &[Vec<u8>]) -> SealedObject {
    let mut writer = ObjectWriter::new(sealer, ObjectKind::History, &key()).unwrap();
    if !meta.is_empty() {
        writer.meta(meta).unwrap();
    }
    for frame in frames {
        writer.frame(frame).unwrap();
    }
    writer.finish().unwrap()
}

fn read(sealer: &Sealer, bytes: Bytes) -> Result<(Vec<u8>, Vec<u8>), ObjectError> {
    let reader = ObjectReader::open(sealer, &[ObjectKind::History], &key(), bytes)?;
    let (meta, mut content) = (reader.meta().to_vec(), Vec::new());
    reader.read_all(1 << 20, &mut content)?;
    Ok((meta, content))
}

#[test]
fn the_content_hash_is_that_of_the_content_alone() {
    for sealer in sealers() {
        let one = write(&sealer, b"", &[b"some".to_vec(), b"thing".to_vec()]);
        let two = write(&sealer, b"described", &[b"something".to_vec()]);
        assert_eq!(one.content(), two.content());
        assert_eq!(one.content(), sealer.content_hash(b"something"));
        assert_ne!(one.header.salt, two.header.salt);
        let unkeyed = ContentHash(*blake3::hash(b"something").as_bytes());
        assert_eq!(one.content() == unkeyed, !sealer.is_encrypted());
    }
}

#[test]
fn an_encrypted_object_does_not_show_its_content() {
    let sealer = &sealers()[1];
    let bytes = write(sealer, b"secret-meta", &[b"secret-body".to_vec()]).to_bytes();
    assert!(!bytes.windows(6).any(|w| w == b"secret"));
}

#[test]
fn wrong_keys_kinds_and_names_are_told_apart() {
    let [plain, encrypted] = &sealers()[..] else { panic!() };
    let bytes = write(encrypted, b"", &[b"x".to_vec()]).to_bytes();
    assert_eq!(read(plain, bytes.clone()).unwrap_err(), ObjectError::Encryption { repository: false });
    let other = Sealer::encrypted(RepositoryId([9; 16]), MasterKey::new([43; 32])).unwrap();
    assert_eq!(read(&other, bytes.clone()).unwrap_err(), ObjectError::Header { encrypted: true });
    let kinds = [ObjectKind::Manifest];
    let error = ObjectReader::open(encrypted, &kinds, &key(), bytes.clone()).unwrap_err();
    assert_eq!(error, ObjectError::Kind(ObjectKind::History.number()));
    let elsewhere = "clusters/main/7-1/history/00000003.history".parse().unwrap();
    let error = ObjectReader::open(encrypted, &[ObjectKind::History], &elsewhere, bytes).unwrap_err();
    assert_eq!(error, ObjectError::Header { encrypted: true });
}

#[test]
fn a_newer_version_is_named() {
    for sealer in sealers() {
        let mut bytes = write(&sealer, b"", &[]).to_bytes().to_vec();
        bytes[8] = 2;
        assert_eq!(read(&sealer, bytes.into()).unwrap_err(), ObjectError::Version(2));
    }
}

#[test]
fn the_limit_holds_before_anything_is_allocated() {
    for sealer in sealers() {
        let bytes = write(&sealer, b"", &[vec![0; 1 << 20], vec![0; 1]]).to_bytes();
        let mut out = Vec::new();
        let reader = ObjectReader::open(&sealer, &[ObjectKind::History], &key(), bytes).unwrap();
        let error = reader.read_all(1 << 20, &mut out).unwrap_err();
        assert!(matches!(error, ObjectError::TooLong { .. }) && out.capacity() == 0, "{error}");
    }
}

#[test]
fn frames_of_a_fixed_size() {
    for sealer in sealers() {
        for (length, frames) in [(0usize, 1), (1, 1), (99, 1), (100, 1), (101, 2), (250, 3)] {
            let mut writer = ObjectWriter::new(&sealer, ObjectKind::History, &key()).unwrap();
            let content: Vec<u8> = (0..length).map(|i| u8::try_from(i).unwrap_or(1)).collect();
            writer.frames(&content, 100).unwrap();
            let sealed = writer.finish().unwrap();
            assert_eq!((sealed.header.frames, sealed.header.content_len), (frames, length as u64));
            assert_eq!(read(&sealer, sealed.to_bytes()).unwrap().1, content);
        }
    }
}

#[test]
fn places_lead_to_frames() {
    for sealer in sealers() {
        let mut writer = ObjectWriter::new(&sealer, ObjectKind::History, &key()).unwrap();
        writer.frame(b"first").unwrap();
        let place = writer.frame_now(b"second").unwrap();
        writer.frame(b"third").unwrap();
        let sealed = writer.finish().unwrap();
        let bytes = sealed.to_bytes();
        let keys = sealer.object_keys(ObjectKind::History, &key(), sealed.header.salt).unwrap();
        let begin = usize::try_from(place.offset).unwrap();
        let range = &bytes[begin..begin + place.length as usize];
        let mut out = Vec::new();
        open_frame(&keys, place.index, range, &mut Codec::new(), &mut out).unwrap();
        assert_eq!(out, b"second");
    }
}

#[test]
fn the_last_frame_may_be_said_to_be_the_last() {
    for sealer in sealers() {
        let mut writer = ObjectWriter::new(&sealer, ObjectKind::History, &key()).unwrap();
        writer.meta_later().unwrap();
        let mut codec = Codec::new();
        writer.packed_now(pack(b"first", &mut codec)).unwrap();
        writer.packed(pack(b"last", &mut codec), true).unwrap();
        assert_eq!(writer.content_hash(), sealer.content_hash(b"firstlast"));
        assert!(writer.packed_now(pack(b"none", &mut codec)).is_err() && writer.frame(b"none").is_err());
        let sealed = writer.finish_with_meta(b"described").unwrap();
        assert_eq!(sealed.header.frames, 3);
        assert_eq!(read(&sealer, sealed.to_bytes()).unwrap(), (b"described".to_vec(), b"firstlast".to_vec()));
    }
}

/// Frames lie across the pieces that an object is put together from, and objects made at the same time do not mix.
#[test]
fn objects_of_many_pieces_hold_what_was_added() {
    let noise = |seed: u8| -> Vec<u8> {
        let mut noise = vec![0; 300_001];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
        noise
    };
    // The second round is made in memory that the first one used.
    for round in 0..2 {
        let mut begun: Vec<_> = sealers()
            .into_iter()
            .chain(sealers())
            .map(|sealer| {
                let mut writer = ObjectWriter::new(&sealer, ObjectKind::History, &key()).unwrap();
                writer.meta_later().unwrap();
                (sealer, writer, Vec::new())
            })
            .collect();
        for frame in 0..3 {
            for (n, (_, writer, added)) in begun.iter_mut().enumerate() {
                let content = noise(round * 100 + frame * 10 + u8::try_from(n).unwrap());
                writer.frame_now(&content).unwrap();
                added.extend_from_slice(&content);
            }
        }
        drop(begun.remove(1));
        for (sealer, mut writer, mut added) in begun {
            writer.frame(b"end").unwrap();
            added.extend_from_slice(b"end");
            let sealed = writer.finish_with_meta(b"described").unwrap();
            let bytes = sealed.to_bytes();
            assert_eq!(bytes.len() as u64, sealed.len());
            let (meta, content) = read(&sealer, bytes).unwrap();
            assert!(meta == b"described" && content == added);
        }
    }
}

#[test]
fn a_meta_frame_may_come_last_and_lies_first() {
    for sealer in sealers() {
        let mut writer = ObjectWriter::new(&sealer, ObjectKind::History, &key()).unwrap();
        writer.meta_later().unwrap();
        let mut codec = Codec::new();
        let places =
            ["first", "second"].map(|text| writer.packed_now(pack(text.as_bytes(), &mut codec)).unwrap());
        assert_eq!(places.map(|p| p.index), [1, 2]);
        let sealed = writer.finish_with_meta(b"described").unwrap();
        let bytes = sealed.to_bytes();
        assert_eq!(read(&sealer, bytes.clone()).unwrap(), (b"described".to_vec(), b"firstsecond".to_vec()));
        let keys = sealer.object_keys(ObjectKind::History, &key(), sealed.header.salt).unwrap();
        let begin = usize::try_from(places[1].offset).unwrap() + sealed.header.meta_len as usize;
        let mut out = Vec::new();
        open_frame(&keys, 2, &bytes[begin..], &mut codec, &mut out).unwrap();
        assert_eq!(out, b"second");
    }
}

fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let frame = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        (0usize..500, any::<u8>()).prop_map(|(n, b)| vec![b; n]),
    ];
    prop::collection::vec(frame, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_goes_in_comes_out(meta in prop::collection::vec(any::<u8>(), 0..50), frames in frames()) {
        for sealer in sealers() {
            let (got_meta, content) = read(&sealer, write(&sealer, &meta, &frames).to_bytes()).unwrap();
            prop_assert_eq!(&got_meta, &meta);
            prop_assert_eq!(content, frames.concat());
        }
    }

    #[test]
    fn any_change_is_found(frames in frames(), at: usize, bit in 0u8..8) {
        for sealer in sealers() {
            let mut bytes = write(&sealer, b"meta", &frames).to_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(read(&sealer, bytes.into()).is_err(), "bit {} of byte {} was flipped unnoticed", bit, at);
        }
    }

    #[test]
    fn any_cut_or_addition_is_found(frames in frames(), at: usize, more in prop::collection::vec(any::<u8>(), 1..40)) {
        for sealer in sealers() {
            let bytes = write(&sealer, b"meta", &frames).to_bytes();
            let cut = bytes.slice(..at % bytes.len());
            prop_assert!(read(&sealer, cut).is_err());
            let longer = [&bytes[..], &more].concat();
            prop_assert!(read(&sealer, longer.into()).is_err());
        }
    }

    #[test]
    fn any_bytes_are_an_object_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for sealer in sealers() {
            prop_assert!(read(&sealer, bytes.clone().into()).is_err());
        }
    }

    #[test]
    fn frames_cannot_be_reordered_or_left_out(a in prop::collection::vec(any::<u8>(), 30), b in prop::collection::vec(any::<u8>(), 30)) {
        prop_assume!(a != b);
        for sealer in sealers() {
            let bytes = write(&sealer, b"", &[a.clone(), b.clone(), a.clone()]).to_bytes();
            let frame = (bytes.len() - OBJECT_HEADER) / 3;
            let (head, frames) = bytes.split_at(OBJECT_HEADER);
            let swapped = [head, &frames[frame..2 * frame], &frames[..frame], &frames[2 * frame..]].concat();
            prop_assert!(read(&sealer, swapped.into()).is_err());
            let left_out = [head, &frames[..frame], &frames[2 * frame..]].concat();
            prop_assert!(read(&sealer, left_out.into()).is_err());
        }
    }
}
