//! Where the tablespaces of a restored cluster go.
//!
//! A tablespace is a link `pg_tblspc/<oid>` to a directory outside PGDATA. Restored beside the cluster it came from, the
//! same directory would be in use there: unless told otherwise a tablespace goes back to its own path, and only if that
//! is empty.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use walpoint_base::diagnostic::shown;

/// A tablespace as the backup found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RestoredTablespace {
    /// Its oid, the name of its link.
    pub(crate) oid: u32,
    /// Its directory at the time of the backup.
    pub(crate) location: PathBuf,
}

/// `--tablespace OLD=NEW`: OLD is the oid or the directory of the backup, NEW an absolute directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    old: String,
    new: PathBuf,
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (old, new) = text.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty()).ok_or_else(|| {
            format!("{text:?} is not OLD=NEW (OLD: the tablespace's oid or its directory; NEW: an absolute directory)")
        })?;
        let new = PathBuf::from(new);
        if !plain_absolute(&new) {
            return Err(format!("{new:?} has to be an absolute path without \"..\""));
        }
        Ok(Self { old: old.to_owned(), new })
    }
}

impl Mapping {
    pub(crate) fn new_place(&self) -> &Path {
        &self.new
    }

    fn fits(&self, tablespace: &RestoredTablespace) -> bool {
        let old = self.old.trim_end_matches('/');
        old == tablespace.oid.to_string() || Path::new(old) == tablespace.location
    }
}

/// Where one tablespace goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TablespaceTarget {
    /// `pg_tblspc/<oid>` is a link to this directory.
    Link(PathBuf),
    /// `pg_tblspc/<oid>` is a directory of its own.
    Inside,
}

/// What the command line says of tablespaces.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// Single ones.
    pub(crate) mappings: Vec<Mapping>,
    /// A directory for all others, each under its oid.
    pub(crate) all: Option<PathBuf>,
    /// Puts all others inside PGDATA, without links.
    pub(crate) flatten: bool,
    /// Where the data directory that is repaired or replaced has them.
    pub(crate) existing: BTreeMap<u32, TablespaceTarget>,
}

/// Whether a tablespace is a directory in `pg_tblspc` and no link.
pub(crate) fn lie_inside(pgdata: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(pgdata.join("pg_tblspc"))? {
        if entry?.file_type()?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The place of each tablespace by oid. An error changes nothing and says what to do.
pub(crate) fn place(
    tablespaces: &[RestoredTablespace],
    wishes: &Wishes,
    pgdata: &Path,
) -> Result<BTreeMap<u32, TablespaceTarget>, String> {
    for mapping in &wishes.mappings {
        if !tablespaces.iter().any(|t| mapping.fits(t)) {
            let known = tablespaces
                .iter()
                .map(|t| format!("{} ({})", t.oid, shown(&t.location.to_string_lossy())))
                .collect::<Vec<_>>();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!(
                "--tablespace {}=…: the backup has no such tablespace\nDETAIL: It has: {known}.",
                mapping.old
            ));
        }
    }
    let mut places: BTreeMap<u32, TablespaceTarget> = BTreeMap::new();
    for tablespace in tablespaces {
        let mut mapped = wishes.mappings.iter().filter(|m| m.fits(tablespace)).map(|m| m.new.clone());
        let (mapped, second) = (mapped.next(), mapped.next());
        if let (Some(first), Some(second)) = (&mapped, second) {
            return Err(format!(
                "--tablespace maps tablespace {} twice, to {} and to {}\nHINT: Give one directory for it.",
                tablespace.oid,
                first.display(),
                second.display()
            ));
        }
        let place = match (mapped, &wishes.all) {
            (Some(new), _) => TablespaceTarget::Link(new),
            (None, Some(all)) => TablespaceTarget::Link(all.join(tablespace.oid.to_string())),
            (None, None) if wishes.flatten => TablespaceTarget::Inside,
            (None, None) => match wishes.existing.get(&tablespace.oid) {
                Some(place) => place.clone(),
                None => TablespaceTarget::Link(tablespace.location.clone()),
            },
        };
        if let TablespaceTarget::Link(directory) = &place {
            check(tablespace, directory, pgdata, &places)?;
        }
        places.insert(tablespace.oid, place);
    }
    Ok(places)
}

fn check(
    tablespace: &RestoredTablespace,
    directory: &Path,
    pgdata: &Path,
    others: &BTreeMap<u32, TablespaceTarget>,
) -> Result<(), String> {
    let oid = tablespace.oid;
    let shown = directory.display();
    if !plain_absolute(directory) {
        return Err(format!(
            "tablespace {oid}: {shown} is not an absolute path without \"..\"\nHINT: Map it with --tablespace {oid}=DIR."
        ));
    }
    if directory.starts_with(pgdata) || pgdata.starts_with(directory) {
        return Err(format!(
            "tablespace {oid}: {shown} and PGDATA overlap\nHINT: Map it with --tablespace {oid}=DIR, or use \
             --flatten-tablespaces."
        ));
    }
    let clash = others.iter().find(|(_, place)| {
        matches!(place, TablespaceTarget::Link(other) if other.starts_with(directory) || directory.starts_with(other))
    });
    if let Some((other, _)) = clash {
        return Err(format!(
            "tablespaces {other} and {oid} would overlap, at {shown}\nHINT: Map one of them elsewhere."
        ));
    }
    Ok(())
}

/// Absolute, and free of `..` and `.`.
pub(crate) fn plain_absolute(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tablespaces() -> Vec<RestoredTablespace> {
        vec![
            RestoredTablespace { oid: 16400, location: "/ssd/fast".into() },
            RestoredTablespace { oid: 16401, location: "/hdd/slow".into() },
        ]
    }

    fn placed(
        mappings: &[&str],
        all: Option<&str>,
        flatten: bool,
    ) -> Result<BTreeMap<u32, TablespaceTarget>, String> {
        let mappings = mappings.iter().map(|m| m.parse()).collect::<Result<_, _>>()?;
        let wishes = Wishes { mappings, all: all.map(PathBuf::from), flatten, existing: BTreeMap::new() };
        place(&tablespaces(), &wishes, Path::new("/data"))
    }

    #[test]
    fn those_of_a_data_directory_that_is_there_stay_where_they_are() {
        let link = |path: &str| TablespaceTarget::Link(path.into());
        let existing = BTreeMap::from([(16400, link("/moved")), (16401, TablespaceTarget::Inside)]);
        let wishes = Wishes { mappings: vec!["16401=/new".parse().unwrap()], existing, ..Wishes::default() };
        let placed = place(&tablespaces(), &wishes, Path::new("/data")).unwrap();
        assert_eq!((&placed[&16400], &placed[&16401]), (&link("/moved"), &link("/new")));
    }

    #[test]
    fn one_by_one_all_or_inside() {
        let link = |path: &str| TablespaceTarget::Link(path.into());
        assert_eq!(placed(&[], None, false).unwrap()[&16400], link("/ssd/fast"));
        let both = placed(&["16400=/new/a", "/hdd/slow/=/new/b"], None, false).unwrap();
        assert_eq!((&both[&16400], &both[&16401]), (&link("/new/a"), &link("/new/b")));
        let rest = placed(&["/ssd/fast=/new/a"], Some("/all"), false).unwrap();
        assert_eq!((&rest[&16400], &rest[&16401]), (&link("/new/a"), &link("/all/16401")));
        assert_eq!(placed(&["16401=/x"], None, true).unwrap()[&16400], TablespaceTarget::Inside);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (mappings, told) in [
            (vec!["99=/x"], "16400 (/ssd/fast)"),
            (vec!["16400=/data/x"], "overlap"),
            (vec!["16400=/x", "16401=/x/y"], "16400 and 16401"),
            (vec!["16400=/a", "16400=/b"], "16400 twice, to /a and to /b"),
            (vec!["16400=/a", "/ssd/fast=/b"], "16400 twice"),
            (vec!["16400=x"], "absolute"),
            (vec!["16400=/x/../y"], "absolute"),
            (vec!["16400"], "OLD=NEW"),
        ] {
            let error = placed(&mappings, None, false).unwrap_err();
            assert!(error.contains(told), "{mappings:?}: {error}");
        }
    }
}
