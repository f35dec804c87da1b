//! Opening a connection: hosts, their addresses, with and without TLS, startup, and the kind of session wanted.
//!
//! As libpq: the next host is tried when one cannot be reached, is still starting, or is of the wrong kind
//! (`target_session_attrs`); a server that refuses the login ends the search.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walpoint_base::Secret;

use super::auth::{self, Login};
use super::cancel::Cancel;
use super::connection::{Connection, Established};
use super::error::{ConnectAttempt, ConnectAttempts, ConnectFailure, Error};
use super::report::ServerReport;
use super::settings::passfile::{self, Lookup, Wanted};
use super::settings::{ConnInfo, Host, Replication, ServerAddress, SessionTarget, SettingsError, SslMode};
use super::socket::{Address, Socket};
use super::tls::Tls;
use super::wire::{Incoming, Wire};

/// How one try treats TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encryption {
    Never,
    /// Ask; go on without if the server has none.
    IfOffered,
    Always,
}

/// A failed try, and whether libpq would try the same address with the other kind of encryption.
struct Setback {
    failure: ConnectFailure,
    other_encryption: bool,
}

impl From<ConnectFailure> for Setback {
    fn from(failure: ConnectFailure) -> Self {
        Self { failure, other_encryption: false }
    }
}

/// What is read from files for one host before the first try.
struct Prepared {
    password: Option<Secret>,
    passfile_problem: Option<String>,
    tls: Option<Tls>,
}

/// Opens a connection as `info` says.
pub(super) async fn open(info: &ConnInfo) -> Result<Connection, Error> {
    let mut attempts = Vec::new();
    let passes: &[SessionTarget] = match info.target {
        SessionTarget::PreferStandby => &[SessionTarget::Standby, SessionTarget::Any],
        ref other => std::slice::from_ref(other),
    };
    for target in passes {
        for host in shuffled(info.hosts.clone(), info.shuffle) {
            if let Some(connection) = try_host(info, &host, *target, &mut attempts).await? {
                return Ok(connection);
            }
            let ended = attempts.last().is_some_and(|a: &ConnectAttempt| !a.failure.next_host_may_do());
            if ended {
                return Err(Error::Connect { attempts: ConnectAttempts(attempts) });
            }
        }
    }
    Err(Error::Connect { attempts: ConnectAttempts(attempts) })
}

/// Tries the addresses of a host until one gives a session or ends the search; failures are added to `attempts`.
async fn try_host(
    info: &ConnInfo,
    host: &Host,
    target: SessionTarget,
    attempts: &mut Vec<ConnectAttempt>,
) -> Result<Option<Connection>, Error> {
    let prepared = prepare(info, host).await?;
    let addresses = match limited(info.connect_timeout, addresses(host)).await {
        Ok(addresses) => addresses,
        Err(failure) => {
            attempts.push(ConnectAttempt { host: host.to_string(), failure });
            return Ok(None);
        }
    };
    for address in shuffled(addresses, info.shuffle) {
        let shown = match (&host.place, &address) {
            (ServerAddress::Network { name, address: None }, Address::Network(address))
                if *name != address.ip().to_string() =>
            {
                format!("{name} ({}):{}", address.ip(), host.port)
            }
            _ => host.to_string(),
        };
        for encryption in encryptions(info.tls.mode, &address) {
            let attempt = try_address(info, (host, &shown), &address, *encryption, target, &prepared);
            match limited(info.connect_timeout, attempt).await {
                Ok(connection) => return Ok(Some(connection)),
                Err(Setback { failure, other_encryption }) => {
                    attempts.push(ConnectAttempt { host: shown.clone(), failure });
                    if !other_encryption {
                        break;
                    }
                }
            }
        }
        if attempts.last().is_some_and(|attempt| !attempt.failure.next_host_may_do()) {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Which kinds of encryption to try, in order. Unix sockets never use TLS.
fn encryptions(mode: SslMode, address: &Address) -> &'static [Encryption] {
    match (address, mode) {
        (Address::Path(_), _) | (_, SslMode::Disable) => &[Encryption::Never],
        (_, SslMode::Allow) => &[Encryption::Never, Encryption::Always],
        (_, SslMode::Prefer) => &[Encryption::IfOffered, Encryption::Never],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Encryption::Always],
    }
}

/// Reads password and certificates, on a thread that may block.
async fn prepare(info: &ConnInfo, host: &Host) -> Result<Prepared, Error> {
    let (info, host) = (info.clone(), host.clone());
    let read = move || -> Result<Prepared, SettingsError> {
        let (mut password, mut passfile_problem) = (info.password.clone(), None);
        if let (None, Some(path)) = (&password, &info.passfile) {
            let name = host.passfile_name();
            let wanted = Wanted { host: &name, port: host.port, database: &info.database, user: &info.user };
            match passfile::look_up(path, &wanted) {
                Lookup::Found(secret) => password = Some(secret),
                Lookup::Absent => {}
                Lookup::Refused(why) => {
                    tracing::warn!("{why}");
                    passfile_problem = Some(why);
                }
            }
        }
        let tls = match &host.place {
            ServerAddress::Network { name, .. } if info.tls.mode != SslMode::Disable => {
                Some(Tls::prepare(&info.tls, name)?)
            }
            _ => None,
        };
        Ok(Prepared { password, passfile_problem, tls })
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(prepared) => Ok(prepared?),
        Err(_) => Err(Error::Settings(SettingsError::Syntax {
            what: "reading the files they name was aborted".into(),
        })),
    }
}

async fn addresses(host: &Host) -> Result<Vec<Address>, ConnectFailure> {
    match (&host.place, host.socket()) {
        (_, Some(path)) => Ok(vec![Address::Path(path)]),
        (ServerAddress::Network { address: Some(address), .. }, None) => {
            Ok(vec![Address::Network(SocketAddr::new(*address, host.port))])
        }
        (ServerAddress::Network { name, .. }, None) => {
            let found =
                tokio::net::lookup_host((name.as_str(), host.port)).await.map_err(ConnectFailure::Resolve)?;
            let addresses: Vec<Address> = found.map(Address::Network).collect();
            let none = || ConnectFailure::Resolve(std::io::Error::other("the name has no address"));
            if addresses.is_empty() { Err(none()) } else { Ok(addresses) }
        }
        _ => Ok(Vec::new()),
    }
}

/// One try: a session of the kind wanted, or why not.
async fn try_address(
    info: &ConnInfo,
    (server, shown): (&Host, &str),
    address: &Address,
    encryption: Encryption,
    target: SessionTarget,
    prepared: &Prepared,
) -> Result<Connection, Setback> {
    let socket =
        Socket::open(address, &info.keepalive, info.peer.as_ref()).await.map_err(ConnectFailure::Network)?;
    let handshake = secure(socket, encryption, prepared.tls.as_ref()).await;
    let (socket, end_point) = handshake.map_err(|failure| {
        // Only `prefer` goes on without TLS, whatever was wrong with it.
        Setback { failure, other_encryption: encryption == Encryption::IfOffered }
    })?;
    let encrypted = matches!(socket, Socket::Tls(_));
    let mut wire = Wire::new(socket);
    let login = Login {
        user: &info.user,
        password: prepared.password.as_ref(),
        passfile_problem: prepared.passfile_problem.as_deref(),
        channel_binding: info.channel_binding,
        methods: &info.methods,
        encrypted,
        end_point: end_point.as_deref(),
    };
    start(&mut wire, info)?;
    wire.flush().await.map_err(auth::failure)?;
    auth::authenticate(&mut wire, &login).await.map_err(|failure| {
        let refused = matches!(failure, ConnectFailure::Server(_) | ConnectFailure::Tls(_));
        let other = match encryption {
            Encryption::Never => true,
            Encryption::IfOffered => encrypted,
            Encryption::Always => false,
        };
        Setback { other_encryption: refused && other, failure }
    })?;
    wire.logged_in();
    let mut established = Established {
        host: shown.to_owned(),
        server: reached(server, address),
        user: info.user.clone(),
        database: info.database.clone(),
        replication: info.replication,
        encrypted,
        parameters: Default::default(),
        cancel: Cancel {
            address: address.clone(),
            keepalive: info.keepalive,
            tls: None,
            process_id: 0,
            secret_key: 0,
        },
    };
    if encrypted {
        established.cancel.tls.clone_from(&prepared.tls);
    }
    settle(&mut wire, &mut established).await?;
    let mut connection = Connection::new(wire, established);
    match connection.check_target(target).await {
        Ok(()) => Ok(connection),
        Err(failure) => {
            connection.close().await;
            Err(failure.into())
        }
    }
}

/// A host with the address, or the directory of the socket, at which it was reached.
fn reached(host: &Host, address: &Address) -> Host {
    let place = match (&host.place, address) {
        // A settings' address has no scope, without which one of a link leads nowhere.
        (_, Address::Network(SocketAddr::V6(address))) if address.scope_id() != 0 => host.place.clone(),
        (ServerAddress::Network { name, .. }, Address::Network(address))
            if *name != address.ip().to_string() =>
        {
            ServerAddress::Network { name: name.clone(), address: Some(address.ip()) }
        }
        (ServerAddress::DefaultSocket, Address::Path(path)) => {
            let directory = path.parent().map(Path::to_owned);
            directory.map_or(ServerAddress::DefaultSocket, ServerAddress::Directory)
        }
        (place, _) => place.clone(),
    };
    Host { place, port: host.port }
}

/// Puts TLS around the socket if it is to be; gives the server certificate's hash too.
async fn secure(
    socket: Socket,
    encryption: Encryption,
    tls: Option<&Tls>,
) -> Result<(Socket, Option<Vec<u8>>), ConnectFailure> {
    let (tls, mut stream) = match (socket, tls) {
        (Socket::Tcp(stream), Some(tls)) if encryption != Encryption::Never => (tls, stream),
        (socket, _) if encryption == Encryption::Never => return Ok((socket, None)),
        _ => return Err(ConnectFailure::Tls("sslmode demands TLS, which is for TCP connections".into())),
    };
    if !tls.is_direct() {
        let mut request = bytes::BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(ConnectFailure::Network)?;
        // Exactly one byte: what a man in the middle appends in clear text must not be taken as coming from TLS.
        match stream.read_u8().await.map_err(ConnectFailure::Network)? {
            b'S' => {}
            b'N' if encryption == Encryption::IfOffered => return Ok((Socket::Tcp(stream), None)),
            b'N' => {
                let what = "the server does not offer TLS, which sslmode demands\nHINT: Set ssl = on there.";
                return Err(ConnectFailure::Tls(what.to_owned()));
            }
            other => {
                return Err(ConnectFailure::Protocol(format!(
                    "{:?} to a request for TLS",
                    char::from(other)
                )));
            }
        }
    }
    let secured = tls.secure(stream).await?;
    Ok((Socket::Tls(Box::new(secured.stream)), secured.end_point))
}

/// Queues the startup message.
fn start(wire: &mut Wire, info: &ConnInfo) -> Result<(), ConnectFailure> {
    let mut parameters = vec![
        ("user", info.user.as_str()),
        ("database", info.database.as_str()),
        ("application_name", info.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    match info.replication {
        Replication::Off => {}
        Replication::Physical => parameters.push(("replication", "true")),
        Replication::Database => parameters.push(("replication", "database")),
    }
    parameters.extend(info.options.as_deref().map(|options| ("options", options)));
    frontend::startup_message(parameters, &mut wire.outgoing)
        .map_err(|e| ConnectFailure::Authentication(format!("the connection settings cannot be sent: {e}")))
}

/// Reads what the server tells between AuthenticationOk and its being ready.
async fn settle(wire: &mut Wire, established: &mut Established) -> Result<(), ConnectFailure> {
    loop {
        let Incoming::Message(message) = wire.receive().await.map_err(auth::failure)? else {
            return Err(ConnectFailure::Protocol("CopyBothResponse before the session began".into()));
        };
        match message {
            Message::BackendKeyData(body) => {
                established.cancel.process_id = body.process_id();
                established.cancel.secret_key = body.secret_key();
            }
            Message::ParameterStatus(body) => {
                if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                    established.parameters.insert(name.to_owned(), value.to_owned());
                }
            }
            Message::ErrorResponse(body) => {
                return Err(ConnectFailure::Server(Box::new(
                    ServerReport::read(body.fields()).map_err(ConnectFailure::Protocol)?,
                )));
            }
            Message::NoticeResponse(_) => {}
            Message::ReadyForQuery(_) => return Ok(()),
            _ => {
                return Err(ConnectFailure::Protocol(
                    "an unexpected message before the session began".into(),
                ));
            }
        }
    }
}

/// Waits no longer than `limit`.
async fn limited<T, E: From<ConnectFailure>>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match limit {
        None => work.await,
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(ConnectFailure::Timeout(limit).into()),
        },
    }
}

/// In another order each time if wanted (`load_balance_hosts=random`).
fn shuffled<T>(mut items: Vec<T>, wanted: bool) -> Vec<T> {
    if wanted {
        let random = RandomState::new();
        let mut keyed: Vec<(u64, T)> =
            items.drain(..).enumerate().map(|(n, item)| (random.hash_one(n), item)).collect();
        keyed.sort_by_key(|(key, _)| *key);
        return keyed.into_iter().map(|(_, item)| item).collect();
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_the_address_at_which_it_was_reached() {
        let named = |name: &str, address: Option<&str>| Host {
            place: ServerAddress::Network {
                name: name.to_owned(),
                address: address.map(|address| address.parse().unwrap()),
            },
            port: 5433,
        };
        let network = |text: &str| Address::Network(text.parse().unwrap());
        for (host, address, expected) in [
            (named("db1", None), network("10.0.0.1:5433"), named("db1", Some("10.0.0.1"))),
            (named("db1", Some("10.0.0.1")), network("10.0.0.1:5433"), named("db1", Some("10.0.0.1"))),
            (named("10.0.0.1", None), network("10.0.0.1:5433"), named("10.0.0.1", None)),
            (named("db1", None), network("[fe80::1%2]:5433"), named("db1", None)),
        ] {
            assert_eq!(reached(&host, &address), expected);
        }
        let socket = Host { place: ServerAddress::DefaultSocket, port: 5433 };
        let reached = reached(&socket, &Address::Path("/run/postgresql/.s.PGSQL.5433".into()));
        assert_eq!(reached.place, ServerAddress::Directory("/run/postgresql".into()));
    }
}
