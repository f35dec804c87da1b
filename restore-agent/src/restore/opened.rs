//! The last look at a directory before anything is written there, on what was opened.
//!
//! What lies at a path is judged by the path, before anything is planned and once more when the place is taken. Until the directory is open
//! the path may have come to lead to another one: a filesystem is mounted, a link appears, a missing parent is made. So what is open has to
//! be what was judged: with nothing in it, or the very same directory.

use std::path::Path;

use anyhow::{Context, bail};

use super::beneath::Anchor;
use super::directory;
use super::identity::{Identity, Position};
use super::outside::DirectoryStep;

/// What a directory was judged to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// It is to be made, or holds nothing.
    Vacant,
    /// An unfinished restore into the same data directory claimed it, and may have emptied it since.
    Claimed,
    /// What lies there is to be continued or repaired.
    This(Option<Identity>),
}

impl Judged {
    /// By what is done with a directory outside the data directory.
    pub(super) fn by(step: &DirectoryStep, found: &Position) -> Self {
        match step {
            DirectoryStep::Fill | DirectoryStep::MoveAside { .. } | DirectoryStep::FinishMovingAside => {
                Self::Vacant
            }
            DirectoryStep::Reclaim => Self::Claimed,
            DirectoryStep::Repair { .. } => Self::This(found.identity()),
        }
    }

    /// Refuses an open directory that is not what was judged.
    pub(super) fn prove(
        self,
        opened: &Anchor,
        is_claimed: impl FnOnce(&Anchor) -> bool,
    ) -> anyhow::Result<()> {
        let shown = opened.shown();
        if self == Self::Claimed && is_claimed(opened) {
            return Ok(());
        }
        if let Self::This(identity) = self {
            let found = opened.identity().with_context(|| shown.display().to_string())?;
            if identity != Some(found) {
                bail!(
                    "{} is not what it was when the restore began; nothing was written to it\nDETAIL: Another directory is at this \
                     path now.",
                    shown.display()
                );
            }
            return Ok(());
        }
        match directory::example(opened).with_context(|| shown.display().to_string())? {
            None => Ok(()),
            Some(example) => bail!(
                "{} is not what it was when the restore began; nothing was written to it\nDETAIL: It holds {example:?} now.",
                shown.display()
            ),
        }
    }
}

/// Refuses a path without links that has come to lead through one.
pub(super) fn prove_path(path: &Path) -> anyhow::Result<()> {
    let leads = directory::resolve(path)?;
    if leads != path {
        bail!(
            "{} is not what it was when the restore began; nothing was written to it\nDETAIL: A link leads from there to \"{}\" now.",
            path.display(),
            leads.display()
        );
    }
    Ok(())
}

/// Refuses an open directory, of which the name has no links, if that leads elsewhere by now.
pub(super) fn prove_name(opened: &Anchor) -> anyhow::Result<()> {
    let shown = opened.shown();
    prove_path(shown)?;
    Judged::This(Identity::of(shown)).prove(opened, |_| false)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use walpoint_base::durable;

    use super::*;

    #[test]
    fn only_what_was_judged_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().canonicalize().unwrap().join(name);
        ["empty/lost+found", "full"].iter().for_each(|name| fs::create_dir_all(path(name)).unwrap());
        durable::create(&path("full/PG_VERSION"), b"17\n").unwrap();
        let [empty, full] = ["empty", "full"].map(|name| Anchor::open(&path(name)).unwrap());
        let (this, other) =
            (Judged::This(Identity::of(&path("full"))), Judged::This(Identity::of(&path("empty"))));
        for (judged, opened, is_claimed, is_proven) in [
            (Judged::Vacant, &empty, false, true),
            // A server's directory that came by the name in between.
            (Judged::Vacant, &full, false, false),
            (Judged::Vacant, &full, true, false),
            (Judged::Claimed, &full, true, true),
            (Judged::Claimed, &empty, false, true),
            (Judged::Claimed, &full, false, false),
            (this, &full, false, true),
            (other, &full, true, false),
            (Judged::This(None), &full, false, false),
        ] {
            let proven = judged.prove(opened, |_| is_claimed);
            assert_eq!(proven.is_ok(), is_proven, "{judged:?} {}", opened.shown().display());
        }
        let error = Judged::Vacant.prove(&full, |_| false).unwrap_err().to_string();
        assert!(error.contains("nothing was written to it") && error.contains("PG_VERSION"), "{error}");
    }

    #[test]
    fn a_name_that_leads_elsewhere_by_now_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().canonicalize().unwrap().join(name);
        ["parent/data", "other/data"].iter().for_each(|name| fs::create_dir_all(path(name)).unwrap());
        prove_path(&path("parent/new")).unwrap();
        let opened = Anchor::open(&path("parent/data")).unwrap();
        prove_name(&opened).unwrap();
        durable::rename(&path("parent"), &path("moved")).unwrap();
        assert!(prove_name(&opened).is_err());
        fs::create_dir_all(path("parent/data")).unwrap();
        assert!(prove_name(&opened).is_err(), "another directory has the name");
        fs::remove_dir_all(path("parent")).unwrap();
        symlink(path("moved"), path("parent")).unwrap();
        let error = prove_name(&opened).unwrap_err().to_string();
        assert!(error.contains(path("moved/data").to_str().unwrap()), "{error}");
        assert!(prove_path(&path("parent/new")).is_err());
    }
}
