//! What a row of the second table is measured in.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::damage::files_below;
use crate::bed::{self, Seen, Surroundings};
use crate::data::{Data, Size};
use crate::place::Stores;
use crate::stats::median;
use crate::tools::Tool;
use crate::work::WorkDirectory;

/// Where time is compared and a round is long, so many rounds are enough.
const FEW: u32 = 3;

/// Milliseconds between two looks at the memory while the first round warms up.
const LOOK_WARMING_UP_MS: u64 = 1;
/// Of the rounds that count.
const LOOK_MS: u64 = 20;

/// What a row has.
#[derive(Debug)]
pub struct KeepingBed<'a> {
    /// The working directory.
    pub work: &'a WorkDirectory,
    /// The data set; its cluster does not run.
    pub data: &'a Data,
    /// The stores.
    pub stores: &'a mut Stores,
    /// Us, as the first table knows us.
    pub ours: &'a Tool,
    /// Counted rounds, after one that warms up.
    pub rounds: u32,
    /// How large the data set is.
    pub size: Size,
    /// The row.
    pub row: &'static str,
    /// CPU time that others took in each measurement, as a share of the machine.
    pub foreign: Vec<f64>,
}

impl KeepingBed<'_> {
    /// The rounds of a row whose rounds are long.
    pub fn few_rounds(&self) -> u32 {
        self.rounds.min(FEW)
    }

    /// Whether this is for a look only.
    pub fn is_quick(&self) -> bool {
        self.size == Size::QUICK
    }

    /// A directory for the row, not yet there; it goes when the row is through.
    pub fn place_for(&self, name: &str) -> PathBuf {
        let place = self.work.dir("run").join(name);
        self.work.remove(&format!("run/{name}"));
        place
    }

    /// Puts a restored directory aside, empty of bytes, so that the next one is restored into a new one. It is not removed
    /// before the row is through: ext4 without a journal does not use the inodes of removed files again for minutes, and looks
    /// at each of them whenever a file is created, so a restore would pay for what was removed before it.
    pub fn put_aside(&self) -> io::Result<()> {
        let target = bed::target(self.work);
        if !target.exists() {
            return Ok(());
        }
        let aside = target.with_file_name(format!("aside{:08x}", rand::random::<u32>()));
        fs::rename(&target, &aside)?;
        for file in files_below(&aside)? {
            File::options().write(true).open(file)?.set_len(0)?;
        }
        Ok(())
    }

    /// What measurements take place in.
    pub fn surroundings<'b>(
        &'b mut self,
        cluster: Option<&'b walpoint_tests::cluster::Cluster>,
    ) -> Surroundings<'b> {
        Surroundings { work: self.work, stores: &mut *self.stores, cluster }
    }

    /// Milliseconds between two looks at the memory.
    pub fn look_ms(round: u32) -> u64 {
        if round == 0 { LOOK_WARMING_UP_MS } else { LOOK_MS }
    }

    /// Tells what was measured, and remembers how much of the machine others took.
    pub fn note(&mut self, what: &str, seen: &Seen) {
        eprintln!(
            "{}: {what}: {:.2} s, {:.2} CPU s, others {:.0} %",
            self.row,
            seen.report.seconds,
            seen.report.cpu,
            seen.foreign * 100.0
        );
        self.foreign.push(seen.foreign);
    }

    /// The median of what others took.
    pub fn foreign_share(&self) -> f64 {
        median(&self.foreign)
    }
}
