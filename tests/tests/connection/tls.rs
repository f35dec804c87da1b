//! The six sslmodes, certificates good and bad, and client certificates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::dir::TestDir;

use crate::Expected::{Plain, Refused, Tls};
use crate::certificates::{Authority, Pair, self_signed, set_mode};
use crate::{compare, libpq, ours};

/// `any` comes in with and without TLS, `tlsonly` and `plainonly` one way only, `certificate` by its client certificate.
const HBA: &str = "\
local all all trust
hostssl all certificate 127.0.0.1/32 cert
hostnossl all tlsonly 127.0.0.1/32 reject
hostssl all plainonly 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
";

fn start(dir: &Arc<TestDir>, ca: Option<&Authority>, server: &Pair, builder: ClusterBuilder) -> Cluster {
    let builder =
        builder.in_dir(dir).tcp().conf("ssl", "on").conf("ssl_cert_file", server.certificate.display());
    let mut builder = builder.conf("ssl_key_file", server.key.display());
    if let Some(ca) = ca {
        builder = builder.conf("ssl_ca_file", ca.certificate().display());
    }
    let mut cluster = builder.init();
    std::fs::write(cluster.pgdata().join("pg_hba.conf"), HBA).unwrap();
    cluster.start();
    cluster.psql("create role anyway login; create role tlsonly login; create role plainonly login; create role certificate login");
    cluster
}

#[tokio::test]
async fn each_sslmode_means_what_it_means_to_libpq() {
    let dir = Arc::new(TestDir::new());
    let (right, wrong) = (Authority::new(&dir, "right"), Authority::new(&dir, "wrong"));
    let pair =
        right.issue("server", "common.test", Some("subjectAltName=DNS:db.test,DNS:*.wild.test,IP:127.0.0.1"));
    let cluster = start(&dir, None, &pair, Cluster::builder());
    let base = format!("hostaddr=127.0.0.1 port={} dbname=postgres", cluster.port());
    let (right, wrong) =
        (right.certificate().display().to_string(), wrong.certificate().display().to_string());
    for (user, host, mode, root, expected) in [
        ("anyway", "db.test", "disable", "", Plain),
        ("tlsonly", "db.test", "disable", "", Refused("pg_hba.conf")),
        ("anyway", "db.test", "allow", "", Plain),
        ("tlsonly", "db.test", "allow", "", Tls),
        ("anyway", "db.test", "prefer", "", Tls),
        ("anyway", "other.test", "prefer", &right, Tls),
        ("anyway", "db.test", "prefer", &wrong, Plain),
        ("plainonly", "db.test", "prefer", "", Plain),
        ("plainonly", "db.test", "require", "", Refused("pg_hba.conf")),
        ("anyway", "other.test", "require", "", Tls),
        ("anyway", "other.test", "require", &right, Tls),
        ("anyway", "db.test", "require", &wrong, Refused("sslrootcert")),
        ("anyway", "other.test", "verify-ca", &right, Tls),
        ("anyway", "db.test", "verify-ca", &wrong, Refused("sslrootcert")),
        ("anyway", "db.test", "verify-full", &right, Tls),
        ("anyway", "a.wild.test", "verify-full", &right, Tls),
        ("anyway", "127.0.0.1", "verify-full", &right, Tls),
        ("anyway", "a.b.wild.test", "verify-full", &right, Refused("*.wild.test")),
        ("anyway", "other.test", "verify-full", &right, Refused("db.test")),
        ("anyway", "common.test", "verify-full", &right, Refused("not for \"common.test\"")),
        ("anyway", "db.test", "verify-full", &wrong, Refused("sslrootcert")),
    ] {
        let root = if root.is_empty() { String::new() } else { format!("sslrootcert={root}") };
        compare(&cluster, &format!("{base} user={user} host={host} sslmode={mode} {root}"), expected).await;
    }
    // Neither protocol version changes anything, and an answer is read whole over either.
    for version in ["TLSv1.2", "TLSv1.3"] {
        let only = format!("ssl_min_protocol_version={version} ssl_max_protocol_version={version}");
        let text = format!("{base} user=anyway host=db.test sslmode=verify-full sslrootcert={right} {only}");
        compare(&cluster, &text, Tls).await;
        let mut connection = crate::connect(&text).await.unwrap();
        let rows = connection.query("select repeat('x', 3000000) as x").await.unwrap();
        assert_eq!(rows.one().unwrap().get::<String>("x").unwrap().len(), 3_000_000);
        // Requests to cancel take the same way.
        let (start, short) = (Instant::now(), Duration::from_millis(50));
        assert!(
            tokio::time::timeout(short, connection.query("select pg_catalog.pg_sleep(60)")).await.is_err()
        );
        connection.query("select 1").await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    // TLS from the first byte, which 17 knows.
    let text = format!("{base} user=anyway host=db.test sslmode=require sslnegotiation=direct");
    compare(&cluster, &text, Tls).await;
}

#[tokio::test]
async fn verification_without_an_authority_or_a_name_is_refused_before_anything_is_sent() {
    for (text, part) in [
        ("host=localhost sslmode=verify-ca port=1", "sslrootcert"),
        ("host=localhost sslmode=verify-full port=1 sslrootcert=/nonexistent/root", "/nonexistent/root"),
        ("hostaddr=127.0.0.1 sslmode=verify-full port=1 sslrootcert=system", "host="),
    ] {
        let error = ours(text).await.unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[tokio::test]
async fn the_certificates_that_postgresqls_manual_makes_are_accepted() {
    let dir = Arc::new(TestDir::new());
    let (right, wrong) = (Authority::new(&dir, "right"), Authority::new(&dir, "wrong"));
    let version_1 = right.issue("server", "db.test", None);
    let cluster = start(&dir, None, &version_1, Cluster::builder().major(14));
    let base = format!("hostaddr=127.0.0.1 port={} dbname=postgres user=anyway", cluster.port());
    let (right, wrong) = (right.certificate(), wrong.certificate());
    for (host, mode, root, expected) in [
        ("db.test", "require", None, Tls),
        ("db.test", "verify-full", Some(&right), Tls),
        ("other.test", "verify-ca", Some(&right), Tls),
        ("other.test", "verify-full", Some(&right), Refused("CN=db.test")),
        ("db.test", "verify-ca", Some(&wrong), Refused("certificate")),
    ] {
        let root = root.map(|root| format!("sslrootcert={}", root.display())).unwrap_or_default();
        compare(&cluster, &format!("{base} host={host} sslmode={mode} {root}"), expected).await;
    }
    // One that signed itself, copied to the client.
    let own = self_signed(&dir, "own", "own.test");
    cluster.set("ssl_cert_file", own.certificate.display());
    cluster.set("ssl_key_file", own.key.display());
    cluster.reload();
    let trusted =
        format!("{base} host=own.test sslmode=verify-full sslrootcert={}", own.certificate.display());
    walpoint_tests::wait::until_true(walpoint_tests::wait::SOON, "the new certificate is in use", || {
        libpq(&cluster, &trusted) == Ok(true)
    });
    compare(&cluster, &trusted, Tls).await;
    let text = format!("{base} host=own.test sslmode=verify-full sslrootcert={}", right.display());
    compare(&cluster, &text, Refused("certificate")).await;
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let dir = Arc::new(TestDir::new());
    let authority = Authority::new(&dir, "authority");
    let (bad, good) = (
        authority.issue("bad", "x", Some("subjectAltName=DNS:db.test")),
        authority.issue("good", "x", Some("subjectAltName=DNS:db.test")),
    );
    let list = authority.revoke(&bad);
    for (pair, expected) in [(bad, Refused("revoked")), (good, Tls)] {
        let cluster = start(&dir, None, &pair, Cluster::builder());
        let root = authority.certificate();
        let text = format!(
            "hostaddr=127.0.0.1 host=db.test port={} dbname=postgres user=anyway sslmode=verify-full sslrootcert={} sslcrl={}",
            cluster.port(),
            root.display(),
            list.display()
        );
        compare(&cluster, &text, expected).await;
    }
}

#[tokio::test]
async fn a_client_certificate_lets_in_and_its_key_must_be_private() {
    let dir = Arc::new(TestDir::new());
    let (authority, wrong) = (Authority::new(&dir, "authority"), Authority::new(&dir, "wrong"));
    let server = authority.issue("server", "x", Some("subjectAltName=DNS:db.test"));
    let cluster = start(&dir, Some(&authority), &server, Cluster::builder());
    let good = authority.issue("client", "certificate", Some("extendedKeyUsage=clientAuth"));
    let other = authority.issue("somebody", "somebody", Some("extendedKeyUsage=clientAuth"));
    let foreign = wrong.issue("foreign", "certificate", Some("extendedKeyUsage=clientAuth"));
    let base =
        format!("hostaddr=127.0.0.1 host=db.test port={} dbname=postgres user=certificate", cluster.port());
    let with = |pair: &Pair| {
        format!("{base} sslmode=require sslcert={} sslkey={}", pair.certificate.display(), pair.key.display())
    };
    compare(&cluster, &with(&good), Tls).await;
    compare(&cluster, &with(&other), Refused("certificate authentication failed")).await;
    compare(&cluster, &with(&foreign), Refused("sslcert")).await;
    compare(
        &cluster,
        &format!("{base} sslmode=require sslcert=/nonexistent/c"),
        Refused("valid client certificate"),
    )
    .await;
    compare(&cluster, &format!("{} sslcertmode=disable", with(&good)), Refused("valid client certificate"))
        .await;
    set_mode(&good.key, 0o644);
    compare(&cluster, &with(&good), Refused("chmod 0600")).await;
}

#[tokio::test]
async fn a_server_without_tls_is_used_only_where_the_mode_allows_it() {
    let cluster = Cluster::builder().major(16).tcp().start();
    let base = format!("host=localhost port={} dbname=postgres user=postgres", cluster.port());
    for (mode, expected) in
        [("disable", Plain), ("allow", Plain), ("prefer", Plain), ("require", Refused("ssl = on"))]
    {
        compare(&cluster, &format!("{base} sslmode={mode}"), expected).await;
    }
    // Unix sockets never use TLS, whatever the mode.
    let text = format!("{} sslmode=require", cluster.conninfo());
    compare(&cluster, &text, Plain).await;
}
