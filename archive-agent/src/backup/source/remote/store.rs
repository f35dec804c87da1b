//! One thread that stores what the server sent: hashing, compressing, and verifying pages on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

use anyhow::bail;
use walpoint_pg::base_backup::ReportedPage;
use walpoint_repo::backup::{Attributes, PageFault, TablePath};

use crate::backup::replica::{ReplicaFiles, Streams};
use crate::backup::source::shared::Shared;

/// What a thread is given to do.
#[derive(Debug)]
pub(super) enum Job {
    Directory(TablePath, Attributes),
    /// A tablespace's link and directory, and where it leads.
    LinkedDirectory(TablePath, Attributes, Vec<u8>),
    /// Any other link, and where it leads.
    Link(TablePath, Attributes, Vec<u8>),
    /// A file begins: what follows is its content, to its end.
    File(TablePath, Attributes),
    /// The next bytes of that file. They begin at a whole block.
    Data(Vec<u8>),
    /// The server complains about a page of that file.
    Reported(ReportedPage),
    /// That file is complete.
    FileEnd,
}

/// The work of one thread.
pub(super) struct Jobs {
    /// What it is given to do.
    pub(super) queue: Receiver<Job>,
    /// How many bytes wait.
    pub(super) load: Arc<AtomicU64>,
    /// What it shares with the others.
    pub(super) shared: Arc<Shared>,
}

impl Jobs {
    /// Takes jobs until there are no more. Blocks.
    pub(super) fn store(&self, mut streams: Streams) -> anyhow::Result<()> {
        while let Ok(job) = self.queue.recv() {
            match job {
                Job::Directory(path, attributes) => {
                    streams.each(|packs| packs.directory(path.clone(), attributes))?
                }
                Job::LinkedDirectory(path, attributes, target) => {
                    streams.each(|packs| packs.linked_directory(path.clone(), attributes, &target))?;
                }
                Job::Link(path, attributes, target) => {
                    streams.each(|packs| packs.link(path.clone(), attributes, &target))?;
                }
                Job::File(path, attributes) => {
                    let mut files = streams.file(&path);
                    self.content(&path, &mut files)?;
                    files.finish(attributes)?;
                }
                Job::Data(_) | Job::Reported(_) | Job::FileEnd => bail!("content of no file"),
            }
        }
        streams.finish()
    }

    /// Takes the content of one file.
    fn content(&self, path: &TablePath, files: &mut ReplicaFiles<'_>) -> anyhow::Result<()> {
        let Shared { pages, counts, .. } = &*self.shared;
        let verified = pages.as_ref().and_then(|pages| Some((pages, pages.relation(path.path.as_path())?)));
        let mut at = 0;
        loop {
            match self.queue.recv() {
                Ok(Job::Data(bytes)) => {
                    if let Some((pages, relation)) = verified {
                        pages.verify_received(relation, at, &bytes, |bad| {
                            counts.bad_sent.fetch_add(1, Ordering::Relaxed);
                            let fault = PageFault::Checksum { stored: bad.stored, computed: bad.computed };
                            files.bad_page(bad.block, fault);
                        });
                    }
                    files.write(&bytes)?;
                    let length = u64::try_from(bytes.len()).unwrap_or(0);
                    at += length;
                    self.load.fetch_sub(length, Ordering::Relaxed);
                }
                // What this program verifies itself it found itself, and all of it: the server stops after a few.
                Ok(Job::Reported(_)) if verified.is_some() => {}
                Ok(Job::Reported(page)) => {
                    counts.bad_sent.fetch_add(1, Ordering::Relaxed);
                    let fault = PageFault::Checksum { stored: page.stored, computed: page.computed };
                    files.bad_page(page.block, fault);
                }
                Ok(Job::FileEnd) => return Ok(()),
                Ok(_) => bail!("{path} does not end before the next file begins"),
                Err(_) => bail!("{path} does not end"),
            }
        }
    }
}
