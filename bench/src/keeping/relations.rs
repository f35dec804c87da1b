//! Clusters of very many relations, and of the same bytes in few.
//!
//! Real clusters, running, with further files in the database `postgres` that are named as relations and hold real pages
//! of the data set: each page as long as it was, with a small LSN and the checksum of its new place. The catalog does not
//! know them. A backup reads files, so it meets what it would meet if the catalog did, without the hour that creating as
//! many tables by SQL takes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walpoint_pg::checksum::page_checksum;
use walpoint_pg::files::DEFAULT_RELATION_SEGMENT_BLOCKS;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::user;

use super::damage::files_below;
use super::scene::KeepingBed;
use super::server::{self, EndedServer};
use crate::data::MAJOR;

/// PostgreSQL's block.
const BLOCK: usize = 8192;

/// Pages of ten relations in turn: 8 to 64 KiB, smaller ones more often, 21 KiB in the mean.
const PAGES: [u32; 10] = [1, 2, 1, 4, 1, 2, 8, 1, 2, 4];

/// The first file node number.
const FIRST: u32 = 1_000_000;

/// An LSN that every server is past, as a page holds it: high half, low half.
const LSN: [u32; 2] = [0, 0x0100_0028];

/// Two running clusters of the same bytes.
#[derive(Debug)]
pub struct Pair {
    /// In many files.
    pub many: EndedServer,
    /// In files of 1 GiB.
    pub few: EndedServer,
    /// Files that one has more than the other.
    pub files: u64,
    /// The bytes in them.
    pub bytes: u64,
}

impl Pair {
    /// Makes them with so many relations.
    pub fn make(scene: &KeepingBed<'_>, relations: u32) -> io::Result<Pair> {
        let empty = Cluster::builder()
            .major(MAJOR)
            .conf("archive_mode", "on")
            .conf("archive_command", "/bin/true")
            .conf("autovacuum", "off")
            .init();
        let places = ["many", "few"].map(|name| scene.place_for(name));
        for place in &places {
            server::copy(empty.pgdata(), place);
        }
        let [many, few] = &places;
        let database = newest_database(many)?;
        let mut source = Pages::of(&scene.data.cluster)?;
        let mut big = Big::new(few.join(&database));
        let mut bytes = 0;
        for (n, &pages) in (0..relations).zip(PAGES.iter().cycle()) {
            let mut content = Vec::with_capacity(pages as usize * BLOCK);
            for block in 0..pages {
                let page = source.next_page()?;
                big.add(page)?;
                content.extend_from_slice(page);
                seal(&mut content[block as usize * BLOCK..], block);
            }
            create(&many.join(&database).join((FIRST + n).to_string()))?.write_all(&content)?;
            bytes += content.len() as u64;
        }
        let files = u64::from(relations - big.finish()?);
        for place in &places {
            user::give_tree(&place.join(&database));
        }
        rustix::fs::sync();
        let [many, few] = places.map(EndedServer::start);
        Ok(Pair { many, few, files, bytes })
    }
}

/// `base/5`, or what it is called: templates have smaller numbers than `postgres`.
fn newest_database(pgdata: &Path) -> io::Result<PathBuf> {
    let names = fs::read_dir(pgdata.join("base"))?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    let oids = names.iter().filter_map(|name| name.to_str()?.parse::<u32>().ok());
    let newest = oids.max().ok_or_else(|| io::Error::other("base has no database"))?;
    Ok(Path::new("base").join(newest.to_string()))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a page one of that place.
fn seal(page: &mut [u8], block: u32) {
    for (bytes, half) in page.chunks_exact_mut(4).zip(LSN) {
        bytes.copy_from_slice(&half.to_le_bytes());
    }
    let checksum = page_checksum(page, block);
    page[8..10].copy_from_slice(&checksum.to_le_bytes());
}

/// One large relation, in segments.
struct Big {
    directory: PathBuf,
    block: u32,
    file: Option<BufWriter<File>>,
    files: u32,
}

impl Big {
    fn new(directory: PathBuf) -> Big {
        Big { directory, block: 0, file: None, files: 0 }
    }

    fn add(&mut self, page: &[u8]) -> io::Result<()> {
        let segment = self.block / DEFAULT_RELATION_SEGMENT_BLOCKS;
        if self.block.is_multiple_of(DEFAULT_RELATION_SEGMENT_BLOCKS) {
            self.close()?;
            let name = if segment == 0 { FIRST.to_string() } else { format!("{FIRST}.{segment}") };
            self.file = Some(BufWriter::with_capacity(1 << 20, create(&self.directory.join(name))?));
            self.files += 1;
        }
        let mut page = page.to_vec();
        seal(&mut page, self.block);
        self.block += 1;
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(&page))
    }

    fn close(&mut self) -> io::Result<()> {
        self.file.take().map_or(Ok(()), |mut file| file.flush())
    }

    /// How many files it has.
    fn finish(mut self) -> io::Result<u32> {
        self.close()?;
        Ok(self.files)
    }
}

/// Pages of a cluster's relations, over and over.
struct Pages {
    files: Vec<PathBuf>,
    next: usize,
    content: Vec<u8>,
    at: usize,
}

/// Smaller files are catalogs, alike in every database.
const LARGE: u64 = 256 << 10;

impl Pages {
    fn of(cluster: &Path) -> io::Result<Pages> {
        let is_relation = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            name.bytes().all(|b| b.is_ascii_digit())
                && fs::metadata(path).is_ok_and(|meta| meta.len() >= LARGE)
        };
        let files: Vec<PathBuf> =
            files_below(&cluster.join("base"))?.into_iter().filter(is_relation).collect();
        if files.is_empty() {
            return Err(io::Error::other("the data set has no relation of some size"));
        }
        Ok(Pages { files, next: 0, content: Vec::new(), at: 0 })
    }

    /// The next page that is not empty.
    fn next_page(&mut self) -> io::Result<&[u8]> {
        loop {
            let range = self.at..self.at + BLOCK;
            match self.content.get(range.clone()) {
                Some(page) => {
                    self.at = range.end;
                    // The upper end of free space is 0 in a page that was never written.
                    if page[14..16] != [0, 0] {
                        break;
                    }
                }
                None => {
                    self.content = fs::read(&self.files[self.next % self.files.len()])?;
                    (self.at, self.next) = (0, self.next + 1);
                }
            }
        }
        Ok(&self.content[self.at - BLOCK..self.at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walpoint_pg::checksum::{PageState, verify_page};

    #[test]
    fn a_sealed_page_is_right_at_its_place_only() {
        let mut page = vec![1; BLOCK];
        page[12..16].copy_from_slice(&[24, 0, 0, 32]);
        seal(&mut page, 3);
        let at = |block| verify_page(&page, block, None);
        assert_eq!(at(3), PageState::Ok);
        assert!(matches!(at(4), PageState::Bad { .. }));
    }

    #[test]
    fn relations_are_of_8_to_64_kib() {
        assert_eq!((PAGES.iter().min(), PAGES.iter().max()), (Some(&1), Some(&8)));
    }
}
