//! Tablespaces and where they are.

use std::path::PathBuf;

use super::error::ServerError;
use super::role::Right;
use super::session::Server;

/// A tablespace outside the data directory's own tree, or inside it (`allow_in_place_tablespaces`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where its link leads, on the server's machine; `pg_tblspc/<oid>` for one in place.
    pub location: PathBuf,
}

impl Server {
    /// All tablespaces but `pg_default` and `pg_global`, by OID.
    pub async fn tablespaces(&mut self) -> Result<Vec<Tablespace>, ServerError> {
        let action = "reading the tablespaces";
        let sql = "SELECT oid, spcname, pg_catalog.pg_tablespace_location(oid) AS location \
            FROM pg_catalog.pg_tablespace ORDER BY oid";
        let mut found = Vec::new();
        for row in self.query(action, Right::Connect, sql).await? {
            let answer = |source| ServerError::Answer { action, source };
            // The built-in ones have no location.
            let Some(location) = row.path("location").map_err(answer)? else { continue };
            let (oid, name) = (row.get("oid").map_err(answer)?, row.get("spcname").map_err(answer)?);
            found.push(Tablespace { oid, name, location });
        }
        Ok(found)
    }
}
