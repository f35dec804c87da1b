//! `evidence export`: the audit pack, which is verified without Walpoint.
//!
//! | file | is |
//! |---|---|
//! | `records.jsonl` | the stored content of every record, byte for byte, one in each line |
//! | `report.html` | the same for people, with a summary; it loads nothing and prints well |
//! | `HEAD` | hash and number of the last record, if it can be read |
//! | `VERIFY.txt` | how to verify the pack |
//! | `SHA256SUMS` | the hashes of the others, for `sha256sum -c` |
//!
//! Files are only created, in a directory that is new or empty. `SHA256SUMS` comes last: without it, the export did not finish.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use aws_lc_rs::digest;
use clap::Args;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, durable};
use walpoint_repo::evidence::{ChainReport, Evidence, Head, Record};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, human, output};
use walpoint_storage::store::StoreSettings;

use super::page::{self, Page};
use super::period::Period;
use super::tally::Tally;
use super::verify::{VerifiedChain, message, no_faults};

const EXAMPLES: &[(&str, &str)] = &[(
    "Write an audit pack, and check it against a head that was noted",
    "archive-agent evidence export --repo main --output /mnt/audit/2026 \\\n--head \"$(tail -n 1 /mnt/audit/walpoint-heads)\"",
)];

/// The names of the pack's files, in the order in which they are written.
const RECORDS: &str = "records.jsonl";
const REPORT: &str = "report.html";
const HEAD: &str = "HEAD";
const VERIFY: &str = "VERIFY.txt";
const SUMS: &str = "SHA256SUMS";

/// How the pack is verified.
const HOW: &str = include_str!("verify.txt");

/// Options of `evidence export`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct ExportArgs {
    /// Write the pack into this directory, which is created or must be empty.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Check that the chain still holds this record, as evidence head printed it (HASH:NUMBER). Can be repeated.
    #[arg(long, value_name = "HEAD")]
    head: Vec<Head>,
}

/// What `archive-agent evidence export --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct EvidenceExportDocument {
    /// The cluster.
    cluster: ClusterName,
    /// The directory.
    directory: String,
    /// Its files.
    files: Vec<String>,
    /// What was found while the chain was read.
    #[serde(flatten)]
    chain: VerifiedChain,
}

walpoint_runtime::document!(EvidenceExportDocument, "archive-agent evidence export");

/// Runs the command.
pub(super) async fn run(
    common: &CommonArgs,
    selection: &Selection<StoreSettings>,
    args: &ExportArgs,
) -> Result<(), Failure> {
    let (name, settings) = super::the_repository(selection, "evidence export")?;
    let evidence = super::open(selection, (name, settings)).await?;
    let mut pack = Pack::begin(&args.output)?;
    let (report, tally) = records(&mut pack, &evidence, &args.head).await?;
    let page = Page {
        cluster: &selection.cluster,
        repository: evidence.repository_id(),
        time: Timestamp::now(),
        report: &report,
        summary: &tally.summary(),
    };
    pack.page(&page)?;
    if let Some(head) = report.head {
        pack.file(HEAD, |file| writeln!(file, "{head}"))?;
    }
    pack.file(VERIFY, |file| file.write_all(HOW.as_bytes()))?;
    let files = pack.finish()?;
    let document = EvidenceExportDocument {
        cluster: selection.cluster.clone(),
        directory: args.output.display().to_string(),
        files,
        chain: VerifiedChain::of(name, &report),
    };
    if common.json {
        output::json(&document)?;
    } else {
        let records = human::count(report.records, "record");
        let mut text =
            format!("{records} of cluster {} written to {}\n", selection.cluster, document.directory);
        for fault in &report.faults {
            text += &format!("{}\n", human::hanging("problem: ", &message(fault)));
        }
        output::text(&text)?;
    }
    no_faults(report.faults.len() as u64, "evidence export")
}

/// Writes the records.
async fn records(
    pack: &mut Pack,
    evidence: &Evidence,
    heads: &[Head],
) -> anyhow::Result<(ChainReport, Tally)> {
    let mut tally = Tally::of(Period::default());
    let mut file = pack.create(RECORDS)?;
    let mut written = Ok(());
    let report = evidence.verify_with(heads, |read| {
        tally.add(&read.record);
        if written.is_ok() {
            written = file.write_all(&read.content).and_then(|()| file.write_all(b"\n"));
        }
    });
    let report = report.await?;
    written.with_context(|| format!("could not write {}", pack.path(RECORDS).display()))?;
    pack.close(RECORDS, file)?;
    Ok((report, tally))
}

/// A pack that is being written.
struct Pack {
    directory: PathBuf,
    /// The files that are finished, with their hashes.
    files: Vec<(&'static str, String)>,
}

/// A file of it.
struct PackFile {
    file: BufWriter<File>,
    hash: digest::Context,
}

impl Write for PackFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Pack {
    fn begin(directory: &Path) -> anyhow::Result<Self> {
        let context = || format!("could not create {}", directory.display());
        durable::create_directories(directory).with_context(context)?;
        let mut entries = std::fs::read_dir(directory).with_context(context)?;
        if entries.next().is_some() {
            return Err(anyhow!(
                "the directory {} is not empty\nHINT: Give a new one: the pack replaces no file.",
                directory.display()
            ));
        }
        Ok(Self { directory: directory.to_owned(), files: Vec::new() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn create(&self, name: &str) -> anyhow::Result<PackFile> {
        let path = self.path(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("could not create {}", path.display()))?;
        Ok(PackFile { file: BufWriter::new(file), hash: digest::Context::new(&digest::SHA256) })
    }

    /// Makes a file durable, and notes its hash.
    fn close(&mut self, name: &'static str, PackFile { file, hash }: PackFile) -> anyhow::Result<()> {
        let context = || format!("could not write {}", self.path(name).display());
        let file = file.into_inner().map_err(io::IntoInnerError::into_error).with_context(context)?;
        file.sync_all().with_context(context)?;
        let hash = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.files.push((name, hash));
        Ok(())
    }

    fn file(
        &mut self,
        name: &'static str,
        write: impl FnOnce(&mut PackFile) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut file = self.create(name)?;
        write(&mut file).with_context(|| format!("could not write {}", self.path(name).display()))?;
        self.close(name, file)
    }

    /// Writes the page, with the records as they were written before.
    fn page(&mut self, page: &Page<'_>) -> anyhow::Result<()> {
        let records = self.path(RECORDS);
        let context = || format!("could not read {}", records.display());
        let lines = BufReader::new(File::open(&records).with_context(context)?).lines();
        let records = lines.map(|line| Ok(serde_json::from_str::<Record>(&line?)?));
        self.file(REPORT, |file| page::write(file, page, records))
    }

    /// Writes the hashes. The names of all files.
    fn finish(mut self) -> anyhow::Result<Vec<String>> {
        let sums: String = self.files.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
        self.file(SUMS, |file| file.write_all(sums.as_bytes()))?;
        let synced = durable::sync_directory(&self.directory);
        synced.with_context(|| format!("could not write {}", self.directory.display()))?;
        Ok(self.files.into_iter().map(|(name, _)| name.to_owned()).collect())
    }
}
