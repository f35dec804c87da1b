//! The checksums of all pages, after recovery has ended and the server has shut down in order: replay has repaired what was torn, the last
//! checkpoint has written it, and nothing else is written.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_pg::checksum::{PageState, verify_page};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::files;

use crate::checks::Outcome;

/// Bad pages that are named.
const NAMED: usize = 5;

/// Pages that are read at once.
const PAGES: usize = 128;

/// Directories that hold relations, to this depth: `pg_tblspc/<oid>/PG_<version>/<oid>`.
const DEEPEST: usize = 4;

/// What was found.
#[derive(Debug, Default)]
struct Pages {
    /// Pages whose checksum was verified.
    verified: u64,
    /// Pages whose checksum is wrong.
    bad: u64,
    /// The first of these.
    named: Vec<String>,
}

/// Verifies the checksums of all pages of a data directory whose server is stopped.
pub(super) async fn outcome(pgdata: PathBuf) -> anyhow::Result<Outcome> {
    let verified = tokio::task::spawn_blocking(move || verify(&pgdata)).await?;
    Ok(match verified {
        Err(error) => Outcome::Failed(walpoint_words::format_chain(&error)),
        Ok(None) => Outcome::Skipped("the cluster has no data checksums".to_owned()),
        Ok(Some(pages)) if pages.bad > 0 => Outcome::Failed(format!(
            "{} of {} pages are damaged: {}{}",
            pages.bad,
            pages.verified,
            pages.named.join(", "),
            if pages.bad > u64::try_from(pages.named.len()).unwrap_or(0) { ", …" } else { "" }
        )),
        Ok(Some(pages)) => Outcome::Passed(Some(format!("{} pages", pages.verified))),
    })
}

/// Verifies the pages of a data directory whose server is stopped; `None` if it has no checksums.
fn verify(pgdata: &Path) -> anyhow::Result<Option<Pages>> {
    let path = pgdata.join(CONTROL_FILE);
    let context = || format!("could not read \"{}\"", path.display());
    let control = ControlFile::parse(&fs::read(&path).with_context(context)?).with_context(context)?;
    if !control.has_checksums() {
        return Ok(None);
    }
    let mut found = Pages::default();
    for top in ["global", "base", "pg_tblspc"] {
        look(pgdata, Path::new(top), &control, 1, &mut found)?;
    }
    Ok(Some(found))
}

/// Looks at what lies in a directory, given by its path in the data directory. Links are not followed: what they lead to is not the
/// scratch instance's.
fn look(
    pgdata: &Path,
    directory: &Path,
    control: &ControlFile,
    depth: usize,
    found: &mut Pages,
) -> anyhow::Result<()> {
    let here = pgdata.join(directory);
    let context = || format!("could not read \"{}\"", here.display());
    for entry in fs::read_dir(&here).with_context(context)? {
        let entry = entry.with_context(context)?;
        let (path, kind) = (directory.join(entry.file_name()), entry.file_type().with_context(context)?);
        if kind.is_dir() && depth < DEEPEST {
            look(pgdata, &path, control, depth + 1, found)?;
        }
        if kind.is_file() {
            let verified = file(pgdata, &path, control, found);
            verified.with_context(|| format!("could not read \"{}\"", pgdata.join(&path).display()))?;
        }
    }
    Ok(())
}

fn file(pgdata: &Path, path: &Path, control: &ControlFile, found: &mut Pages) -> io::Result<()> {
    let Some(relation) = files::relation(path).filter(|relation| relation.temporary.is_none()) else {
        return Ok(());
    };
    let size = usize::try_from(control.block_size).unwrap_or(8192);
    let mut file = File::open(pgdata.join(path))?;
    let mut buffer = vec![0; size * PAGES];
    let mut block = 0u32;
    loop {
        let read = fill(&mut file, &mut buffer)?;
        for page in buffer.get(..read).unwrap_or_default().chunks(size) {
            // A page that is cut short is one that replay would have completed.
            let number = relation.block_in_relation(block, control.relation_segment_blocks);
            let state = number.map(|number| verify_page(page, number, None));
            let is_whole = page.len() == size;
            if !is_whole || matches!(state, Some(PageState::Bad { .. })) {
                found.bad += 1;
                if found.named.len() < NAMED {
                    found.named.push(format!("{} block {block}", path.display()));
                }
            }
            found.verified += 1;
            block = block.saturating_add(1);
        }
        if read < buffer.len() {
            return Ok(());
        }
    }
}

/// Reads until a buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
