//! A TCP proxy that misbehaves on demand: slow, cut, silent, refusing. Set at run time from the test.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::ports::PortLease;

/// What goes wrong. Counts are per connection and per direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Each piece that the server sends arrives this much later.
    Latency(Duration),
    /// At most this many bytes a second, each direction.
    Bandwidth(u64),
    /// Nobody listens: "connection refused". Open connections are reset.
    Refuse,
    /// Connections stay open, and no byte passes in either direction.
    Blackhole,
    /// Reset after so many bytes of the answer. 0: the request was done and its answer is lost.
    ResetAnswerAfter(u64),
    /// Reset after so many bytes of the request.
    ResetRequestAfter(u64),
    /// Closed in an orderly way after so many bytes of the answer: a truncated body.
    TruncateAnswerAfter(u64),
    /// After so many bytes of the answer no more come and the server's side is closed; ours is still read.
    HalfCloseAfter(u64),
    /// After so many bytes of the answer no more come, and nothing is closed.
    StallAnswerAfter(u64),
}

/// A listener on 127.0.0.1 that forwards to another port there. Dropping it resets what is open.
#[derive(Debug)]
pub struct Proxy {
    lease: PortLease,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Each connection goes to the next one.
    targets: Vec<u16>,
    fault: Mutex<Fault>,
    open: Mutex<HashMap<u64, Arc<AtomicBool>>>,
    accepted: AtomicU64,
    stop: AtomicBool,
}

impl Proxy {
    /// Starts a proxy in front of a port of 127.0.0.1.
    pub fn to(target: u16) -> Proxy {
        Proxy::between(&[target])
    }

    /// Starts one that leads each new connection to the next of several ports, as a load balancer does.
    pub fn between(targets: &[u16]) -> Proxy {
        let lease = PortLease::new();
        let shared = Arc::new(Shared {
            targets: targets.to_vec(),
            fault: Mutex::new(Fault::None),
            open: Mutex::new(HashMap::new()),
            accepted: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let listener = listen(lease.port());
        let (port, owned) = (lease.port(), Arc::clone(&shared));
        std::thread::spawn(move || accept(port, listener, &owned));
        Proxy { lease, shared }
    }

    /// Where to connect to.
    pub fn port(&self) -> u16 {
        self.lease.port()
    }

    /// Sets what goes wrong from now on, for open connections too.
    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().expect("lock") = fault;
        if fault == Fault::Refuse {
            self.cut();
            // The accepting thread closes its listener within a moment.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nothing goes wrong any more. Connections that were stalled in the middle stay so; new ones are well.
    pub fn heal(&self) {
        self.set(Fault::None);
        // As after Refuse, until the listener is back.
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Resets all open connections now.
    pub fn cut(&self) {
        for dead in self.shared.open.lock().expect("lock").values() {
            dead.store(true, Ordering::Relaxed);
        }
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.cut();
    }
}

impl Shared {
    fn fault(&self) -> Fault {
        *self.fault.lock().expect("lock")
    }
}

fn listen(port: u16) -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("listen on a leased port");
    listener.set_nonblocking(true).expect("nonblocking");
    listener
}

fn accept(port: u16, listener: TcpListener, shared: &Arc<Shared>) {
    let mut listener = Some(listener);
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.fault() == Fault::Refuse {
            listener = None;
        } else if let Ok((client, _)) = listener.get_or_insert_with(|| listen(port)).accept() {
            let id = shared.accepted.fetch_add(1, Ordering::Relaxed);
            client.set_nonblocking(false).expect("blocking");
            let dead = Arc::new(AtomicBool::new(false));
            shared.open.lock().expect("lock").insert(id, Arc::clone(&dead));
            let shared = Arc::clone(shared);
            std::thread::spawn(move || {
                let target = shared.targets[id as usize % shared.targets.len()];
                connection(&client, target, &shared, &dead);
                shared.open.lock().expect("lock").remove(&id);
            });
            continue;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Forwards both directions. A connection that is declared dead is reset: with a linger time of zero the kernel sends a
/// reset instead of an orderly end when its only handle goes, which is when this returns.
fn connection(client: &TcpStream, target: u16, shared: &Shared, dead: &AtomicBool) {
    if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) {
        for stream in [client, &server] {
            drop(stream.set_nodelay(true));
            drop(stream.set_read_timeout(Some(Duration::from_millis(20))));
        }
        std::thread::scope(|scope| {
            scope.spawn(|| pump(client, &server, shared, dead, Direction::Request));
            pump(&server, client, shared, dead, Direction::Answer);
        });
        if dead.load(Ordering::Relaxed) {
            let _ = rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO));
        }
    } else {
        dead.store(true, Ordering::Relaxed);
    }
    if dead.load(Ordering::Relaxed) {
        let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Answer,
}

/// What came just as the hole opened waits in it.
fn wait_in_hole(shared: &Shared, dead: &AtomicBool) {
    while shared.fault() == Fault::Blackhole
        && !dead.load(Ordering::Relaxed)
        && !shared.stop.load(Ordering::Relaxed)
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Forwards one direction until it ends or the connection is dead.
fn pump(from: &TcpStream, to: &TcpStream, shared: &Shared, dead: &AtomicBool, direction: Direction) {
    let (mut from, mut to) = (from, to);
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = 0u64;
    // Bytes are read and not forwarded any more.
    let mut swallow = false;
    while !shared.stop.load(Ordering::Relaxed) && !dead.load(Ordering::Relaxed) {
        if shared.fault() == Fault::Blackhole {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let size = match shared.fault() {
            // Tenths of a second, so that a limit is felt evenly.
            Fault::Bandwidth(rate) => usize::try_from(rate / 10).unwrap_or(usize::MAX).clamp(1, buffer.len()),
            _ => buffer.len(),
        };
        let n = match from.read(&mut buffer[..size]) {
            Ok(0) => {
                if !swallow {
                    drop(to.shutdown(Shutdown::Write));
                }
                return;
            }
            Ok(n) => n,
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            // Reset by one side: reset the other, so that neither waits for ever.
            Err(_) => return dead.store(true, Ordering::Relaxed),
        };
        if swallow {
            continue;
        }
        wait_in_hole(shared, dead);
        let fault = shared.fault();
        match (fault, direction) {
            (Fault::Latency(latency), Direction::Answer) => std::thread::sleep(latency),
            (Fault::Bandwidth(rate), _) => {
                std::thread::sleep(Duration::from_secs_f64(n as f64 / rate.max(1) as f64));
            }
            _ => {}
        }
        let allowed = match (fault, direction) {
            (Fault::ResetAnswerAfter(limit), Direction::Answer)
            | (Fault::TruncateAnswerAfter(limit), Direction::Answer)
            | (Fault::HalfCloseAfter(limit), Direction::Answer)
            | (Fault::StallAnswerAfter(limit), Direction::Answer)
            | (Fault::ResetRequestAfter(limit), Direction::Request) => limit.saturating_sub(passed),
            _ => u64::MAX,
        };
        let take = usize::try_from(allowed).unwrap_or(usize::MAX).min(n);
        if to.write_all(&buffer[..take]).is_err() {
            return dead.store(true, Ordering::Relaxed);
        }
        passed += take as u64;
        if take < n {
            match fault {
                Fault::TruncateAnswerAfter(_) => {
                    drop(to.shutdown(Shutdown::Both));
                    drop(from.shutdown(Shutdown::Both));
                    return;
                }
                Fault::HalfCloseAfter(_) => {
                    drop(to.shutdown(Shutdown::Write));
                    swallow = true;
                }
                Fault::StallAnswerAfter(_) => swallow = true,
                _ => return dead.store(true, Ordering::Relaxed),
            }
        }
    }
}
