-- The agent's role, with no more rights than it needs: what `archive-agent init` prints for PostgreSQL 15 and later.
CREATE ROLE walpoint LOGIN REPLICATION;
GRANT pg_read_all_settings TO walpoint;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO walpoint;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO walpoint;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO walpoint;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO walpoint;
