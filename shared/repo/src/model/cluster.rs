//! A data directory in miniature, and what happens to it between two backups.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, RngCore};

/// What every file holds, by its path. Cheap to clone.
pub(super) type Files = BTreeMap<String, Arc<Vec<u8>>>;

/// Directories that are always there; files lie in the last ones.
pub(super) const DIRECTORIES: [&str; 6] = ["", "base", "global", "base/1", "base/4", "base/5"];

/// Blocks described by one leaf, and in a file table itself.
const LEAF: usize = crate::backup::LEAF_BLOCKS as usize;
const INLINE: usize = 64;

/// Files of more than a leaf, at most.
const LARGE: usize = 2;

/// The data directory.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) files: Files,
    /// Bytes of a block.
    block: usize,
}

impl Cluster {
    /// As `initdb` leaves it.
    pub(super) fn new(rng: &mut StdRng, block: usize) -> Self {
        let mut cluster = Self { files: Files::new(), block };
        cluster.files.insert("PG_VERSION".to_owned(), Arc::new(b"17\n".to_vec()));
        cluster.files.insert("global/pg_control".to_owned(), Arc::new(noise(rng, 8192)));
        for _ in 0..rng.random_range(3..15) {
            cluster.create(rng);
        }
        cluster
    }

    /// Changes some of it; `earlier` is what it was at a backup. Tells what was done.
    pub(super) fn load(&mut self, rng: &mut StdRng, earlier: Option<&Files>) -> String {
        let count = rng.random_range(1..6);
        let done: Vec<String> = (0..count).map(|_| self.change(rng, earlier)).collect();
        done.join(", ")
    }

    fn change(&mut self, rng: &mut StdRng, earlier: Option<&Files>) -> String {
        let Some(path) = self.files.keys().choose(rng).cloned() else { return self.create(rng) };
        let block = self.block;
        match rng.random_range(0..20) {
            0 | 1 => return self.create(rng),
            2 => {
                self.files.remove(&path);
                return format!("drop {path}");
            }
            3 => return self.copy(rng, &path, false),
            4 => return self.copy(rng, &path, true),
            5 => return self.revert(rng, &path, earlier),
            _ => {}
        }
        let whole = rng.random_bool(0.5);
        let grown = pages(rng, self.block, 5);
        let Some(bytes) = self.files.get_mut(&path).map(Arc::make_mut) else { return String::new() };
        match rng.random_range(0..7) {
            // A hint bit, a tuple, a page: up to three blocks in a row.
            0 | 1 => {
                let at = place(rng, bytes.len(), block);
                let end = bytes.len().min(at + block * rng.random_range(1..4));
                let some = noise(rng, end - at);
                let skip = if whole { 0 } else { rng.random_range(0..=(end - at)) };
                bytes[at + skip..end].copy_from_slice(&some[skip..]);
                format!("write {path} {at}+{}", end - at)
            }
            // The last block keeps its length and not its content.
            2 => {
                let at = bytes.len().saturating_sub(1) / block * block;
                let some = noise(rng, bytes.len() - at);
                bytes[at..].copy_from_slice(&some);
                format!("write the end of {path}")
            }
            3 => {
                bytes.extend_from_slice(&grown);
                if !whole {
                    let some = rng.random_range(0..block);
                    bytes.extend(noise(rng, some));
                }
                format!("grow {path} to {}", bytes.len())
            }
            4 | 5 => {
                let at = place(rng, bytes.len(), block);
                let most = bytes.len();
                bytes.truncate(if whole { at } else { most.min(at + rng.random_range(0..block)) });
                let cut = bytes.len();
                // What VACUUM cut off, others may have written anew.
                if rng.random_bool(0.3) {
                    bytes.extend(noise(rng, (most - cut).min(40 * block)));
                }
                format!("cut {path} to {cut} and grow it to {}", bytes.len())
            }
            _ => {
                let at = place(rng, bytes.len(), block);
                let end = bytes.len().min(at + block * rng.random_range(1..200));
                bytes[at..end].fill(0);
                format!("clear {path} {at}+{}", end - at)
            }
        }
    }

    fn create(&mut self, rng: &mut StdRng) -> String {
        let directory = ["base/1", "base/4", "base/5", "global"][rng.random_range(0..4usize)];
        let path = format!("{directory}/{}", rng.random_range(0..8));
        let large = self.files.values().filter(|bytes| bytes.len() > LEAF * self.block / 2).count();
        let blocks = match rng.random_range(0..100) {
            0..35 => rng.random_range(0..4),
            35..60 => rng.random_range(4..INLINE + 2),
            60..93 => rng.random_range(INLINE - 1..3 * INLINE),
            _ if large < LARGE && self.block == 1024 => LEAF + rng.random_range(0..100) - 3,
            _ => rng.random_range(0..2),
        };
        let mut bytes = pages(rng, self.block, blocks);
        if rng.random_bool(0.4) {
            let some = rng.random_range(0..self.block);
            bytes.extend(noise(rng, some));
        }
        let told = format!("create {path} of {}", bytes.len());
        self.files.insert(path, Arc::new(bytes));
        told
    }

    /// As CREATE DATABASE does, or a move to another tablespace.
    fn copy(&mut self, rng: &mut StdRng, from: &str, moves: bool) -> String {
        let to = format!("base/5/{}", rng.random_range(8..12));
        let file = self.files.get(from).cloned();
        if moves {
            self.files.remove(from);
        }
        self.files.extend(file.map(|bytes| (to.clone(), bytes)));
        format!("{} {from} to {to}", if moves { "move" } else { "copy" })
    }

    /// A file is again what it was.
    fn revert(&mut self, rng: &mut StdRng, path: &str, earlier: Option<&Files>) -> String {
        let Some(bytes) = earlier.and_then(|files| files.get(path)) else { return self.create(rng) };
        self.files.insert(path.to_owned(), Arc::clone(bytes));
        format!("revert {path}")
    }
}

/// A boundary of blocks in a file, often near its end or at its beginning.
fn place(rng: &mut StdRng, length: usize, block: usize) -> usize {
    let blocks = length / block;
    let at = match rng.random_range(0..4) {
        0 => blocks.saturating_sub(rng.random_range(0..3)),
        1 => 0,
        _ => rng.random_range(0..=blocks),
    };
    (at * block).min(length)
}

fn noise(rng: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Blocks of every sort: noise, zeros, and content that other blocks have too.
fn pages(rng: &mut StdRng, block: usize, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(block * count);
    while bytes.len() < block * count {
        let run = rng.random_range(1..30).min(count - bytes.len() / block) * block;
        match rng.random_range(0..5) {
            0 => bytes.resize(bytes.len() + run, 0),
            1 => bytes.resize(bytes.len() + run, rng.random_range(1..4)),
            _ => bytes.extend(noise(rng, run)),
        }
    }
    bytes
}
