//! Exported snapshots: files that appear in `pg_snapshots` of the data directory on which the session's server runs, and in
//! no other. They prove which directory that is, on a primary and on a standby, without any right.
//!
//! The server names a file after the session's place in shared memory, its transaction, and a number that counts from 1; the
//! file holds the process id of the session. It disappears when the transaction ends. A crash of the server leaves it until
//! the next start.
//!
//! Source: `ExportSnapshot` in `src/backend/utils/time/snapmgr.c`; the same in versions 13 to 19.

use super::error::ServerError;
use super::role::Right;
use super::session::Server;

/// Where they lie, below the data directory.
pub const SNAPSHOTS: &str = "pg_snapshots";

const ACTION: &str = "exporting a snapshot";

/// Snapshots of one transaction, which is still open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportedSnapshots {
    /// What the names of all snapshots of this transaction begin with.
    prefix: String,
    /// How many there are.
    count: u32,
    /// The server process of the session.
    process: i32,
}

impl ExportedSnapshots {
    /// The server process of the session.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// The files that are there now.
    pub fn names(&self) -> impl Iterator<Item = String> {
        (1..=self.count).map(|number| self.name(number))
    }

    /// A file that is not there, unless another transaction of the same name exported more snapshots.
    pub fn next_name(&self) -> String {
        self.name(self.count + 1)
    }

    fn name(&self, number: u32) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// Whether a file says that this session wrote it.
    pub fn is_ours(&self, content: &[u8]) -> bool {
        let process = format!("pid:{}", self.process);
        content.split(|byte| *byte == b'\n').any(|line| line == process.as_bytes())
    }
}

impl Server {
    /// Exports so many snapshots in a transaction that stays open until [`Self::withdraw_snapshots`]: an open one holds back
    /// vacuum.
    pub async fn export_snapshots(&mut self, count: u32) -> Result<ExportedSnapshots, ServerError> {
        // Whatever the defaults of this role are: a standby has no serializable transactions.
        self.query(ACTION, Right::Connect, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        let sql = format!(
            "SELECT pg_catalog.pg_export_snapshot() AS name, pg_catalog.pg_backend_pid() AS process \
             FROM pg_catalog.generate_series(1, {count})"
        );
        let rows = self.query(ACTION, Right::Connect, &sql).await?;
        let answer = |source| ServerError::Answer { action: ACTION, source };
        let (mut prefix, mut process) = (String::new(), 0);
        for (number, row) in (1..=count).zip(rows) {
            let name: String = row.get("name").map_err(answer)?;
            process = row.get("process").map_err(answer)?;
            match (number, split(&name)) {
                (1, Some((first, 1))) => first.clone_into(&mut prefix),
                (_, Some((same, counted))) if same == prefix && counted == number => {}
                _ => {
                    let why = format!("the server calls snapshot {number} of the session {name:?}");
                    return Err(ServerError::State { action: ACTION, why });
                }
            }
        }
        Ok(ExportedSnapshots { prefix, count, process })
    }

    /// Ends the transaction, and with it the snapshots.
    pub async fn withdraw_snapshots(&mut self) -> Result<(), ServerError> {
        self.query("ending a transaction", Right::Connect, "ROLLBACK").await.map(drop)
    }
}

/// The parts of a snapshot's name. Anything else is no name of a file that is looked for.
fn split(name: &str) -> Option<(&str, u32)> {
    let (prefix, number) = name.rsplit_once('-')?;
    let (place, transaction) = prefix.split_once('-')?;
    let hex = |part: &str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?;
    number.filter(|_| hex(place) && hex(transaction)).map(|number| (prefix, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_postgresql_gives() {
        assert_eq!(split("00000003-0000001B-1"), Some(("00000003-0000001B", 1)));
        for other in ["", "00000003-0000001B", "../00003-0000001B-1", "00000003-0000001B-+1", "3-1B-1"] {
            assert_eq!(split(other), None, "{other}");
        }
    }

    #[test]
    fn a_file_names_its_session() {
        let exported = ExportedSnapshots { prefix: "00000003-0000001B".into(), count: 2, process: 123 };
        assert!(exported.is_ours(b"vxid:3/27\npid:123\ndbid:5\niso:2\nro:1\n"));
        assert!(!exported.is_ours(b"vxid:3/27\npid:1234\ndbid:5\n") && !exported.is_ours(b""));
        assert_eq!(exported.names().last().as_deref(), Some("00000003-0000001B-2"));
        assert_eq!(exported.next_name(), "00000003-0000001B-3");
    }
}
