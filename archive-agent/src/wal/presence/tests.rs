//! A repository behind a server that asks for the secret that counts at the moment, as Azure does.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use walpoint_base::{ClusterName, PgMajor, SegmentSize, SystemId, WalFileName, durable};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::{Stored, WalContent};
use walpoint_storage::object::Level;
use walpoint_storage::store::StoreSettings;

use super::*;
use crate::binding;

const SYSTEM: SystemId = SystemId(7400000000000000001);

/// A container whose objects are the files of a directory. Its threads end with the process.
struct Container {
    port: u16,
    secret: Arc<Mutex<String>>,
}

impl Container {
    fn over(directory: &Path, secret: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let secret = Arc::new(Mutex::new(secret.to_owned()));
        let (directory, counts) = (directory.to_owned(), Arc::clone(&secret));
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (connection, directory) = (connection.unwrap(), directory.clone());
                let counts = Arc::clone(&counts);
                // Some connections are opened ahead of time, and ask for nothing.
                thread::spawn(move || answer(&connection, &directory, &counts).ok());
            }
        });
        Self { port, secret }
    }

    fn renew(&self, secret: &str) {
        secret.clone_into(&mut self.secret.lock().unwrap());
    }
}

fn answer(mut connection: &TcpStream, directory: &Path, secret: &Mutex<String>) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse::<usize>().map_err(io::Error::other)?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut sent = vec![0; length];
    reader.read_exact(&mut sent)?;
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let file = directory.join(path.trim_start_matches("/container/"));
    let secret = format!("sig={}", secret.lock().unwrap());
    let (status, body) = match method {
        _ if !query.split('&').any(|pair| pair == secret) => ("403 Forbidden", Vec::new()),
        "GET" => match fs::read(&file) {
            Ok(bytes) => ("200 OK", bytes),
            Err(_) => ("404 Not Found", Vec::new()),
        },
        "PUT" => {
            fs::create_dir_all(file.parent().unwrap_or(directory))?;
            File::create_new(&file)?.write_all(&sent)?;
            ("201 Created", Vec::new())
        }
        _ => ("405 Method Not Allowed", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"1\"\r\nx-ms-request-id: 1\r\nLast-Modified: Wed, 25 Nov 2026 08:00:00 GMT\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes())?;
    connection.write_all(&body)
}

/// A registered cluster in a repository in `directory`, and a data directory that is bound to its lineage.
async fn register(directory: &Path, pgdata: &Path) -> (ClusterName, WalIdentity) {
    let settings = StoreSettings::at(directory.to_str().unwrap());
    let repository = Repository::init("main", &settings, None).await.unwrap().repository;
    let cluster: ClusterName = "main".parse().unwrap();
    let lineage = repository.create_lineage(&cluster, facts()).await.unwrap();
    binding::add(pgdata, &cluster, repository.id(), lineage.id).unwrap();
    let NewLineage { major, segment_size, .. } = facts();
    (cluster, WalIdentity { system_id: SYSTEM, major, segment_size })
}

fn facts() -> NewLineage {
    NewLineage {
        system_id: SYSTEM,
        major: PgMajor::new(17).unwrap(),
        segment_size: SegmentSize::DEFAULT,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    }
}

/// What was stored in the lineage that was left counts no more, also where the repository was opened again in between.
#[tokio::test]
async fn a_lineage_is_left_across_an_opening() {
    let (stored, pgdata) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (cluster, identity) = register(stored.path(), pgdata.path()).await;
    let settings = StoreSettings::at(stored.path().to_str().unwrap());
    let target = WalTarget::new("main", (&cluster, pgdata.path()), settings, Level::default(), true);
    let repository = target.archive(&identity).await.unwrap().repository().clone();
    let before = target.lineages_left();
    *target.opened.lock().await = None;
    target.archive(&identity).await.unwrap();
    assert_eq!(target.lineages_left(), before, "the same lineage");

    let other = repository.create_lineage_as(&cluster, facts(), None, 2).await.unwrap();
    *target.opened.lock().await = None;
    binding::add(pgdata.path(), &cluster, repository.id(), other.id).unwrap();
    assert_eq!(target.archive(&identity).await.unwrap().lineage().id, other.id);
    assert_ne!(target.lineages_left(), before);
}

/// A9: the secret of a bucket is renewed: the old one is refused, and the new one is read where it lies, without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn archiving_goes_on_with_a_secret_that_was_renewed_in_its_file() {
    let (stored, pgdata) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (cluster, identity) = register(stored.path(), pgdata.path()).await;
    let container = Container::over(stored.path(), "old");
    let secret = pgdata.path().join("sas token");
    durable::replace(&secret, b"sv=1&sig=old\n", 0o600).unwrap();
    let settings = serde_json::json!({
        "url": "az://container",
        "account": "account",
        "endpoint": format!("http://127.0.0.1:{}", container.port),
        "allow_http": true,
        "sas_token_file": secret,
    });
    let settings: StoreSettings = serde_json::from_value(settings).unwrap();
    let target = WalTarget::new("main", (&cluster, pgdata.path()), settings, Level::default(), true);
    let look = async || {
        target.presence.state().seen = None;
        target.is_still_there().await
    };
    let store = async |name: &str| {
        let archive = target.archive(&identity).await.unwrap();
        let name: WalFileName = name.parse().unwrap();
        let content = WalContent::from(b"1\t0/3000000\tno recovery target specified\n".to_vec());
        let storing = async {
            let stored = target.store_other(&archive, name, &content).await;
            stored.map_err(|error| UploadError { text: error_chain(&error), permanent: true })
        };
        during(&[&target], storing).await.unwrap()
    };
    assert_eq!(store("00000002.history").await, Stored::New);
    look().await.unwrap();

    container.renew("new");
    for _ in 0..2 {
        let refused = look().await.unwrap_err();
        assert!(matches!(&refused, TargetError::Repository(RepoError::Denied { .. })), "{refused}");
    }
    durable::replace(&secret, b"sv=1&sig=new\n", 0o600).unwrap();
    look().await.unwrap();
    assert_eq!(store("00000003.history").await, Stored::New);
    let lineage = target.archive(&identity).await.unwrap().lineage().id;
    let history = format!("clusters/main/{lineage}/history/00000003.history");
    assert!(stored.path().join(history).exists());
}
