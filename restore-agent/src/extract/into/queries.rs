//! The queries that prepare the scratch instance: most give statements, which are executed.
//!
//! `$SELECTED` stands for the OIDs of the selected tables, views and sequences, `$SCHEMA` for the name of the new schema as a value, `$OLD`
//! for the name of the old one as SQL quotes it, as a value. Names of tables are complete where the search path is empty.

use super::super::sql::{literal, oids};

/// A query about selected tables.
pub(super) fn of(query: &str, selected: &[u32], schema: &str) -> String {
    let query = query.replace("$SELECTED", &oids(selected));
    match schema {
        "" => query,
        schema => query.replace("$SCHEMA", &literal(schema)),
    }
}

/// Ends prepared transactions.
pub(super) const PREPARED_TRANSACTIONS: &str = "SELECT pg_catalog.format('ROLLBACK PREPARED %L', gid) AS statement \
     FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()";

/// Event triggers are the cluster's own programs. A statement about one fires none.
pub(super) const EVENT_TRIGGERS: &str = "SELECT pg_catalog.format('ALTER EVENT TRIGGER %I DISABLE', evtname) AS statement \
     FROM pg_catalog.pg_event_trigger";

/// Sequences that defaults of selected tables take their numbers from. Without them, the copy would take the server's numbers.
pub(super) const SEQUENCES_OF_DEFAULTS: &str = "SELECT DISTINCT s.oid AS oid FROM pg_catalog.pg_attrdef a \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = a.oid \
     JOIN pg_catalog.pg_class s ON d.refclassid = 'pg_catalog.pg_class'::regclass AND s.oid = d.refobjid AND s.relkind = 'S' \
     WHERE a.adrelid = ANY ($SELECTED) AND s.oid <> ALL ($SELECTED) AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend o \
     WHERE o.classid = 'pg_catalog.pg_class'::regclass AND o.objid = s.oid AND o.deptype IN ('i', 'e'))";

/// Ends the ownership of selected sequences by tables that are not selected: a sequence is where its owner is.
pub(super) const DISOWN: &str = "SELECT pg_catalog.format('ALTER SEQUENCE %s OWNED BY NONE', s.oid::regclass) AS statement \
     FROM pg_catalog.pg_class s JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = s.oid \
     AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'a' \
     WHERE s.relkind = 'S' AND s.oid = ANY ($SELECTED) AND d.refobjid <> ALL ($SELECTED)";

/// Foreign keys of selected tables that lead to others, but for those that another key of the same table stands for.
pub(super) const KEYS_OUT: &str = "SELECT pg_catalog.format('%I of %s', c.conname, c.conrelid::regclass) AS name \
     FROM pg_catalog.pg_constraint c LEFT JOIN pg_catalog.pg_constraint p ON p.oid = c.conparentid \
     WHERE c.contype = 'f' AND c.conrelid = ANY ($SELECTED) AND c.confrelid <> ALL ($SELECTED) \
     AND (p.oid IS NULL OR p.conrelid <> c.conrelid) ORDER BY 1";

/// Removes these keys, and those that lead to a parent from which a selected table is detached. A key that is inherited is removed where it
/// was made.
pub(super) const DROP_KEYS: &str = "WITH RECURSIVE parents AS (SELECT inhparent AS oid FROM pg_catalog.pg_inherits \
     WHERE inhrelid = ANY ($SELECTED) UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN parents p ON i.inhrelid = p.oid) \
     SELECT pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', c.conrelid::regclass, c.conname) AS statement \
     FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_class r ON r.oid = c.conrelid \
     WHERE c.contype = 'f' AND c.conparentid = 0 AND r.relpersistence <> 't' AND c.confrelid <> ALL ($SELECTED) \
     AND (c.conrelid = ANY ($SELECTED) OR c.conrelid IN (SELECT oid FROM parents) OR c.confrelid IN (SELECT oid FROM parents))";

/// Selected tables whose parents are not selected.
pub(super) const PARTITIONS_OF_OTHERS: &str = "SELECT DISTINCT pg_catalog.format('%s', i.inhrelid::regclass) AS name \
     FROM pg_catalog.pg_inherits i WHERE i.inhrelid = ANY ($SELECTED) AND i.inhparent <> ALL ($SELECTED) ORDER BY 1";

/// Detaches them. That of a partition may have been begun at that moment, which versions before 14 do not know.
pub(super) const DETACH: &str = "SELECT pg_catalog.format(CASE WHEN c.relispartition \
     THEN 'ALTER TABLE %2$s DETACH PARTITION %1$s' || CASE WHEN (pg_catalog.to_jsonb(i) ->> 'inhdetachpending')::bool \
     THEN ' FINALIZE' ELSE '' END ELSE 'ALTER TABLE %1$s NO INHERIT %2$s' END, \
     i.inhrelid::regclass, i.inhparent::regclass) AS statement \
     FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
     WHERE i.inhrelid = ANY ($SELECTED) AND i.inhparent <> ALL ($SELECTED)";

/// What would have the same name in one schema, of selected tables, views and sequences and what follows them: indexes and sequences of
/// tables, which share their names with these, and extended statistics.
pub(super) const SAME_NAME: &str = "WITH moved AS (SELECT c.oid, c.relname FROM pg_catalog.pg_class c WHERE c.oid = ANY ($SELECTED) \
     OR c.oid IN (SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = ANY ($SELECTED)) \
     OR c.relkind = 'S' AND c.oid IN (SELECT d.objid FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
     AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = ANY ($SELECTED) AND d.deptype IN ('a', 'i'))), \
     statistics AS (SELECT pg_catalog.format('%I.%I', n.nspname, s.stxname) AS name, s.stxname FROM pg_catalog.pg_statistic_ext s \
     JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = ANY ($SELECTED)) \
     SELECT pg_catalog.format('%s', oid::regclass) AS name FROM moved WHERE relname IN \
     (SELECT relname FROM moved GROUP BY 1 HAVING pg_catalog.count(*) > 1) \
     UNION ALL SELECT name FROM statistics WHERE stxname IN \
     (SELECT stxname FROM statistics GROUP BY 1 HAVING pg_catalog.count(*) > 1) ORDER BY 1";

/// Renames a schema that has the new name.
pub(super) const RENAME_TAKEN: &str = "SELECT pg_catalog.format('ALTER SCHEMA %I RENAME TO %I', nspname, \
     'walpoint_other_' || oid) AS statement FROM pg_catalog.pg_namespace WHERE nspname = $SCHEMA";

/// Moves selected tables, views and sequences; sequences that belong to a column follow its table.
pub(super) const MOVE: &str = "SELECT pg_catalog.format('ALTER TABLE %s SET SCHEMA %I', c.oid::regclass, $SCHEMA) AS statement \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname <> $SCHEMA \
     WHERE c.oid = ANY ($SELECTED) AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
     AND d.objid = c.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')))";

/// Moves their extended statistics, which do not follow.
pub(super) const MOVE_STATISTICS: &str = "SELECT pg_catalog.format('ALTER STATISTICS %I.%I SET SCHEMA %I', n.nspname, s.stxname, \
     $SCHEMA) AS statement FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace \
     WHERE s.stxrelid = ANY ($SELECTED) AND n.nspname <> $SCHEMA";

/// The schemas of what was selected.
pub(super) const SCHEMAS: &str = "SELECT n.nspname AS name FROM pg_catalog.pg_namespace n WHERE n.oid = ANY ($NAMESPACES) \
     OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.oid = ANY ($SELECTED)) ORDER BY 1";

/// A schema that `initdb` made has rights that pg_dump takes for granted.
pub(super) const FORGET_INITIAL_RIGHTS: &str = "DELETE FROM pg_catalog.pg_init_privs \
     WHERE classoid = 'pg_catalog.pg_namespace'::regclass \
     AND objoid = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $SCHEMA)";

/// An extension that must not be moved may be moved to the name that it had.
pub(super) const MAKE_RELOCATABLE: &str = "UPDATE pg_catalog.pg_extension SET extrelocatable = true \
     WHERE extnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $SCHEMA)";

/// Moves extensions back.
pub(super) const EXTENSIONS_BACK: &str = "SELECT pg_catalog.format('ALTER EXTENSION %I SET SCHEMA %s', extname, $OLD) AS statement \
     FROM pg_catalog.pg_extension WHERE extnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $SCHEMA)";

/// Moves what was not selected back.
pub(super) const OTHERS_BACK: &str = "SELECT pg_catalog.format('ALTER TABLE %s SET SCHEMA %s', c.oid::regclass, $OLD) AS statement \
     FROM pg_catalog.pg_class c WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $SCHEMA) \
     AND c.oid <> ALL ($SELECTED) AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND c.relpersistence <> 't' \
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
     AND (d.deptype = 'e' OR c.relkind = 'S' AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')))";

/// Moves their extended statistics back.
pub(super) const STATISTICS_BACK: &str = "SELECT pg_catalog.format('ALTER STATISTICS %I.%I SET SCHEMA %s', n.nspname, s.stxname, $OLD) \
     AS statement FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace \
     WHERE n.nspname = $SCHEMA AND s.stxrelid <> ALL ($SELECTED)";

/// Lets the owners of what is in the new schema use it, as the owner of the old one could.
pub(super) const LET_OWNERS_IN: &str = "SELECT pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', $SCHEMA, r.rolname) AS statement \
     FROM pg_catalog.pg_roles r WHERE r.oid IN (SELECT c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
     ON n.oid = c.relnamespace WHERE n.nspname = $SCHEMA AND c.relowner <> n.nspowner)";
