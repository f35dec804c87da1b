//! One thread's way into all replicas: a pack stream into each.
//!
//! A replica that fails drops out, the others continue: an hour of reading is not lost because one of two stores became
//! unreachable. Everything here blocks and belongs on a thread that may.

use std::sync::Arc;

use walpoint_repo::backup::{Attributes, ContentHasher, FileWriter, PackStream, PageFault, TablePath};
use walpoint_storage::Result as RepoResult;

use super::outcome::{Outcomes, ReplicaOutcome};

/// One thread's way into all replicas.
#[derive(Debug)]
pub(crate) struct Streams {
    open: Vec<Stream>,
    outcomes: Outcomes,
}

/// Its way into one of them.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) packs: PackStream,
    pub(super) outcome: Arc<ReplicaOutcome>,
}

impl Streams {
    pub(super) fn new(streams: impl Iterator<Item = Stream>, outcomes: &Outcomes) -> Self {
        Self { open: streams.collect(), outcomes: outcomes.clone() }
    }

    /// Adds a directory, or what else has no content of its own, to each replica.
    pub(crate) fn each(
        &mut self,
        mut act: impl FnMut(&mut PackStream) -> RepoResult<()>,
    ) -> anyhow::Result<()> {
        self.open.retain_mut(|Stream { packs, outcome }| {
            !outcome.has_failed() && act(packs).map_err(|error| outcome.fail(error)).is_ok()
        });
        self.outcomes.any_left()
    }

    /// Whether the file is new in a replica and may be one that its parent has elsewhere: then [`Self::lookup`] finds out.
    pub(crate) fn may_be_elsewhere(&mut self, path: &TablePath, length: u64) -> anyhow::Result<bool> {
        let mut may_be = false;
        self.each(|packs| {
            may_be |= packs.may_be_elsewhere(path, length)?;
            Ok(())
        })?;
        Ok(may_be)
    }

    /// Begins to look for a file by its content.
    pub(crate) fn lookup(&mut self) -> ContentLookup<'_> {
        let candidates = self.open.iter_mut();
        let candidates =
            candidates.map(|stream| Candidate { hasher: stream.packs.hasher(), stream }).collect();
        ContentLookup { candidates, outcomes: &self.outcomes }
    }

    /// Begins a file in each replica.
    pub(crate) fn file(&mut self, path: &TablePath) -> ReplicaFiles<'_> {
        ReplicaFiles::begin(self.open.iter_mut(), path, &self.outcomes)
    }

    /// Stores what the streams still hold.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        for Stream { packs, outcome } in self.open.into_iter().filter(|stream| !stream.outcome.has_failed()) {
            if let Err(error) = packs.finish() {
                outcome.fail(error);
            }
        }
        self.outcomes.any_left()
    }
}

/// A file that is new at its path, looked for by its content in the parent of each replica.
#[derive(Debug)]
pub(crate) struct ContentLookup<'a> {
    candidates: Vec<Candidate<'a>>,
    outcomes: &'a Outcomes,
}

/// A replica whose parent may have the file; each replica hashes with a key of its own.
#[derive(Debug)]
struct Candidate<'a> {
    stream: &'a mut Stream,
    hasher: ContentHasher,
}

impl<'a> ContentLookup<'a> {
    /// Takes the next bytes of the file.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.candidates.iter_mut().for_each(|candidate| candidate.hasher.update(bytes));
    }

    /// Whether the parent of any replica may still have the file, of which this took a beginning; `None` while that cannot be
    /// known.
    pub(crate) fn may_still_be(&mut self, length: u64) -> anyhow::Result<Option<bool>> {
        let (mut may_be, mut open) = (false, false);
        self.candidates.retain(|Candidate { stream: Stream { packs, outcome }, hasher }| {
            match packs.may_still_be_elsewhere(length, hasher) {
                Ok(Some(may)) => may_be |= may,
                Ok(None) => open = true,
                Err(error) => outcome.fail(error),
            }
            !outcome.has_failed()
        });
        self.outcomes.any_left()?;
        Ok((may_be || !open).then_some(may_be))
    }

    /// This took the whole file: adds it to the replicas whose parent has one with that content, and begins it in the others.
    pub(crate) fn take_over(
        self,
        path: &TablePath,
        attributes: Attributes,
    ) -> anyhow::Result<ReplicaFiles<'a>> {
        let mut lacking = Vec::new();
        for Candidate { stream, hasher } in self.candidates {
            match stream.packs.same_file(path, hasher.finish(), attributes) {
                Ok(true) => {}
                Ok(false) => lacking.push(stream),
                Err(error) => stream.outcome.fail(error),
            }
        }
        self.outcomes.any_left()?;
        Ok(ReplicaFiles::begin(lacking.into_iter(), path, self.outcomes))
    }

    /// The file is not to be taken over: begins it in each replica.
    pub(crate) fn none_has(self, path: &TablePath) -> ReplicaFiles<'a> {
        let streams = self.candidates.into_iter().map(|candidate| candidate.stream);
        ReplicaFiles::begin(streams, path, self.outcomes)
    }
}

/// A file on its way into the replicas that lack it. Dropped, it is in none of them.
#[derive(Debug)]
pub(crate) struct ReplicaFiles<'a> {
    open: Vec<ReplicaFile<'a>>,
    outcomes: &'a Outcomes,
}

#[derive(Debug)]
struct ReplicaFile<'a> {
    file: FileWriter<'a>,
    outcome: &'a ReplicaOutcome,
}

impl<'a> ReplicaFiles<'a> {
    fn begin(
        streams: impl Iterator<Item = &'a mut Stream>,
        path: &TablePath,
        outcomes: &'a Outcomes,
    ) -> Self {
        let open = streams.filter(|stream| !stream.outcome.has_failed());
        let open =
            open.map(|Stream { packs, outcome }| ReplicaFile { file: packs.file(path.clone()), outcome });
        Self { open: open.collect(), outcomes }
    }

    /// Whether every replica has the file already.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.each(|file| file.write(bytes))
    }

    /// Takes a hole.
    pub(crate) fn zeros(&mut self, len: u64) -> anyhow::Result<()> {
        self.each(|file| file.zeros(len))
    }

    fn each(&mut self, mut act: impl FnMut(&mut FileWriter<'_>) -> RepoResult<()>) -> anyhow::Result<()> {
        self.open.retain_mut(|ReplicaFile { file, outcome }| {
            act(file).map_err(|error| outcome.fail(error)).is_ok()
        });
        self.outcomes.any_left()
    }

    /// Notes that a page of the file is bad.
    pub(crate) fn bad_page(&mut self, block: u64, fault: PageFault) {
        self.open.iter_mut().for_each(|open| open.file.bad_page(block, fault));
    }

    /// The file is complete.
    pub(crate) fn finish(self, attributes: Attributes) -> anyhow::Result<()> {
        for ReplicaFile { file, outcome } in self.open {
            if let Err(error) = file.finish(attributes) {
                outcome.fail(error);
            }
        }
        self.outcomes.any_left()
    }
}
