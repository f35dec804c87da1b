//! The rights that Walpoint needs in a cluster, and the SQL that gives them to a role: nothing more than they.
//!
//! Rights to functions belong to one database each; everything else here to the whole cluster.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use walpoint_base::PgMajor;

/// Something that an ordinary role may not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// See `data_directory` and other settings that PostgreSQL hides.
    ReadSettings,
    /// Start a backup.
    StartBackup(PgMajor),
    /// End a backup.
    StopBackup(PgMajor),
    /// Switch to a new WAL segment.
    SwitchWal,
    /// Create a named restore point.
    CreateRestorePoint,
    /// Stream WAL and base backups.
    Replication,
    /// Connect, and call what everybody may.
    Connect,
}

impl Right {
    /// The statement that gives it to `role`, with its semicolon.
    pub fn grant(self, role: &str) -> String {
        let quoted = escape_identifier(role);
        let role = quoted.trim();
        let function = |name: &str| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{name} TO {role};");
        match self {
            Self::ReadSettings => format!("GRANT pg_read_all_settings TO {role};"),
            Self::StartBackup(major) if major.get() < 15 => {
                function("pg_start_backup(text, boolean, boolean)")
            }
            Self::StartBackup(_) => function("pg_backup_start(text, boolean)"),
            Self::StopBackup(major) if major.get() < 15 => function("pg_stop_backup(boolean, boolean)"),
            Self::StopBackup(_) => function("pg_backup_stop(boolean)"),
            Self::SwitchWal => function("pg_switch_wal()"),
            Self::CreateRestorePoint => function("pg_create_restore_point(text)"),
            Self::Replication => format!("ALTER ROLE {role} REPLICATION;"),
            Self::Connect => format!("ALTER ROLE {role} LOGIN;"),
        }
    }
}

/// SQL that makes `role` if it is not there and gives it all that Walpoint needs, for PostgreSQL `major`. To be run by a
/// superuser in the database that Walpoint will connect to. Safe to run again.
pub fn least_privilege_sql(role: &str, major: PgMajor) -> String {
    let quoted = escape_identifier(role);
    let literal = escape_literal(role);
    let (quoted, literal) = (quoted.trim(), literal.trim());
    let mut sql = format!(
        "-- A role for Walpoint with no more rights than it needs. Run this as a superuser in the database that\n\
         -- Walpoint connects to: rights to functions belong to one database. Then set a password (\\password) or\n\
         -- let the role in by peer or cert in pg_hba.conf. REPLICATION is for streaming and for remote backups.\n\
         DO $walpoint$ BEGIN\n  \
         IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal}) THEN\n    \
         CREATE ROLE {quoted};\n  \
         END IF;\n\
         END $walpoint$;\n\
         ALTER ROLE {quoted} LOGIN REPLICATION;\n"
    );
    let rights = [
        Right::ReadSettings,
        Right::StartBackup(major),
        Right::StopBackup(major),
        Right::SwitchWal,
        Right::CreateRestorePoint,
    ];
    for right in rights {
        sql.push_str(&right.grant(role));
        sql.push('\n');
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_functions() {
        for major in PgMajor::ALL {
            let sql = least_privilege_sql("walpoint", major);
            let old = sql.contains("pg_start_backup(text, boolean, boolean)")
                && sql.contains("pg_stop_backup(boolean, boolean)");
            let new =
                sql.contains("pg_backup_start(text, boolean)") && sql.contains("pg_backup_stop(boolean)");
            assert_eq!((old, new), (major.get() < 15, major.get() >= 15), "{sql}");
        }
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(
            Right::SwitchWal.grant("o\"x"),
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO \"o\"\"x\";"
        );
        let sql = least_privilege_sql("it's", PgMajor::ALL[0]);
        assert!(sql.contains("rolname = 'it''s'") && sql.contains("ALTER ROLE \"it's\""), "{sql}");
    }
}
