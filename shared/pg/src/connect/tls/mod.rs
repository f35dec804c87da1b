//! TLS as libpq does it, with rustls.

mod certificate;
mod names;
mod verifier;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::verifier::{Authorities, Verifier};
use super::error::ConnectFailure;
use super::settings::{SettingsError, SslMode, TlsSettings, TrustedRoots};

/// The protocol that PostgreSQL registered; `sslnegotiation=direct` needs the server to take it up.
const ALPN: &[u8] = b"postgresql";

const ROOTS: &str = "root certificate file (sslrootcert)";
const REVOKED: &str = "list of revoked certificates (sslcrl)";

/// Everything needed to begin TLS with one host.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    direct: bool,
}

/// A TLS connection and what channel binding needs of it.
pub(super) struct Secured {
    pub(super) stream: TlsStream<TcpStream>,
    /// The hash of the server's certificate, if its kind has one.
    pub(super) end_point: Option<Vec<u8>>,
}

impl Tls {
    /// Reads the files that the settings name. Blocks. `host` is the name in the settings, which may be empty.
    pub(super) fn prepare(settings: &TlsSettings, host: &str) -> Result<Self, SettingsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        if settings.mode == SslMode::VerifyFull && host.is_empty() {
            let what = "sslmode=verify-full needs a host name to verify\nHINT: Add host=….".to_owned();
            return Err(SettingsError::Contradiction { what });
        }
        let verifier = Verifier {
            authorities: authorities(settings, &provider)?,
            host: (settings.mode == SslMode::VerifyFull).then(|| host.to_owned()),
            provider: Arc::clone(&provider),
        };
        let versions: Vec<_> = [
            settings.allow_1_3.then_some(&rustls::version::TLS13),
            settings.allow_1_2.then_some(&rustls::version::TLS12),
        ]
        .into_iter()
        .flatten()
        .collect();
        let unusable = |e: rustls::Error| SettingsError::Contradiction { what: e.to_string() };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(unusable)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match client_certificate(settings)? {
            Some((path, chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| content("client certificate (sslcert) and its key", path, e.to_string()))?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = settings.sni;
        // What is neither a DNS name nor an address cannot be sent; no name is sent for an address.
        let name = ServerName::try_from(host.to_owned()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        Ok(Self { config: Arc::new(config), name, direct: settings.direct })
    }

    /// Whether TLS begins without asking for it.
    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// The handshake.
    pub(super) async fn secure(&self, stream: TcpStream) -> Result<Secured, ConnectFailure> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.name.clone(), stream).await.map_err(explain)?;
        let (_, session) = stream.get_ref();
        if self.direct && session.alpn_protocol() != Some(ALPN) {
            let what = "the server does not take up TLS by sslnegotiation=direct (PostgreSQL 17 and later do)\nHINT: Use \
                        sslnegotiation=postgres.";
            return Err(ConnectFailure::Tls(what.to_owned()));
        }
        let end_point = session.peer_certificates().and_then(|chain| certificate::end_point(chain.first()?));
        Ok(Secured { stream, end_point })
    }
}

/// What a failed handshake means. A connection that merely broke may work another time.
pub(super) fn explain(error: io::Error) -> ConnectFailure {
    use rustls::CertificateError::{BadSignature, Expired, ExpiredContext, Revoked, UnknownIssuer};
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return ConnectFailure::Network(error);
    };
    ConnectFailure::Tls(match tls {
        // A bad signature is that of another authority of the same name.
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            "the server's certificate is not issued by an authority that sslrootcert trusts".to_owned()
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            format!("the server's certificate has expired: {tls}\nHINT: Check this machine's clock too.")
        }
        rustls::Error::InvalidCertificate(Revoked) => {
            "the server's certificate is revoked (sslcrl)".to_owned()
        }
        rustls::Error::InvalidCertificate(other) => {
            format!("the server's certificate is not accepted: {other}")
        }
        rustls::Error::General(text) => text.clone(),
        rustls::Error::AlertReceived(_) => format!(
            "the server ended the TLS handshake: {tls}\nHINT: If it wants a client certificate, check that it accepts this \
             one (sslcert)."
        ),
        _ => format!("the TLS handshake failed: {tls}"),
    })
}

/// Whom to trust. libpq verifies the chain whenever there is a root certificate, whatever the mode.
fn authorities(
    settings: &TlsSettings,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Authorities>, SettingsError> {
    let mut store = RootCertStore::empty();
    let (path, certificates) = match &settings.roots {
        TrustedRoots::Unset if settings.mode >= SslMode::VerifyCa => {
            let what = "sslmode=verify-ca and verify-full need trusted authorities, and ~/.postgresql/root.crt does not \
                        exist\nHINT: Name a file with sslrootcert=…, or use sslrootcert=system.";
            return Err(SettingsError::Contradiction { what: what.to_owned() });
        }
        TrustedRoots::Unset => return Ok(None),
        TrustedRoots::System => {
            let (_, _ignored) =
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            (Path::new("of the operating system"), Vec::new())
        }
        TrustedRoots::File(path) if settings.mode < SslMode::Require && !path.exists() => return Ok(None),
        TrustedRoots::File(path) => {
            let certificates: Vec<CertificateDer<'static>> = pem(path, ROOTS)?;
            for certificate in &certificates {
                store.add(certificate.clone()).map_err(|e| content(ROOTS, path, e.to_string()))?;
            }
            (path.as_path(), certificates)
        }
    };
    let revoked: Vec<CertificateRevocationListDer<'static>> = match &settings.revoked {
        Some(path) => pem(path, REVOKED)?,
        None => Vec::new(),
    };
    let pinned =
        if revoked.is_empty() { certificates.iter().map(|c| c.to_vec()).collect() } else { Vec::new() };
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .with_crls(revoked)
        .build()
        .map_err(|error| match (error, &settings.revoked) {
            (VerifierBuilderError::InvalidCrl(error), Some(path)) => {
                let why = format!(
                    "{error:?}\nHINT: It must be of X.509 version 2, which openssl ca creates with -crlexts."
                );
                content(REVOKED, path, why)
            }
            (error, _) => content(ROOTS, path, error.to_string()),
        })?;
    Ok(Some(Authorities { chains, certificates: pinned }))
}

type ClientCertificate<'a> = (&'a Path, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client's certificate and key. As in libpq a certificate that does not exist is none, but one needs its key.
fn client_certificate(settings: &TlsSettings) -> Result<Option<ClientCertificate<'_>>, SettingsError> {
    let Some((certificate, key)) = &settings.client else { return Ok(None) };
    if !certificate.exists() {
        return Ok(None);
    }
    const KEY: &str = "client key (sslkey)";
    let chain = pem(certificate, "client certificate (sslcert)")?;
    let facts =
        key.metadata().map_err(|source| SettingsError::File { what: KEY, path: key.clone(), source })?;
    let (allowed, advice) = if facts.uid() == 0 { (0o640, "0640") } else { (0o600, "0600") };
    if !facts.is_file() || facts.permissions().mode() & 0o777 & !allowed != 0 {
        let why =
            format!("it must be a plain file that others have no access to\nHINT: Run chmod {advice} on it.");
        return Err(content(KEY, key, why));
    }
    let bytes = read(key, KEY)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        let encrypted = bytes.windows(9).any(|w| w == b"ENCRYPTED");
        let why = if encrypted {
            "it is encrypted\nHINT: Keep it as a file without a passphrase.".to_owned()
        } else {
            error.to_string()
        };
        content(KEY, key, why)
    })?;
    Ok(Some((certificate, chain, key)))
}

/// All sections of one kind in a PEM file, at least one.
fn pem<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, SettingsError> {
    let bytes = read(path, what)?;
    let sections: Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    let sections = sections.map_err(|e| content(what, path, e.to_string()))?;
    if sections.is_empty() {
        Err(content(what, path, "it holds none, in PEM".to_owned()))
    } else {
        Ok(sections)
    }
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, SettingsError> {
    std::fs::read(path).map_err(|source| SettingsError::File { what, path: path.to_owned(), source })
}

fn content(what: &'static str, path: &Path, why: String) -> SettingsError {
    SettingsError::Content { what, path: path.to_owned(), why }
}

#[cfg(test)]
mod tests;
