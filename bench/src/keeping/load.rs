//! What happens to a cluster between two backups.

use super::server::EndedServer;
use crate::data::{self, Size};

/// Tables with many blocks, by database.
const TABLES: [(&str, &str, &str); 4] = [
    ("small", "pgbench_accounts", "abalance = abalance + 1"),
    ("large", "pgbench_accounts", "abalance = abalance + 1"),
    ("application", "account", "profile = jsonb_set(profile, '{seen}', to_jsonb(random()))"),
    ("application", "event", "kind = reverse(kind)"),
];

/// Updates a row in this share of the blocks of every large table, each block as likely as the others. Indexes change with
/// it where PostgreSQL changes them.
pub fn uniform(server: &EndedServer, share: f64) {
    for (database, table, change) in TABLES {
        server.cluster().psql_in(
            database,
            &format!(
                "update {table} set {change} where ctid = any (array(
                   select format('(%s,%s)', block, 1 + floor(random() * 20))::tid
                   from generate_series(0, pg_relation_size('{table}') / 8192 - 1) block where random() < {share}))"
            ),
        );
    }
}

/// How long a partition stays, in days.
const PARTITIONS: u32 = 7;
/// How often a table is written anew, in days.
const REWRITE: u32 = 5;

/// Makes what [`day`] needs beside the data set's tables.
pub fn prepare_days(server: &EndedServer) {
    server.cluster().psql_in(
        "application",
        "create table reading (day int not null, sensor uuid not null default gen_random_uuid(), value float8 not null,
           note jsonb not null) partition by list (day)",
    );
}

/// A day of an application and of pgbench: random accounts change; people come, things happen, a file is loaded, profiles
/// change, old things go; the day has a partition of its own and the oldest one is dropped; now and then a table is written
/// anew by `VACUUM FULL`, and the others are vacuumed.
pub fn day(server: &EndedServer, n: u32, size: Size) {
    let cluster = server.cluster();
    for (database, transactions) in [("small", size.rows), ("large", size.rows * 4)] {
        let each = (transactions / 4).to_string();
        data::pgbench(cluster, database, &["-n", "-c", "4", "-j", "2", "-t", &each]);
    }
    // Batches of the data set's own load have small numbers.
    cluster.psql_in("application", &data::application_load(1_000_000 + n, size.rows));
    let (gone, rows) = (n.saturating_sub(PARTITIONS), size.rows * 50);
    cluster.psql_in(
        "application",
        &format!(
            "create table reading_{n} partition of reading for values in ({n});
             insert into reading (day, value, note) select {n}, random() * 100, jsonb_build_object('unit', 'K', 'line', i)
               from generate_series(1, {rows}) i;
             create index on reading_{n} (sensor); drop table if exists reading_{gone};"
        ),
    );
    cluster.psql_in(
        "application",
        if n.is_multiple_of(REWRITE) { "vacuum full account" } else { "vacuum account, event" },
    );
}
