//! Who owns the files of a restored cluster.
//!
//! PostgreSQL's user restores for itself: everything is its own. Root restores for PostgreSQL's user: files get the owner
//! that their name has on this machine, and what that user needs to fetch WAL is tried as that user before anything is
//! written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use walpoint_base::durable;
use walpoint_repo::backup::OwnerName;

use crate::server::owner::getent;
pub(crate) use crate::server::owner::{Owner, name_of_user};

/// Turns the numbers in a backup into the numbers of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Owners {
    /// `None`: everything belongs to this process's user.
    maps: Option<Maps>,
}

#[derive(Debug, Clone)]
struct Maps {
    users: BTreeMap<u32, u32>,
    groups: BTreeMap<u32, u32>,
}

impl Owners {
    /// For this process: root keeps the owners by name, anybody else gets all files.
    pub(crate) fn of_backup(users: &[OwnerName], groups: &[OwnerName]) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { maps: None });
        }
        let map = |names: &[OwnerName], database: &str| -> anyhow::Result<BTreeMap<u32, u32>> {
            names.iter().map(|owner| Ok((owner.id, number(database, owner)?))).collect()
        };
        Ok(Self { maps: Some(Maps { users: map(users, "passwd")?, groups: map(groups, "group")? }) })
    }

    /// The owner that a file gets; `None` to leave it as it is made.
    pub(crate) fn of(&self, uid: u32, gid: u32) -> Option<Owner> {
        let maps = self.maps.as_ref()?;
        let local = |map: &BTreeMap<u32, u32>, id| map.get(&id).copied().unwrap_or(id);
        Some(Owner { uid: local(&maps.users, uid), gid: local(&maps.groups, gid) })
    }
}

/// Creates a directory and its missing parents, for that owner: PostgreSQL could not reach what lies below root's own.
pub(crate) fn create_directories(path: &Path, owner: Option<Owner>) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|a| !a.exists()).collect();
    durable::create_directories(path)?;
    if let Some(owner) = owner {
        for made in missing {
            owner.give(made)?;
        }
    }
    Ok(())
}

/// The number of a name on this machine. A name that is not known here keeps the number it had.
fn number(database: &str, owner: &OwnerName) -> anyhow::Result<u32> {
    let answer = getent(database, &owner.name)?;
    if !answer.status.success() {
        tracing::warn!(
            "{} \"{}\" is not known on this machine\nDETAIL: Its files keep the number {}.",
            database,
            owner.name,
            owner.id
        );
        return Ok(owner.id);
    }
    let line = String::from_utf8_lossy(&answer.stdout);
    let id = line.split(':').nth(2).and_then(|id| id.trim().parse().ok());
    id.with_context(|| format!("getent {database} {} answered {line:?}, which has no number", owner.name))
}

/// Proves, as the user who will run PostgreSQL, that configuration, secrets and repository can be read and that directories
/// can be entered: `arguments` are those of a `restore-agent` command that does so and writes nothing.
pub(crate) fn prove_usable(owner: Owner, arguments: &[OsString]) -> anyhow::Result<()> {
    if owner.uid == 0 {
        bail!(
            "the files of the backup belong to root, and PostgreSQL does not run as root\nHINT: Restore as PostgreSQL's user."
        );
    }
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let run = |command: &mut Command| {
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .current_dir(Path::new("/"))
            .output()
    };
    let output = run(Command::new(&program).uid(owner.uid).gid(owner.gid));
    let output = output.with_context(|| {
        format!(
            "{} cannot be run as uid {}, which PostgreSQL will do to fetch WAL",
            program.display(),
            owner.uid
        )
    })?;
    // PostgreSQL will have all of the user's groups, too, which runuser gives.
    let with_groups = |name: String| {
        let output = run(Command::new("runuser").args(["-u", &name, "--"]).arg(&program));
        output.is_ok_and(|output| output.status.success())
    };
    if !output.status.success() && !name_of_user(owner.uid).is_some_and(with_groups) {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!(
            "uid {} cannot use what PostgreSQL will need, so it would stop at once (nothing was written): {}",
            owner.uid,
            reason.trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_maps_by_name_and_others_do_not() {
        let names = [
            OwnerName { id: 4711, name: "root".into() },
            OwnerName { id: 4712, name: "no such user here".into() },
        ];
        let owners = Owners::of_backup(&names, &names).unwrap();
        if rustix::process::geteuid().is_root() {
            assert_eq!(owners.of(4711, 4712), Some(Owner { uid: 0, gid: 4712 }));
            assert_eq!(owners.of(9, 4711), Some(Owner { uid: 9, gid: 0 }));
        } else {
            assert_eq!(owners.of(4711, 4712), None);
        }
        assert_eq!(name_of_user(0).as_deref(), Some("root"));
        assert!(prove_usable(Owner { uid: 0, gid: 0 }, &[]).unwrap_err().to_string().contains("root"));
    }
}
