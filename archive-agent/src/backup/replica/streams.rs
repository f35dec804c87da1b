//! One reading of the cluster, a copy of the backup in each repository.
//!
//! A repository that fails drops out, the others go on: an hour of reading is not lost because one of two stores went away.
//! Only when none is left does the backup end.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{anyhow, bail};
use walpoint_repo::backup::{
    Attributes, BackupWriter, ContentHasher, FileWriter, Lane, PageFault, TablePath,
};
use walpoint_runtime::exit::told;
use walpoint_storage::Result as RepoResult;
use walpoint_storage::object::ContentHash;

use crate::backup::preflight::Chosen;

/// Why the copies that failed did.
#[derive(Debug)]
pub(crate) struct Failures {
    names: Vec<String>,
    why: Mutex<Vec<Option<anyhow::Error>>>,
}

impl Failures {
    /// For the repositories that get a copy, in that order; behind them come those that were left out.
    pub(crate) fn new(chosen: &Chosen) -> Arc<Self> {
        let Chosen { names, left_out, .. } = chosen;
        let out = left_out.iter().map(|(name, _)| name);
        let why = left_out.iter().map(|(_, why)| Some(anyhow!("{why}")));
        Arc::new(Self {
            names: names.iter().chain(out).cloned().collect(),
            why: Mutex::new(names.iter().map(|_| None).chain(why).collect()),
        })
    }

    /// The copy in the repository with that number has failed. Only the first reason counts.
    pub(crate) fn note(&self, copy: usize, error: impl Into<anyhow::Error>) {
        let error = error.into();
        let mut why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(slot @ None), Some(name)) = (why.get_mut(copy), self.names.get(copy)) {
            tracing::error!(
                repository = name,
                "the copy of the backup in this repository failed: {}",
                told(&error)
            );
            *slot = Some(error);
        }
    }

    /// Whether that copy has failed.
    pub(crate) fn has(&self, copy: usize) -> bool {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get(copy).is_some_and(Option::is_some)
    }

    /// Fails if every copy has.
    pub(crate) fn any_left(&self) -> anyhow::Result<()> {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if why.iter().any(Option::is_none) {
            return Ok(());
        }
        bail!("{}", self.texts(&why).join("; "))
    }

    /// What failed and why, for a person.
    pub(crate) fn all(&self) -> Vec<String> {
        self.texts(&self.why.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn texts(&self, why: &[Option<anyhow::Error>]) -> Vec<String> {
        let failed = self.names.iter().zip(why).filter_map(|(name, why)| Some((name, why.as_ref()?)));
        failed.map(|(name, why)| format!("repository {name}: {}", told(why))).collect()
    }
}

/// One thread's way into all copies.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<Option<Lane>>,
    failures: Arc<Failures>,
}

impl Lanes {
    /// Into the copies that `writers` write.
    pub(crate) fn new(writers: &[BackupWriter], failures: &Arc<Failures>) -> Self {
        let lanes = writers.iter().map(|writer| Some(writer.lane())).collect();
        Self { lanes, failures: Arc::clone(failures) }
    }

    /// Adds a directory, or what else has no content of its own, to each copy.
    pub(crate) fn each(&mut self, act: impl Fn(&mut Lane) -> RepoResult<()>) -> anyhow::Result<()> {
        for (copy, slot) in self.lanes.iter_mut().enumerate() {
            if self.failures.has(copy) {
                *slot = None;
            }
            if let Some(Err(error)) = slot.as_mut().map(&act) {
                self.failures.note(copy, error);
                *slot = None;
            }
        }
        self.failures.any_left()
    }

    /// Whether the file is new in a copy and may be one that its parent has elsewhere.
    pub(crate) fn may_be_elsewhere(&mut self, path: &TablePath, length: u64) -> anyhow::Result<bool> {
        let mut may_be = false;
        self.each_numbered(|_, lane| {
            may_be |= lane.may_be_elsewhere(path, length)?;
            Ok(())
        })?;
        Ok(may_be)
    }

    /// Hashes a file for [`Self::same_file`]; `None` if no copy is left.
    pub(crate) fn hasher(&self, copy: usize) -> Option<ContentHasher> {
        Some(self.lanes.get(copy)?.as_ref()?.hasher())
    }

    /// Whether the parent of any copy may still have a file, of which the hashers took a beginning; `None` while that cannot
    /// be told.
    pub(crate) fn may_still_be_elsewhere(
        &mut self,
        length: u64,
        hashers: &[Option<ContentHasher>],
    ) -> anyhow::Result<Option<bool>> {
        let (mut may_be, mut open) = (false, false);
        self.each_numbered(|copy, lane| {
            let Some(Some(hasher)) = hashers.get(copy) else { return Ok(()) };
            match lane.may_still_be_elsewhere(length, hasher)? {
                Some(may) => may_be |= may,
                None => open = true,
            }
            Ok(())
        })?;
        Ok((may_be || !open).then_some(may_be))
    }

    /// How many copies there are, failed ones included.
    pub(crate) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Adds a file to the copies whose parent has one with that content (`hashes` are the copies' own, in order). Which of
    /// them that are.
    pub(crate) fn same_file(
        &mut self,
        path: &TablePath,
        hashes: &[Option<(u64, ContentHash)>],
        attributes: Attributes,
    ) -> anyhow::Result<Vec<bool>> {
        let mut same = vec![false; self.lanes.len()];
        self.each_numbered(|copy, lane| {
            if let (Some(Some(hash)), Some(same)) = (hashes.get(copy), same.get_mut(copy)) {
                *same = lane.same_file(path, *hash, attributes)?;
            }
            Ok(())
        })?;
        Ok(same)
    }

    fn each_numbered(
        &mut self,
        mut act: impl FnMut(usize, &mut Lane) -> RepoResult<()>,
    ) -> anyhow::Result<()> {
        for (copy, slot) in self.lanes.iter_mut().enumerate() {
            if let Some(Err(error)) = slot.as_mut().map(|lane| act(copy, lane)) {
                self.failures.note(copy, error);
                *slot = None;
            }
        }
        self.failures.any_left()
    }

    /// Begins a file in each copy.
    pub(crate) fn file(&mut self, path: &TablePath) -> FileCopies<'_> {
        self.file_but(path, &[])
    }

    /// Begins a file in each copy but those marked, which have it.
    pub(crate) fn file_but(&mut self, path: &TablePath, have: &[bool]) -> FileCopies<'_> {
        let failures = &self.failures;
        let has = |copy: usize| have.get(copy) == Some(&true) || failures.has(copy);
        let open = self.lanes.iter_mut().enumerate().filter(|(copy, _)| !has(*copy));
        let open = open.filter_map(|(copy, lane)| Some((copy, lane.as_mut()?.file(path.clone())))).collect();
        FileCopies { open, failures: Arc::clone(failures) }
    }

    /// Stores what the lanes still hold.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        for (copy, lane) in self.lanes.into_iter().enumerate() {
            if self.failures.has(copy) {
                continue;
            }
            if let Some(Err(error)) = lane.map(Lane::finish) {
                self.failures.note(copy, error);
            }
        }
        self.failures.any_left()
    }
}

/// A file on its way into all copies. Dropped, it is in none.
#[derive(Debug)]
pub(crate) struct FileCopies<'a> {
    open: Vec<(usize, FileWriter<'a>)>,
    failures: Arc<Failures>,
}

impl FileCopies<'_> {
    /// Takes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.each(|file| file.write(bytes))
    }

    /// Takes a hole.
    pub(crate) fn zeros(&mut self, len: u64) -> anyhow::Result<()> {
        self.each(|file| file.zeros(len))
    }

    fn each(&mut self, mut act: impl FnMut(&mut FileWriter<'_>) -> RepoResult<()>) -> anyhow::Result<()> {
        let failures = &self.failures;
        self.open.retain_mut(|(copy, file)| act(file).map_err(|error| failures.note(*copy, error)).is_ok());
        self.failures.any_left()
    }

    /// Notes that a page of the file is bad.
    pub(crate) fn bad_page(&mut self, block: u64, fault: PageFault) {
        self.open.iter_mut().for_each(|(_, file)| file.bad_page(block, fault));
    }

    /// The file is complete.
    pub(crate) fn finish(self, attributes: Attributes) -> anyhow::Result<()> {
        for (copy, file) in self.open {
            if let Err(error) = file.finish(attributes) {
                self.failures.note(copy, error);
            }
        }
        self.failures.any_left()
    }
}
