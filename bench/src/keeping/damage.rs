//! Spoiled blocks in a data directory, and the proof that they were repaired.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::RngCore;
use rand::rngs::StdRng;

/// PostgreSQL's block.
const BLOCK: u64 = 8192;

/// What was spoiled: where, and the hash of what was there.
#[derive(Debug)]
pub struct Spoiled {
    spoiled: Vec<(PathBuf, u64, blake3::Hash)>,
    /// Blocks that could have been.
    pub of: u64,
}

impl Spoiled {
    /// Overwrites this share of the blocks below `base` with random bytes; each whole block is as likely as the others.
    pub fn make(pgdata: &Path, share: f64, random: &mut StdRng) -> io::Result<Spoiled> {
        let mut damage = Spoiled { spoiled: Vec::new(), of: 0 };
        let below = (share * f64::from(u32::MAX)) as u32;
        for path in files_below(&pgdata.join("base"))? {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let blocks = file.metadata()?.len() / BLOCK;
            damage.of += blocks;
            let chosen: Vec<u64> = (0..blocks).filter(|_| random.next_u32() < below).collect();
            for block in chosen {
                let mut content = [0; BLOCK as usize];
                file.read_exact_at(&mut content, block * BLOCK)?;
                damage.spoiled.push((path.clone(), block, blake3::hash(&content)));
                random.fill_bytes(&mut content);
                file.write_all_at(&content, block * BLOCK)?;
            }
        }
        Ok(damage)
    }

    /// How many blocks were spoiled.
    pub fn blocks(&self) -> u64 {
        self.spoiled.len() as u64
    }

    /// Whether what was there is there again.
    pub fn is_repaired(&self) -> io::Result<bool> {
        let mut content = [0; BLOCK as usize];
        for (path, block, hash) in &self.spoiled {
            File::open(path)?.read_exact_at(&mut content, block * BLOCK)?;
            if blake3::hash(&content) != *hash {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// All regular files below a directory.
pub fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => left.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use walpoint_tests::dir::TestDir;

    #[test]
    fn what_is_spoiled_is_known() {
        let dir = TestDir::new();
        fs::create_dir_all(dir.join("base/5")).unwrap();
        let path = dir.write("base/5/1", vec![3; 1000 * BLOCK as usize + 7]);
        let before = fs::read(&path).unwrap();
        let damage = Spoiled::make(dir.path(), 0.1, &mut StdRng::seed_from_u64(1)).unwrap();
        assert!(damage.of == 1000 && (50..200).contains(&damage.blocks()), "{}", damage.blocks());
        let differ =
            before.chunks(8192).zip(fs::read(&path).unwrap().chunks(8192)).filter(|(a, b)| a != b).count();
        assert_eq!(differ as u64, damage.blocks());
        assert!(!damage.is_repaired().unwrap());
        fs::write(&path, before).unwrap();
        assert!(damage.is_repaired().unwrap());
    }
}
