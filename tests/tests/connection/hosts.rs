//! Several hosts, sockets of all kinds, servers that do not answer.

use std::time::{Duration, Instant};

use walpoint_pg::connect::{Connection, Error};
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::ports::PortLease;

use crate::{connect, settings};

/// The data directory of the server that a connection string leads to.
async fn reached(text: &str) -> Result<String, Error> {
    let mut connection = connect(text).await?;
    let rows = connection.query("select pg_catalog.current_setting('data_directory') as value").await?;
    Ok(rows.one().unwrap().get("value").unwrap())
}

#[tokio::test]
async fn the_first_host_of_the_kind_wanted_is_used() {
    for major in [13, 17] {
        let primary = Cluster::builder().major(major).start();
        let standby = primary.streaming_standby();
        let nowhere = primary.dir().join("nowhere");
        let hosts =
            [nowhere.as_path(), standby.socket_dir(), primary.socket_dir()].map(|p| p.display().to_string());
        let base = format!("host={} port=5432 user=postgres dbname=postgres", hosts.join(","));
        for (target, cluster) in [
            ("any", &standby),
            ("read-write", &primary),
            ("read-only", &standby),
            ("primary", &primary),
            ("standby", &standby),
            ("prefer-standby", &standby),
        ] {
            let place = reached(&format!("{base} target_session_attrs={target}")).await.unwrap();
            assert_eq!(place, cluster.pgdata().display().to_string(), "{major} {target}");
        }
        let only = |cluster: &Cluster, target: &str| {
            format!(
                "host={},{} user=postgres dbname=postgres target_session_attrs={target}",
                hosts[0],
                cluster.socket_dir().display()
            )
        };
        let place = reached(&only(&primary, "prefer-standby")).await.unwrap();
        assert_eq!(place, primary.pgdata().display().to_string());
        let error = reached(&only(&standby, "primary")).await.unwrap_err().to_string();
        assert!(error.contains(&hosts[0]) && error.contains(&hosts[1]), "both are named: {error}");
        assert!(error.contains("a standby, not a primary"), "{error}");
        // A walsender without SQL can tell too.
        let info = settings(&format!("{base} target_session_attrs=primary replication=true"));
        Connection::open(&info).await.unwrap().close().await;
    }
}

#[tokio::test]
async fn sockets_in_the_abstract_namespace() {
    let mut cluster = Cluster::builder().init();
    let name = format!("@wp{}", std::process::id());
    // The command line that the harness gives wins over the configuration, so the server is started by hand.
    cluster.set("listen_addresses", "");
    cluster.set("unix_socket_directories", &name);
    let mut command = cluster.tool("postgres");
    command.arg("-D").arg(cluster.pgdata());
    let mut server = command.spawn().unwrap();
    let text = format!("host={name} user=postgres dbname=postgres");
    let start = Instant::now();
    let place = loop {
        match reached(&text).await {
            Ok(place) => break place,
            Err(error) => {
                assert!(error.is_transient() && start.elapsed() < Duration::from_secs(30), "{error}")
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(place, cluster.pgdata().display().to_string());
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    server.wait().unwrap();
    let error = reached(&text).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains(&name), "{error}");
    cluster.start();
    cluster.stop(Shutdown::Fast);
}

#[tokio::test]
async fn a_host_that_does_not_answer_costs_its_timeout_and_no_more() {
    let cluster = Cluster::builder().tcp().start();
    // Listens and never accepts: the kernel completes the handshake, nobody speaks.
    let (lease, free) = (PortLease::new(), PortLease::new());
    let _silent = std::net::TcpListener::bind(("127.0.0.1", lease.port())).unwrap();
    let ports = format!("{},{},{}", free.port(), lease.port(), cluster.port());
    let base = "host=localhost,127.0.0.1,127.0.0.1 user=postgres dbname=postgres connect_timeout=2";
    let start = Instant::now();
    assert_eq!(
        reached(&format!("{base} port={ports}")).await.unwrap(),
        cluster.pgdata().display().to_string()
    );
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(15), "{took:?}");
    let text = format!(
        "host=localhost,127.0.0.1 port={},{} user=postgres connect_timeout=2",
        free.port(),
        lease.port()
    );
    let error = connect(&text).await.unwrap_err();
    assert!(error.is_transient());
    let error = error.to_string();
    for part in ["localhost (", "refused", "connect_timeout", &format!("127.0.0.1:{}", lease.port())] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn what_is_no_postgresql_is_recognised() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (answer, part) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not the answer of a PostgreSQL server"),
        (&b"E\x7f\xff\xff\xff"[..], "not the answer of a PostgreSQL server"),
        (&b"R\0\0\0\x08\0\0\0\x63"[..], "not the answer of a PostgreSQL server"),
        (&b"Z\0\0\0\x05I"[..], "not the answer of a PostgreSQL server"),
        (&b""[..], "closed the connection"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _n = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let error = connect(&format!("host=127.0.0.1 port={port} user=x sslmode=disable")).await.unwrap_err();
        assert!(error.to_string().contains(part), "{answer:?}: {error}");
        serve.await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_goes_away_is_worth_another_try() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (mode, tries) in [("require", 1), ("prefer", 2)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = tokio::spawn(async move {
            for n in 0..tries {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 8];
                let _n = stream.read_exact(&mut request).await.unwrap();
                if n == 0 {
                    stream.write_all(b"S").await.unwrap();
                    let _n = stream.read(&mut [0; 1024]).await.unwrap();
                }
            }
        });
        let text = format!("host=127.0.0.1 port={port} user=x sslmode={mode}");
        let error = connect(&text).await.unwrap_err();
        assert!(error.is_transient(), "{mode}: {error}");
        serve.await.unwrap();
    }
}
