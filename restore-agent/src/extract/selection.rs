//! What patterns select, by pg_dump's own reading of them: a dump of the definitions, listed by pg_restore, names each object by its OIDs.

use std::collections::BTreeSet;
use std::path::Path;

use super::pg_dump::Dump;
use super::{client, pipe};
use crate::server::{Instance, ServerUser};

/// The catalog of tables, views and sequences (`pg_class`). Indexes are in it, too, and follow their tables.
pub(super) const CLASS: u32 = 1259;
/// The catalog of schemas (`pg_namespace`).
pub(super) const NAMESPACE: u32 = 2615;

/// Objects, by the OID of their catalog and their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selection(BTreeSet<(u32, u32)>);

impl Selection {
    /// What a dump selects. Of its options, only those that select may be there. `pg_restore`: of the same installation.
    pub(super) async fn of_dump(
        dump: &Dump<'_>,
        pg_restore: &Path,
        instance: &Instance,
        user: &ServerUser,
    ) -> anyhow::Result<Self> {
        let mut command = dump.connected(instance, user)?;
        command.args(["--format=custom", "--schema-only", "--no-publications"]);
        let mut list = client::command(pg_restore, user);
        list.arg("--list");
        match pipe::contents(command, list).await? {
            Ok(list) => Ok(Self::read(&list)),
            Err(failed) => Err(dump.explain(&failed, instance).await),
        }
    }

    /// Reads what `pg_restore --list` prints. Lines about no object of their own have no OIDs.
    fn read(list: &str) -> Self {
        Self(list.lines().filter_map(object).collect())
    }

    /// The objects of a catalog.
    pub(super) fn of(&self, catalog: u32) -> Vec<u32> {
        self.0.iter().filter(|(of, _)| *of == catalog).map(|(_, oid)| *oid).collect()
    }
}

/// Reads `220; 1259 16503 TABLE public accounts app`.
fn object(line: &str) -> Option<(u32, u32)> {
    let (id, rest) = line.split_once("; ")?;
    id.parse::<u32>().ok()?;
    let mut words = rest.split(' ');
    let (catalog, oid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let is_index = catalog == CLASS && words.next() == Some("INDEX");
    (catalog != 0 && oid != 0 && !is_index).then_some((catalog, oid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_from_a_list_whatever_their_names() {
        let list = ";\n; Archive created at 2026-11-21 10:15:00 UTC\n;     TOC Entries: 12\n;\n220; 1259 16503 TABLE public 1; 1259 7 app\n\
                    5; 2615 2200 SCHEMA - public pg_database_owner\n2665; 0 0 SEQUENCE OWNED BY public accounts_id_seq app\n\
                    2512; 2606 16511 FK CONSTRAINT public accounts accounts_c_fkey app\n219; 1259 16502 SEQUENCE public s app\nx; 1 2 y\n\
                    2520; 1259 16520 INDEX public accounts_c app\n221; 1259 16504 TABLE public INDEX app\n\
                    222; 1259 16505 MATERIALIZED VIEW public m app\n";
        let selection = Selection::read(list);
        assert_eq!(selection.of(CLASS), [16502, 16503, 16504, 16505]);
        assert_eq!(selection.of(NAMESPACE), [2200]);
        assert!(Selection::read("").of(CLASS).is_empty());
    }
}
