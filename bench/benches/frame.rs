//! Frames of 1 MiB: sealing and opening, plain and encrypted; and hashing.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walpoint_storage::object::{
    Codec, FramePosition, MasterKey, ObjectKind, RepositoryId, Salt, Sealer, open_frame, seal_frame,
};

const FRAME: usize = 1 << 20;

/// Compresses to about a third, as WAL of transactions does.
fn content() -> Vec<u8> {
    let noise = blake3::Hasher::new().finalize_xof();
    let mut content = vec![0; FRAME];
    let mut noise = noise;
    for row in content.chunks_mut(96) {
        let random = row.len().min(32);
        noise.fill(&mut row[..random]);
    }
    content
}

fn frames(criterion: &mut Criterion) {
    let content = content();
    let mut group = criterion.benchmark_group("frame of 1 MiB");
    group.throughput(Throughput::Bytes(FRAME as u64));
    let id = RepositoryId([7; 16]);
    let encrypted = Sealer::encrypted(id, MasterKey::new([1; 32])).expect("a sealer");
    for (name, sealer) in [("plain", Sealer::plain(id)), ("encrypted", encrypted)] {
        let key = "clusters/main/7-1/wal/x".parse().expect("a key");
        let keys = sealer.object_keys(ObjectKind::Segment, &key, Salt([3; 16])).expect("keys");
        let at = FramePosition { index: 0, meta: false, last: true };
        let (mut codec, mut sealed, mut opened) = (Codec::new(), Vec::new(), Vec::new());
        group.bench_function(format!("seal, {name}"), |bencher| {
            bencher.iter(|| {
                sealed.clear();
                seal_frame(&keys, at, black_box(&content), &mut codec, &mut sealed).expect("sealed")
            });
        });
        group.bench_function(format!("open, {name}"), |bencher| {
            bencher.iter(|| {
                opened.clear();
                open_frame(&keys, 0, black_box(&sealed), &mut codec, &mut opened).expect("opened")
            });
        });
    }
    group.finish();
}

fn hashes(criterion: &mut Criterion) {
    let content = content();
    let sealer = Sealer::plain(RepositoryId([7; 16]));
    let mut group = criterion.benchmark_group("hash");
    group.throughput(Throughput::Bytes(FRAME as u64));
    group.bench_function("content of 1 MiB", |bencher| {
        bencher.iter(|| sealer.content_hash(black_box(&content)));
    });
    group.bench_function("blocks of 8 KiB", |bencher| {
        bencher.iter(|| {
            let hash = |block: &[u8]| blake3::keyed_hash(sealer.block_key(), block);
            content.chunks(8192).map(hash).fold(0u8, |all, hash| all ^ hash.as_bytes()[0])
        });
    });
    group.finish();
}

criterion_group!(benches, frames, hashes);
criterion_main!(benches);
