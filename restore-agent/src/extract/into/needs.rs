//! What the server must have for what is loaded: roles, tablespaces, extensions, and other objects, such as a type in another schema. It is
//! read from the scratch instance once everything was moved, and looked for on the server before the load begins.

use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::{Connection, Error, Row, RowError, Rows};

use super::super::names::listed;
use super::super::sql::{identifier, list, literal};
use super::moving::is_stand_in;
use super::options::PassedOn;
use super::target::{TargetFacts, TargetServer};

/// Objects in a schema and their parts: what belongs to them is dumped with them, but for what makes them members of publications. By name,
/// because versions before 15 lack one of these catalogs.
const PARTS: &str = "WITH RECURSIVE member_catalog AS (SELECT c.oid FROM pg_catalog.pg_class c \
     WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname IN ('pg_publication_rel', 'pg_publication_namespace')), \
     part(classid, objid) AS (SELECT d.classid, d.objid FROM pg_catalog.pg_depend d \
     WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = $NAMESPACE \
     AND d.classid NOT IN (SELECT oid FROM member_catalog) \
     UNION SELECT d.classid, d.objid FROM pg_catalog.pg_depend d \
     JOIN part p ON p.classid = d.refclassid AND p.objid = d.refobjid WHERE d.deptype IN ('a', 'i') \
     AND d.classid NOT IN (SELECT oid FROM member_catalog) \
     AND NOT (d.classid = 'pg_catalog.pg_class'::regclass \
     AND (SELECT c.relnamespace FROM pg_catalog.pg_class c WHERE c.oid = d.objid) <> $NAMESPACE)) ";

/// Other objects on which they depend, with the query that finds each elsewhere. The system's own are everywhere.
const OBJECTS: &str = "SELECT i.type || ' ' || i.identity AS name, pg_catalog.format('SELECT pg_catalog.pg_get_object_address(%L, \
     %L::text[], %L::text[]) IS NOT NULL AS found', a.type, a.object_names, a.object_args) AS probe, \
     (SELECT e.extname FROM pg_catalog.pg_depend m JOIN pg_catalog.pg_extension e ON e.oid = m.refobjid \
     WHERE m.classid = r.classid AND m.objid = r.objid AND m.refclassid = 'pg_catalog.pg_extension'::regclass \
     AND m.deptype = 'e') AS extension, \
     (SELECT n.nspname FROM pg_catalog.pg_depend m JOIN pg_catalog.pg_extension e ON e.oid = m.refobjid \
     JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
     WHERE m.classid = r.classid AND m.objid = r.objid AND m.refclassid = 'pg_catalog.pg_extension'::regclass \
     AND m.deptype = 'e') AS extension_schema \
     FROM (SELECT DISTINCT d.refclassid AS classid, d.refobjid AS objid FROM pg_catalog.pg_depend d \
     JOIN part p ON p.classid = d.classid AND p.objid = d.objid WHERE d.deptype <> 'e' AND d.refobjid >= 16384 \
     AND NOT (d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = $NAMESPACE) \
     AND NOT EXISTS (SELECT FROM part o WHERE o.classid = d.refclassid AND o.objid = d.refobjid)) r, \
     LATERAL pg_catalog.pg_identify_object(r.classid, r.objid, 0) i, \
     LATERAL pg_catalog.pg_identify_object_as_address(r.classid, r.objid, 0) a ORDER BY 1";

/// Roles that own them or are named in their rights and policies. The role that `initdb` made is in no list of dependencies.
const ROLES: &str = "SELECT r.rolname AS name, pg_catalog.bool_or(x.kind = 'o') AS owns, pg_catalog.bool_or(x.kind = 'r') AS in_policy, \
     pg_catalog.bool_or(x.kind = 'a') AS in_rights \
     FROM (SELECT s.refobjid AS role, CASE WHEN s.deptype = 'o' AND s.classid = 'pg_catalog.pg_default_acl'::regclass THEN 'a' \
     ELSE s.deptype::text END AS kind FROM pg_catalog.pg_shdepend s JOIN part p ON p.classid = s.classid AND p.objid = s.objid \
     WHERE s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.deptype IN ('o', 'a', 'r') \
     AND s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
     UNION ALL SELECT s.refobjid, s.deptype::text FROM pg_catalog.pg_shdepend s \
     WHERE s.classid = 'pg_catalog.pg_namespace'::regclass AND s.objid = $NAMESPACE AND s.deptype = 'a' \
     AND s.refclassid = 'pg_catalog.pg_authid'::regclass \
     AND s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
     UNION ALL SELECT 10, 'o' WHERE EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = $NAMESPACE AND relowner = 10) \
     OR EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = $NAMESPACE AND proowner = 10) \
     OR EXISTS (SELECT FROM pg_catalog.pg_type WHERE typnamespace = $NAMESPACE AND typowner = 10)) x \
     JOIN pg_catalog.pg_roles r ON r.oid = x.role GROUP BY 1 ORDER BY 1";

/// Tablespaces other than the database's.
const TABLESPACES: &str = "SELECT DISTINCT t.spcname AS name FROM pg_catalog.pg_class c \
     JOIN part p ON p.classid = 'pg_catalog.pg_class'::regclass AND p.objid = c.oid \
     JOIN pg_catalog.pg_tablespace t ON t.oid = c.reltablespace ORDER BY 1";

/// A role that is needed.
#[derive(Debug, Clone)]
struct Role {
    name: String,
    owns: bool,
    in_rights: bool,
    in_policy: bool,
}

/// An object that is needed.
#[derive(Debug, Clone)]
struct Object {
    /// Its kind and name.
    name: String,
    probe: String,
    /// The extension that it belongs to, and the schema of that.
    extension: Option<(String, String)>,
}

/// What is needed.
#[derive(Debug, Clone, Default)]
pub(super) struct Needs {
    roles: Vec<Role>,
    tablespaces: Vec<String>,
    objects: Vec<Object>,
}

/// What the server lacks, each with what to do.
#[derive(Debug, Default)]
struct Lacking {
    details: Vec<String>,
    hints: Vec<String>,
}

/// What the server has of the objects that are needed.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Those that it has and that belong to no extension.
    pub(super) names: Vec<String>,
    /// Those of which it does not say whether it has them, and why.
    pub(super) unknown: Vec<String>,
}

/// What the server says of an object.
#[derive(Debug, PartialEq, Eq)]
enum Probed {
    Found,
    Missing,
    /// It refuses the question.
    Unknown(String),
}

impl Needs {
    /// What a schema of the instance needs, as it is loaded with the options that are passed on.
    pub(super) async fn of_schema(
        connection: &mut Connection,
        schema: &str,
        passed_on: &PassedOn,
    ) -> anyhow::Result<Self> {
        let query = |query: &str| about(schema, query);
        let rows = connection.query(&query(ROLES)).await?;
        let mut needs = Self { roles: read(&rows, role)?, ..Self::default() };
        let (no_owner, no_rights) =
            (passed_on.has(&["no-owner"]), passed_on.has(&["no-privileges", "no-acl"]));
        for role in &mut needs.roles {
            role.owns &= !no_owner;
        }
        // What only rights name is not needed without them.
        needs.roles.retain(|role| role.owns || role.in_policy || role.in_rights && !no_rights);
        if !passed_on.has(&["no-tablespaces"]) {
            let rows = connection.query(&query(TABLESPACES)).await?;
            needs.tablespaces = read(&rows, |row| row.get("name"))?;
        }
        let rows = connection.query(&query(OBJECTS)).await?;
        needs.objects = read(&rows, object)?;
        Ok(needs)
    }

    /// Fails, naming everything, if the server lacks something without which the load of a schema would fail. The objects of the server's
    /// own that what is loaded will use.
    pub(super) async fn require(
        &self,
        schema: &str,
        (server, facts): (&TargetServer, &TargetFacts),
        connection: &mut Connection,
    ) -> anyhow::Result<Used> {
        let mut lacking = Lacking::default();
        self.look_for_roles(facts, connection, &mut lacking).await?;
        self.look_for_tablespaces(connection, &mut lacking).await?;
        let used = self.look_for_objects(schema, connection, &mut lacking).await?;
        if lacking.details.is_empty() {
            return Ok(used);
        }
        let refused = Diagnostic::new(format!(
            "--into: the server at {} lacks what the load needs: nothing was loaded",
            server.name()
        ));
        let refused = lacking.details.iter().fold(refused, Diagnostic::detail);
        Err(lacking.hints.iter().fold(refused, Diagnostic::hint).into())
    }

    async fn look_for_roles(
        &self,
        facts: &TargetFacts,
        connection: &mut Connection,
        lacking: &mut Lacking,
    ) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT rolname AS name FROM pg_catalog.pg_roles WHERE rolname IN ({})",
            list(self.roles.iter().map(|role| role.name.as_str()))
        );
        let there: Vec<String> = read(&connection.query(&sql).await?, |row| row.get("name"))?;
        let missing: Vec<&Role> = self.roles.iter().filter(|role| !there.contains(&role.name)).collect();
        let others = self.owners_other_than(&facts.role);
        let names: Vec<String> = missing.iter().map(|role| role.name.clone()).collect();
        if !names.is_empty() {
            let leave_out = match missing.iter().any(|role| role.in_policy) {
                true => "",
                false => ", or leave owners and rights out: -- --no-owner --no-privileges",
            };
            lacking
                .details
                .push(format!("Roles that own or may use it do not exist there: {}.", listed(&names)));
            let create = names.first().map(|name| shown(&identifier(name))).unwrap_or_default();
            lacking.hints.push(format!("Create the roles there, as in CREATE ROLE {create}{leave_out}."));
        }
        if !others.is_empty() && !facts.is_superuser {
            let role = shown(&facts.role);
            lacking.details.push(format!(
                "Role \"{role}\", which loads, is no superuser, and cannot make others the owners in its new schema: {}.",
                listed(&others)
            ));
            lacking.hints.push(format!(
                "Load everything as objects of \"{role}\": -- --no-owner. Or load as a superuser."
            ));
        }
        Ok(())
    }

    /// Roles other than that which loads, to which something belongs. Only a superuser can give it to them: else PostgreSQL demands that
    /// the new owner may create objects in the schema, and no role is granted that.
    fn owners_other_than(&self, loading: &str) -> Vec<String> {
        let owners = self.roles.iter().filter(|role| role.owns && role.name != loading);
        owners.map(|role| role.name.clone()).collect()
    }

    async fn look_for_tablespaces(
        &self,
        connection: &mut Connection,
        lacking: &mut Lacking,
    ) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT spcname AS name FROM pg_catalog.pg_tablespace WHERE spcname IN ({})",
            list(self.tablespaces.iter().map(String::as_str))
        );
        let there: Vec<String> = read(&connection.query(&sql).await?, |row| row.get("name"))?;
        let missing: Vec<String> =
            self.tablespaces.iter().filter(|name| !there.contains(name)).cloned().collect();
        if !missing.is_empty() {
            lacking.details.push(format!("Tablespaces do not exist there: {}.", listed(&missing)));
            lacking.hints.push(
                "Create the tablespaces there, or load into that of the database: -- --no-tablespaces."
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Looks for each object. `loaded`: the schema that is loaded.
    async fn look_for_objects(
        &self,
        loaded: &str,
        connection: &mut Connection,
        lacking: &mut Lacking,
    ) -> anyhow::Result<Used> {
        let (mut used, mut missing, mut extensions) = (Used::default(), Vec::new(), Vec::new());
        for object in &self.objects {
            match (probed(connection.query(&object.probe).await)?, &object.extension) {
                (Probed::Found, None) => used.names.push(object.name.clone()),
                (Probed::Found, Some(_)) => {}
                (Probed::Missing, None) => missing.push(object.name.clone()),
                (Probed::Missing, Some(extension)) if !extensions.contains(extension) => {
                    extensions.push(extension.clone());
                }
                (Probed::Missing, Some(_)) => {}
                (Probed::Unknown(why), _) => used.unknown.push(format!("{} ({why})", object.name)),
            }
        }
        for (extension, schema) in extensions {
            match is_stand_in(&schema) {
                true => lacking.add_in_loaded(&extension, loaded),
                false => lacking.add_extension(connection, &extension, &schema).await?,
            }
        }
        if !missing.is_empty() {
            lacking.details.push(format!("Objects that it uses do not exist there: {}.", listed(&missing)));
            lacking.hints.push(
                "Create them there under the same names, or extract the whole schema with --schema, which brings its own along."
                    .to_owned(),
            );
        }
        Ok(used)
    }
}

impl Lacking {
    /// An extension that lies in the schema of the backup whose name the load takes. No server can have it there before the load.
    fn add_in_loaded(&mut self, extension: &str, loaded: &str) {
        let (name, schema) = (shown(extension), shown(loaded));
        self.details.push(format!(
            "Extension \"{name}\" is in schema \"{schema}\" in the backup, and that name is the one of the schema that is loaded."
        ));
        self.hints.push(format!(
            "Choose another name with --into-schema, and have extension \"{name}\" in schema \"{schema}\" there."
        ));
    }

    /// An extension of which an object was not found.
    async fn add_extension(
        &mut self,
        connection: &mut Connection,
        extension: &str,
        schema: &str,
    ) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT (SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
             WHERE e.extname = {name}) AS schema, \
             EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = {name}) AS available",
            name = literal(extension)
        );
        let row = connection.query(&sql).await?.one()?;
        let (installed, available): (Option<String>, bool) = (row.nullable("schema")?, row.get("available")?);
        let (name, quoted) = (shown(extension), shown(&identifier(extension)));
        let (detail, hint) = match (installed, available) {
            (Some(there), _) if there != schema => (
                format!(
                    "Extension \"{name}\" is in schema \"{}\" there, and in \"{}\" in the backup.",
                    shown(&there),
                    shown(schema)
                ),
                format!(
                    "Load into another database, in which extension \"{name}\" is in schema \"{}\".",
                    shown(schema)
                ),
            ),
            (Some(_), _) => (
                format!("Extension \"{name}\" there lacks what it has in the backup."),
                format!("Update it there: ALTER EXTENSION {quoted} UPDATE."),
            ),
            (None, true) => (
                format!("Extension \"{name}\" is available there, and is not created in the database."),
                format!("Create it there: CREATE EXTENSION {quoted} SCHEMA {}.", shown(&identifier(schema))),
            ),
            (None, false) => (
                format!("Extension \"{name}\" is not available there."),
                format!(
                    "Install the package of extension \"{name}\" on that server, and create it in schema \"{}\".",
                    shown(schema)
                ),
            ),
        };
        self.details.push(detail);
        self.hints.push(hint);
        Ok(())
    }
}

/// A query about the parts of a schema.
pub(super) fn about(schema: &str, query: &str) -> String {
    let namespace = format!("(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = {})", literal(schema));
    format!("{PARTS}{query}").replace("$NAMESPACE", &namespace)
}

fn read<T>(rows: &Rows, one: impl Fn(&Row) -> Result<T, RowError>) -> anyhow::Result<Vec<T>> {
    let all: Result<Vec<T>, RowError> = rows.iter().map(one).collect();
    Ok(all?)
}

fn role(row: &Row) -> Result<Role, RowError> {
    Ok(Role {
        name: row.get("name")?,
        owns: row.get("owns")?,
        in_rights: row.get("in_rights")?,
        in_policy: row.get("in_policy")?,
    })
}

fn object(row: &Row) -> Result<Object, RowError> {
    let extension: Option<String> = row.nullable("extension")?;
    let schema: Option<String> = row.nullable("extension_schema")?;
    Ok(Object { name: row.get("name")?, probe: row.get("probe")?, extension: extension.zip(schema) })
}

/// What an answer to the question for an object says. An error: there is none.
fn probed(answer: Result<Rows, Error>) -> Result<Probed, Error> {
    match answer {
        Ok(_) => Ok(Probed::Found),
        Err(error) if is_missing(&error) => Ok(Probed::Missing),
        Err(Error::Server { report, .. }) => Ok(Probed::Unknown(report.message)),
        Err(error) => Err(error),
    }
}

/// Whether an object that was asked for does not exist: undefined object, table, column, function or schema.
fn is_missing(error: &Error) -> bool {
    error.sqlstate().is_some_and(|state| ["42704", "42P01", "42703", "42883", "3F000"].contains(&state))
}

#[cfg(test)]
mod tests {
    use walpoint_pg::connect::ServerReport;

    use super::*;

    #[test]
    fn only_what_belongs_to_the_role_that_loads_needs_no_superuser() {
        let role = |name: &str, owns| Role { name: name.to_owned(), owns, in_rights: true, in_policy: false };
        let roles = vec![role("app", true), role("loader", true), role("reader", false)];
        let needs = Needs { roles, ..Needs::default() };
        assert_eq!(needs.owners_other_than("loader"), ["app"]);
        assert_eq!(needs.owners_other_than("app"), ["loader"]);
    }

    #[test]
    fn an_object_is_taken_for_there_or_missing_only_where_the_server_says_so() {
        let refused = |sqlstate: &str| {
            let report = ServerReport {
                sqlstate: sqlstate.to_owned(),
                message: "it says why".to_owned(),
                ..ServerReport::default()
            };
            Err(Error::Server { host: "db1".to_owned(), report: Box::new(report) })
        };
        assert_eq!(probed(Ok(Rows::default())).unwrap(), Probed::Found);
        assert_eq!(probed(refused("42704")).unwrap(), Probed::Missing);
        assert_eq!(probed(refused("42809")).unwrap(), Probed::Unknown("it says why".to_owned()));
        let after = std::time::Duration::from_secs(60);
        probed(Err(Error::Timeout { host: "db1".to_owned(), after })).unwrap_err();
    }

    #[test]
    fn an_extension_in_the_schema_that_is_loaded_is_named_with_its_own_schema() {
        let mut lacking = Lacking::default();
        lacking.add_in_loaded("citext", "Old Sales");
        let text = [&lacking.details[..], &lacking.hints].concat().join(" ");
        assert!(
            text.contains("in schema \"Old Sales\" in the backup") && text.contains("--into-schema"),
            "{text}"
        );
        // Neither of the schemas that stand for it in the instance is of use to a person.
        assert!(is_stand_in("walpoint_not_extracted") && is_stand_in("walpoint_other_16384"));
        assert!(!is_stand_in("public"));
    }
}
