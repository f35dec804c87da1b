//! Asking a server to cancel what a session is doing, over a connection of its own.

use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::settings::Keepalive;
use super::socket::{Address, Socket};
use super::tls::Tls;

/// A server that does not take the request by then will not.
const LIMIT: Duration = Duration::from_secs(10);

/// What is needed to cancel; may outlive the connection it is for and be used from another task.
#[derive(Clone)]
pub struct Cancel {
    pub(super) address: Address,
    pub(super) keepalive: Keepalive,
    /// With TLS if the session uses it.
    pub(super) tls: Option<Tls>,
    pub(super) process_id: i32,
    pub(super) secret_key: i32,
}

impl Cancel {
    /// Asks. The server does not say whether it found something to cancel; the session it was for gets an error with
    /// SQLSTATE 57014 if so. An error means that the request did not reach the server.
    pub async fn send(&self) -> std::io::Result<()> {
        match tokio::time::timeout(LIMIT, self.deliver()).await {
            Ok(result) => result,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    async fn deliver(&self) -> std::io::Result<()> {
        let mut socket = match (Socket::open(&self.address, &self.keepalive, None).await?, &self.tls) {
            (Socket::Tcp(mut stream), Some(tls)) => {
                if !tls.is_direct() {
                    let mut request = BytesMut::new();
                    frontend::ssl_request(&mut request);
                    stream.write_all(&request).await?;
                    if stream.read_u8().await? != b'S' {
                        return Err(std::io::Error::other("the server no longer offers TLS"));
                    }
                }
                let secured = tls.secure(stream).await;
                let secured = secured.map_err(|failure| std::io::Error::other(failure.to_string()))?;
                Socket::Tls(Box::new(secured.stream))
            }
            (socket, _) => socket,
        };
        let mut request = BytesMut::new();
        frontend::cancel_request(self.process_id, self.secret_key, &mut request);
        socket.write_all(&request).await?;
        socket.flush().await?;
        // The server closes the connection when it has acted.
        let mut rest = [0; 16];
        while matches!(socket.read(&mut rest).await, Ok(1..)) {}
        Ok(())
    }
}
