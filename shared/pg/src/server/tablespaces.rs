//! Tablespaces and where they are.

use std::path::PathBuf;

use super::error::ServerError;
use super::role::Right;
use super::session::Server;

/// A tablespace outside the data directory's own tree, or inside it (`allow_in_place_tablespaces`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerTablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where its link leads, on the server's machine; `pg_tblspc/<oid>` for one in place.
    pub location: PathBuf,
}

/// A directory that the server sees: the one of this version in a tablespace, or one of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablespaceDirectory {
    /// The OID of the tablespace; that of `pg_default` for what lies in `base`.
    pub tablespace: u32,
    /// The OID of the database; `None` for the tablespace itself.
    pub database: Option<u32>,
    /// The name of the database, or that of the tablespace.
    pub name: String,
}

/// The OID of `pg_default`, whose databases lie in `base`.
pub const DEFAULT_TABLESPACE: u32 = 1663;

/// A database may be dropped while the server lists the directories.
const TRIES: u32 = 3;

impl Server {
    /// All tablespaces but `pg_default` and `pg_global`, by OID.
    pub async fn tablespaces(&mut self) -> Result<Vec<ServerTablespace>, ServerError> {
        let action = "reading the tablespaces";
        let sql = "SELECT oid, spcname, pg_catalog.pg_tablespace_location(oid) AS location \
            FROM pg_catalog.pg_tablespace ORDER BY oid";
        let mut found = Vec::new();
        for row in self.query(action, Right::Connect, sql).await? {
            let answer = |source| ServerError::Answer { action, source };
            // The built-in ones have no location.
            let Some(location) = row.path("location").map_err(answer)? else { continue };
            let (oid, name) = (row.get("oid").map_err(answer)?, row.get("spcname").map_err(answer)?);
            found.push(ServerTablespace { oid, name, location });
        }
        Ok(found)
    }

    /// Where the server keeps files: all tablespaces outside the data directory's own tree, and in each the databases of which
    /// it sees any file there, those in `base` included.
    pub async fn places(&mut self) -> Result<Vec<TablespaceDirectory>, ServerError> {
        let mut tried = 1;
        loop {
            match self.try_places().await {
                Err(_) if tried < TRIES => tried += 1,
                places => return places,
            }
        }
    }

    async fn try_places(&mut self) -> Result<Vec<TablespaceDirectory>, ServerError> {
        let action = "reading where databases are";
        let sql = "SELECT t.oid AS tablespace, d.oid AS database, d.datname AS name \
            FROM pg_catalog.pg_tablespace t, pg_catalog.pg_tablespace_databases(t.oid) AS seen(oid), \
            pg_catalog.pg_database d \
            WHERE t.spcname OPERATOR(pg_catalog.<>) 'pg_global' AND d.oid OPERATOR(pg_catalog.=) seen.oid ORDER BY 1, 2";
        let spaces = self.tablespaces().await?;
        let space = |space: ServerTablespace| TablespaceDirectory {
            tablespace: space.oid,
            database: None,
            name: space.name,
        };
        let mut places: Vec<TablespaceDirectory> = spaces.into_iter().map(space).collect();
        for row in self.query(action, Right::Connect, sql).await? {
            let answer = |source| ServerError::Answer { action, source };
            places.push(TablespaceDirectory {
                tablespace: row.get("tablespace").map_err(answer)?,
                database: Some(row.get("database").map_err(answer)?),
                name: row.get("name").map_err(answer)?,
            });
        }
        Ok(places)
    }
}
