//! Distance: a proxy on this machine behind which a store answers as one far away does.
//!
//! Bytes are held back for half of the round trip in each direction, all of them for the same time, so what a connection can
//! carry is not less than without it; a new connection waits for a whole round trip first, as its handshake would. Nothing of a
//! real line's bandwidth, loss or congestion is imitated.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use walpoint_tests::ports::PortLease;

/// Pieces of a direction on their way, at most: 64 MiB, so that the proxy never slows a connection down by itself.
const ON_THE_WAY: usize = 1024;

/// Bytes of a piece, at most.
const PIECE: usize = 64 << 10;

/// A listener on 127.0.0.1 in front of another port there. New connections are refused once it is dropped.
#[derive(Debug)]
pub struct Far {
    lease: PortLease,
    ended: Arc<AtomicBool>,
}

impl Far {
    /// Puts a port at this distance.
    pub fn from(target: u16, round_trip: Duration) -> Far {
        let lease = PortLease::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, lease.port())).expect("listen");
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                // A connection that breaks is the tool's affair.
                thread::spawn(move || drop(connect(near, target, round_trip)));
            }
        });
        Far { lease, ended }
    }

    /// Where to connect to.
    pub fn port(&self) -> u16 {
        self.lease.port()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port())));
    }
}

fn connect(near: TcpStream, target: u16, round_trip: Duration) -> io::Result<()> {
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    thread::sleep(round_trip);
    let half = round_trip / 2;
    carry(near.try_clone()?, far.try_clone()?, half);
    carry(far, near, half);
    Ok(())
}

/// Carries what one side sends to the other, `delay` later.
fn carry(mut from: TcpStream, to: TcpStream, delay: Duration) {
    let (sender, receiver): (SyncSender<(Instant, Vec<u8>)>, _) = sync_channel(ON_THE_WAY);
    thread::spawn(move || deliver(to, &receiver));
    thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = from.read(&mut piece).unwrap_or(0);
            piece.truncate(read);
            // An empty piece is the end.
            if sender.send((Instant::now() + delay, piece)).is_err() || read == 0 {
                break;
            }
        }
    });
}

fn deliver(mut to: TcpStream, pieces: &Receiver<(Instant, Vec<u8>)>) {
    for (due, piece) in pieces {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if piece.is_empty() || to.write_all(&piece).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Write));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that gives back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
            }
        });
        port
    }

    #[test]
    fn what_is_far_away_answers_later_and_whole() {
        let far = Far::from(echo(), Duration::from_millis(60));
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, far.port())).unwrap();
        let begun = Instant::now();
        let sent: Vec<u8> = (0..4u32 << 20).map(|n| n.to_le_bytes()[1]).collect();
        let (to_send, mut sending) = (sent.clone(), stream.try_clone().unwrap());
        let writer = thread::spawn(move || {
            sending.write_all(&to_send).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        // One round trip for the handshake, one for the bytes.
        assert!(begun.elapsed() >= Duration::from_millis(120), "{:?}", begun.elapsed());
        assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    }
}
