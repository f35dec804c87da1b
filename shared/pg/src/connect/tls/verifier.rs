//! Which server certificates are accepted, by `sslmode`.
//!
//! rustls and webpki decide about chains. Added is what libpq accepts beyond: no verification at all (`require` without
//! a root certificate), a chain without a look at the name (`verify-ca`), the common name, and the two forms of
//! certificate that PostgreSQL's manual teaches and webpki refuses (see `certificate`).

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate;

/// Trusted authorities.
#[derive(Debug)]
pub(super) struct Authorities {
    /// Decides about chains, revocation included.
    pub(super) chains: Arc<WebPkiServerVerifier>,
    /// The same authorities as they are in their file; empty when certificates may be revoked, because only `chains`
    /// knows which.
    pub(super) certificates: Vec<Vec<u8>>,
}

/// The certificate check of one connection.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) provider: Arc<CryptoProvider>,
    /// `None`: any certificate will do.
    pub(super) authorities: Option<Authorities>,
    /// The host that the certificate must be for, for `verify-full`.
    pub(super) host: Option<String>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let chain =
            authorities.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match chain {
            // The name is looked at last, so the chain is good; the name is checked below, by libpq's rules.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => {
                let algorithms = self.provider.signature_verification_algorithms.all;
                if !certificate::is_directly_trusted(end_entity, &authorities.certificates, now, algorithms) {
                    return Err(error);
                }
            }
        }
        let Some(host) = &self.host else { return Ok(ServerCertVerified::assertion()) };
        let names = certificate::parse(end_entity).map(|c| certificate::names(&c)).unwrap_or_default();
        if names.match_host(host) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(format!("the server's certificate is for {}, not for {host:?}", names.shown())))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match rustls::server::ParsedCertificate::try_from(cert) {
            Ok(_) => verify_tls13_signature(message, cert, dss, algorithms),
            // A form that webpki does not read, such as version 1: the key is all that is needed here.
            Err(error) => {
                let key = certificate::public_key(cert).ok_or(error)?;
                verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
