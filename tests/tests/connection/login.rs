//! Passwords: methods, channel binding, password and service files.

use std::sync::Arc;

use walpoint_pg::connect::{ConnInfo, Connection, Environment};
use walpoint_tests::cluster::Cluster;
use walpoint_tests::dir::TestDir;

use crate::Expected::{Plain, Refused, Tls};
use crate::certificates::{Authority, set_mode};
use crate::{compare, ours};

const HBA: &str = "\
local all postgres trust
local all all scram-sha-256
host all scram 127.0.0.1/32 scram-sha-256
host all md5 127.0.0.1/32 md5
host all clear 127.0.0.1/32 password
host all trusted 127.0.0.1/32 trust
";

fn start() -> (Arc<TestDir>, Cluster) {
    let dir = Arc::new(TestDir::new());
    let pair = Authority::new(&dir, "authority").issue("server", "x", Some("subjectAltName=DNS:db.test"));
    let builder = Cluster::builder()
        .in_dir(&dir)
        .tcp()
        .conf("ssl", "on")
        .conf("ssl_cert_file", pair.certificate.display());
    let mut cluster = builder.conf("ssl_key_file", pair.key.display()).init();
    std::fs::write(cluster.pgdata().join("pg_hba.conf"), HBA).unwrap();
    cluster.start();
    cluster.psql("create role scram login password 'pässwörd'; create role clear login password 'clear'; create role trusted login");
    cluster.psql("set password_encryption = md5; create role md5 login password 'md5'");
    (dir, cluster)
}

#[tokio::test]
async fn each_method_and_channel_binding() {
    let (dir, cluster) = start();
    let base = format!("host=127.0.0.1 port={} dbname=postgres", cluster.port());
    for (settings, expected) in [
        ("user=scram password=pässwörd sslmode=disable", Plain),
        ("user=scram password=pässwörd sslmode=require", Tls),
        ("user=scram password=pässwörd sslmode=require channel_binding=require", Tls),
        ("user=scram password=pässwörd sslmode=require channel_binding=disable", Tls),
        ("user=scram password=pässwörd sslmode=disable channel_binding=require", Refused("needs TLS")),
        ("user=scram password=wrong sslmode=require", Refused("28P01")),
        ("user=scram password=wrong sslmode=require channel_binding=require", Refused("28P01")),
        ("user=scram sslmode=require", Refused("~/.pgpass")),
        ("user=md5 password=md5 sslmode=disable", Plain),
        ("user=md5 password=md5 sslmode=require", Tls),
        ("user=md5 password=wrong sslmode=require", Refused("28P01")),
        ("user=md5 password=md5 sslmode=require channel_binding=require", Refused("scram-sha-256")),
        ("user=clear password=clear sslmode=require", Tls),
        ("user=clear password=clear sslmode=require channel_binding=require", Refused("scram-sha-256")),
        ("user=clear password=wrong sslmode=require", Refused("28P01")),
        ("user=trusted sslmode=require", Tls),
        ("user=trusted sslmode=require channel_binding=require", Refused("without channel binding")),
        ("user=trusted sslmode=require require_auth=scram-sha-256", Refused("require_auth")),
        ("user=trusted sslmode=require require_auth=none", Tls),
        ("user=md5 password=md5 sslmode=require require_auth=scram-sha-256", Refused("require_auth")),
        ("user=clear password=clear sslmode=require require_auth=!password", Refused("require_auth")),
        ("user=scram password=pässwörd sslmode=require require_auth=scram-sha-256,md5", Tls),
        ("user=nobody sslmode=disable", Refused("pg_hba.conf")),
    ] {
        compare(&cluster, &format!("{base} {settings}"), expected).await;
    }
    // The password is in no error, wherever it was wrong.
    let error = ours(&format!("{base} user=scram password=geheim")).await.unwrap_err();
    assert!(error.contains("28P01") && error.contains("127.0.0.1") && !error.contains("geheim"), "{error}");
    drop(dir);
}

#[tokio::test]
async fn passwords_come_from_the_password_file_if_it_is_private() {
    let (dir, cluster) = start();
    let port = cluster.port();
    let file = dir.write(
        "pgpass",
        format!("# passwords\ndb.test:{port}:*:scram:wrong\n127.0.0.1:{port}:postgres:scram:pässwörd\n"),
    );
    set_mode(&file, 0o600);
    let base = format!("port={port} dbname=postgres user=scram passfile={}", file.display());
    compare(&cluster, &format!("{base} host=127.0.0.1"), Tls).await;
    compare(&cluster, &format!("{base} host=db.test hostaddr=127.0.0.1"), Refused("28P01")).await;
    compare(&cluster, &format!("{base} host=localhost"), Refused("none was found")).await;
    // What the file says is read anew for each connection.
    let info = crate::settings(&format!("{base} host=127.0.0.1"));
    Connection::open(&info).await.unwrap().close().await;
    dir.write("pgpass", "*:*:*:*:nonsense\n");
    let error = Connection::open(&info).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
    set_mode(&file, 0o640);
    compare(&cluster, &format!("{base} host=127.0.0.1"), Refused("chmod 600")).await;
    // A Unix socket in its own directory has the directory for a name.
    let sockets = cluster.socket_dir().display().to_string();
    dir.write("pgpass", format!("{sockets}:*:*:*:pässwörd\n"));
    set_mode(&file, 0o600);
    compare(&cluster, &format!("{base} host={sockets}"), Plain).await;
}

#[tokio::test]
async fn services_variables_and_uris_lead_to_the_same_place() {
    let (dir, cluster) = start();
    let port = cluster.port();
    let file =
        dir.write("services", format!("[db]\nhost=127.0.0.1\nport={port}\ndbname=postgres\nuser=trusted\n"));
    let environment = Environment::empty().with("PGSERVICEFILE", file.display().to_string());
    let variables = Environment::empty().with("PGHOST", "127.0.0.1").with("PGPORT", port.to_string());
    let variables =
        variables.with("PGDATABASE", "postgres").with("PGUSER", "scram").with("PGPASSWORD", "pässwörd");
    for (text, environment, user) in [
        ("service=db".to_owned(), &environment, "trusted"),
        ("service=db user=scram password=pässwörd".to_owned(), &environment, "scram"),
        (String::new(), &variables, "scram"),
        (
            format!("postgresql://scram:p%C3%A4ssw%C3%B6rd@127.0.0.1:{port}/postgres?sslmode=require"),
            &environment,
            "scram",
        ),
        (
            format!("postgres://trusted@/postgres?host=127.0.0.1&port={port}&application_name=me"),
            &environment,
            "trusted",
        ),
    ] {
        let info = ConnInfo::parse_in(&text, environment).unwrap();
        let mut connection = Connection::open(&info).await.unwrap_or_else(|e| panic!("{text}: {e}"));
        let sql = "select session_user as name, pg_catalog.current_setting('application_name') as app";
        let row = connection.query(sql).await.unwrap().one().unwrap();
        assert_eq!(row.get::<String>("name").unwrap(), user, "{text}");
        let app = if text.contains("application_name") { "me" } else { "walpoint" };
        assert_eq!(row.get::<String>("app").unwrap(), app, "{text}");
    }
}
