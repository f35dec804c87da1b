//! The names of users and groups that own files, for a restore on a machine with other numbers.

use std::collections::BTreeSet;

use walpoint_repo::backup::{Attributes, OwnerName};

/// No sound cluster has files of more owners; a hostile directory costs no memory.
const MAX_OWNERS: usize = 1000;

/// The owners seen so far.
#[derive(Debug, Default)]
pub(crate) struct SeenOwners {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl SeenOwners {
    /// Looks at one more file.
    pub(crate) fn note(&mut self, attributes: &Attributes) {
        if self.users.len() < MAX_OWNERS {
            self.users.insert(attributes.uid);
        }
        if self.groups.len() < MAX_OWNERS {
            self.groups.insert(attributes.gid);
        }
    }

    /// The names of the users, as far as this machine's files know them.
    pub(crate) fn users(&self) -> Vec<OwnerName> {
        names(&self.users, &read("/etc/passwd"))
    }

    /// The names of the groups.
    pub(crate) fn groups(&self) -> Vec<OwnerName> {
        names(&self.groups, &read("/etc/group"))
    }
}

fn read(path: &str) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Lines `name:password:number:…`.
fn names(wanted: &BTreeSet<u32>, table: &str) -> Vec<OwnerName> {
    let line = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let id = fields.nth(1)?.parse().ok().filter(|id| wanted.contains(id))?;
        Some(OwnerName { id, name: name.to_owned() })
    };
    let mut found: Vec<OwnerName> = table.lines().filter_map(line).collect();
    found.sort_by_key(|owner| owner.id);
    found.dedup_by_key(|owner| owner.id);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owners_of_files_are_named() {
        let mut owners = SeenOwners::default();
        owners.note(&Attributes { uid: 26, gid: 70, ..Attributes::default() });
        let table = "root:x:0:0\npostgres:x:26:26\nalias:x:26:26\nbad\n:x:26\n";
        let found = names(&owners.users, table);
        assert_eq!(found, [OwnerName { id: 26, name: "postgres".to_owned() }]);
        assert_eq!(names(&owners.groups, table), []);
    }
}
