//! TCP, Unix and TLS sockets as one type, and how they are opened.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::settings::{Keepalive, Peer};

/// Where a socket leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    /// TCP.
    Network(SocketAddr),
    /// A Unix socket; begins with NUL for an abstract one.
    Path(PathBuf),
}

/// An open socket.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Connects, without TLS. `peer`: as whom a Unix socket is opened, if not as this process's user.
    pub(super) async fn open(
        address: &Address,
        keepalive: &Keepalive,
        peer: Option<&Peer>,
    ) -> io::Result<Self> {
        match address {
            Address::Path(path) => Ok(Self::Unix(match peer {
                Some(peer) => connect_as(path.clone(), peer.clone()).await?,
                None => UnixStream::connect(path).await?,
            })),
            Address::Network(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                set_keepalive(&stream, keepalive)?;
                Ok(Self::Tcp(stream))
            }
        }
    }
}

/// Connects to a Unix socket as another user, in a thread of its own: the kernel notes for the server as whom the thread acted.
async fn connect_as(path: PathBuf, peer: Peer) -> io::Result<UnixStream> {
    let (send, connected) = tokio::sync::oneshot::channel();
    let connect = move || {
        // Of this thread alone, which ends with it. The groups first: then they may not be changed any more.
        let groups: Vec<Gid> = peer.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups)?;
        set_thread_res_gid(None, Gid::from_raw(peer.gid), None)?;
        set_thread_res_uid(None, Uid::from_raw(peer.uid), None)?;
        std::os::unix::net::UnixStream::connect(path)
    };
    std::thread::Builder::new().name("connect".to_owned()).spawn(move || drop(send.send(connect())))?;
    let stream = connected.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// A peer that vanished without a word is noticed by the kernel, as libpq has it.
fn set_keepalive(stream: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, !keepalive.off)?;
    if !keepalive.off {
        if let Some(idle) = keepalive.idle {
            sockopt::set_tcp_keepidle(stream, idle)?;
        }
        if let Some(interval) = keepalive.interval {
            sockopt::set_tcp_keepintvl(stream, interval)?;
        }
        if let Some(count) = keepalive.count {
            sockopt::set_tcp_keepcnt(stream, count)?;
        }
    }
    if let Some(milliseconds) = keepalive.user_timeout {
        sockopt::set_tcp_user_timeout(stream, milliseconds)?;
    }
    Ok(())
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
