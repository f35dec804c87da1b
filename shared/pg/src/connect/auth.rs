//! Authentication: trust, cleartext, MD5, SCRAM-SHA-256 and, over TLS, SCRAM-SHA-256-PLUS.
//!
//! Always holds: with `channel_binding=require` nothing is taken as success but a completed SCRAM-SHA-256-PLUS, and a
//! SCRAM exchange succeeds only after the server has proved that it knows the password too.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use walpoint_base::{Diagnostic, Secret};

use super::error::ConnectFailure;
use super::report::ServerReport;
use super::settings::{AllowedMethods, ChannelBinding};
use super::tls;
use super::wire::{Fault, Incoming, Wire};

/// Who wants in, and what may be done for it.
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Secret>,
    /// Why the password file was not used, if it was not.
    pub(super) passfile_problem: Option<&'a str>,
    pub(super) channel_binding: ChannelBinding,
    pub(super) methods: &'a AllowedMethods,
    pub(super) encrypted: bool,
    /// The hash of the server's certificate, where it has one.
    pub(super) end_point: Option<&'a [u8]>,
}

/// What has happened so far.
#[derive(Default)]
struct AuthProgress {
    scram: Option<ScramSha256>,
    /// A method was demanded and answered.
    answered: bool,
    /// The server proved itself in a SCRAM exchange.
    server_proved: bool,
    bound: bool,
}

/// Talks until the server says AuthenticationOk. The startup message is sent already.
pub(super) async fn authenticate(wire: &mut Wire, login: &Login<'_>) -> Result<(), ConnectFailure> {
    let mut progress = AuthProgress::default();
    loop {
        let Incoming::Message(message) = wire.receive().await.map_err(failure)? else {
            return Err(ConnectFailure::Protocol("CopyBothResponse instead of authentication".into()));
        };
        match message {
            Message::AuthenticationOk => return progress.verdict(login),
            Message::AuthenticationCleartextPassword => {
                let password = login.password_for("password")?;
                send(wire, |out| frontend::password_message(password.as_bytes(), out)).await?;
                progress.answered = true;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = login.password_for("md5")?;
                let answer = md5_hash(login.user.as_bytes(), password.as_bytes(), body.salt());
                send(wire, |out| frontend::password_message(answer.as_bytes(), out)).await?;
                progress.answered = true;
            }
            Message::AuthenticationSasl(body) => {
                let (mechanism, binding) = login.choose(&body)?;
                let scram = ScramSha256::new(login.password_for("scram-sha-256")?.as_bytes(), binding);
                send(wire, |out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
                progress.bound = mechanism == sasl::SCRAM_SHA_256_PLUS;
                progress.answered = true;
                progress.scram = Some(scram);
            }
            Message::AuthenticationSaslContinue(body) => {
                let Some(scram) = &mut progress.scram else { return Err(out_of_turn()) };
                scram
                    .update(body.data())
                    .map_err(|e| ConnectFailure::Authentication(format!("SCRAM failed: {e}")))?;
                send(wire, |out| frontend::sasl_response(scram.message(), out)).await?;
            }
            Message::AuthenticationSaslFinal(body) => {
                let Some(mut scram) = progress.scram.take() else { return Err(out_of_turn()) };
                scram.finish(body.data()).map_err(|e| {
                    ConnectFailure::Authentication(format!(
                        "the server did not prove that it knows the password: {e}\nHINT: Check that it is the right server."
                    ))
                })?;
                progress.server_proved = true;
            }
            Message::ErrorResponse(body) => {
                return Err(ConnectFailure::Server(Box::new(
                    ServerReport::read(body.fields()).map_err(ConnectFailure::Protocol)?,
                )));
            }
            Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
            Message::AuthenticationGss
            | Message::AuthenticationGssContinue(_)
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential => {
                let what = "the server requires Kerberos, GSSAPI or SSPI, which are not supported\nHINT: \
                    Use scram-sha-256 or \
                            cert for this role in pg_hba.conf.";
                return Err(ConnectFailure::Authentication(what.to_owned()));
            }
            _ => return Err(out_of_turn()),
        }
    }
}

impl AuthProgress {
    fn verdict(&self, login: &Login<'_>) -> Result<(), ConnectFailure> {
        let refused = |what: &str| Err(ConnectFailure::Authentication(what.to_owned()));
        if self.scram.is_some() {
            return refused(
                "the server accepted the login before it proved that it knows the password\nHINT: Check that it is the right \
                 server.",
            );
        }
        if login.channel_binding == ChannelBinding::Require && !(self.bound && self.server_proved) {
            return refused(
                "channel_binding=require, but the server authenticated without channel binding\nHINT: Use scram-sha-256 for \
                 this role in pg_hba.conf.",
            );
        }
        if !self.answered && !login.methods.allows("none") {
            return refused(
                "require_auth forbids a connection without authentication, and the server asked for none",
            );
        }
        Ok(())
    }
}

impl<'a> Login<'a> {
    /// The password, provided that the method may be used.
    fn password_for(&self, method: &str) -> Result<&'a str, ConnectFailure> {
        if !self.methods.allows(method) {
            return Err(ConnectFailure::Authentication(format!(
                "the server asks for {method} authentication, which require_auth forbids"
            )));
        }
        if self.channel_binding == ChannelBinding::Require && method != "scram-sha-256" {
            return Err(ConnectFailure::Authentication(format!(
                "channel_binding=require, but the server asks for {method} authentication, which cannot do that\nHINT: Use \
                 scram-sha-256 for this role in pg_hba.conf."
            )));
        }
        let password = self.password.map(Secret::expose).filter(|p| !p.is_empty());
        password.ok_or_else(|| {
            let user = self.user;
            let mut what =
                Diagnostic::new(format!("the server requires a password for {user:?}, and none was found"))
                    .hint("Put it in ~/.pgpass or PGPASSWORD.");
            if let Some(problem) = self.passfile_problem {
                what.add_cause(&Diagnostic::new(problem));
            }
            ConnectFailure::Authentication(what.into())
        })
    }

    /// The mechanism to use of those the server offers, and the channel binding that goes with it.
    fn choose(
        &self,
        offered: &AuthenticationSaslBody,
    ) -> Result<(&'static str, sasl::ChannelBinding), ConnectFailure> {
        let (mut plain, mut plus, mut names) = (false, false, Vec::new());
        let mut mechanisms = offered.mechanisms();
        while let Some(name) = mechanisms.next().map_err(|e| ConnectFailure::Protocol(e.to_string()))? {
            plain |= name == sasl::SCRAM_SHA_256;
            plus |= name == sasl::SCRAM_SHA_256_PLUS;
            names.push(name.to_owned());
        }
        let required = self.channel_binding == ChannelBinding::Require;
        let wanted = self.channel_binding != ChannelBinding::Disable;
        match self.end_point {
            Some(hash) if plus && wanted => {
                Ok((sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.to_vec())))
            }
            _ if required && !self.encrypted => Err(ConnectFailure::Authentication(
                "channel_binding=require needs TLS, which this connection does not use\nHINT: Set sslmode=require or better.".into(),
            )),
            _ if required => Err(ConnectFailure::Authentication(
                "channel_binding=require, but the server does not offer it, or its certificate's signature has no hash for it".into(),
            )),
            // Saying "I could have, but you did not offer it" lets the server notice that somebody removed its offer.
            Some(_) if plain && wanted => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
            _ if plain => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
            _ => Err(ConnectFailure::Authentication(format!(
                "the server offers only {}, none of which is supported\nHINT: Use scram-sha-256 for this role in pg_hba.conf.",
                names.join(", ")
            ))),
        }
    }
}

/// Queues a message and sends it.
async fn send(
    wire: &mut Wire,
    write: impl FnOnce(&mut bytes::BytesMut) -> std::io::Result<()>,
) -> Result<(), ConnectFailure> {
    write(&mut wire.outgoing)
        .map_err(|e| ConnectFailure::Authentication(format!("the password cannot be sent: {e}")))?;
    wire.flush().await.map_err(failure)
}

fn out_of_turn() -> ConnectFailure {
    ConnectFailure::Protocol("an authentication message out of turn".into())
}

/// A fault of the wire while connecting.
pub(super) fn failure(fault: Fault) -> ConnectFailure {
    match fault {
        // With TLS 1.3 the server judges the client's certificate after our side of the handshake.
        Fault::Lost(error) => tls::explain(error),
        Fault::Garbage(what) => ConnectFailure::Protocol(what),
    }
}
