//! The settings of TLS: `sslmode` and its relatives, with libpq's defaults and dependencies.

use std::path::PathBuf;

use super::environment::Environment;
use super::{Keywords, SettingsError};

/// How much TLS is asked for; libpq's six `sslmode`s, weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server refuses a connection without.
    Allow,
    /// If the server offers it; without on any failure.
    Prefer,
    /// Always; the certificate is checked only if there is a root certificate file.
    Require,
    /// Always, with a certificate of a trusted authority.
    VerifyCa,
    /// Always, with a certificate of a trusted authority for this host.
    VerifyFull,
}

/// Whether an authentication must be tied to the TLS connection it runs over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If both sides can.
    Prefer,
    /// Always: otherwise there is no connection.
    Require,
}

/// Which authorities to trust.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::connect) enum TrustedRoots {
    /// There is no file to look into: nothing is verified, `verify-ca` and `verify-full` fail.
    Unset,
    /// Those of the operating system.
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

/// Everything about TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::connect) struct TlsSettings {
    pub(in crate::connect) mode: SslMode,
    /// Start with TLS instead of asking for it (`sslnegotiation=direct`).
    pub(in crate::connect) direct: bool,
    pub(in crate::connect) roots: TrustedRoots,
    /// Revoked certificates, PEM.
    pub(in crate::connect) revoked: Option<PathBuf>,
    /// The client's certificate chain and key, PEM.
    pub(in crate::connect) client: Option<(PathBuf, PathBuf)>,
    /// Tell the server which host name is meant.
    pub(in crate::connect) sni: bool,
    pub(in crate::connect) allow_1_2: bool,
    pub(in crate::connect) allow_1_3: bool,
}

impl TlsSettings {
    pub(super) fn read(keywords: &Keywords, environment: &Environment) -> Result<Self, SettingsError> {
        // A file of the home directory counts only if it is there; one that is named must be.
        let home = |name: &str| environment.in_home(name).filter(|path| path.exists());
        let file = |keyword| keywords.get(keyword).map(PathBuf::from);
        let roots = match keywords.get("sslrootcert") {
            Some("system") => TrustedRoots::System,
            Some(path) => TrustedRoots::File(PathBuf::from(path)),
            None => home(".postgresql/root.crt").map_or(TrustedRoots::Unset, TrustedRoots::File),
        };
        let mode = mode(keywords, roots == TrustedRoots::System)?;
        let direct =
            keywords.choice("sslnegotiation", &[("postgres", false), ("direct", true)])?.unwrap_or(false);
        if direct && mode < SslMode::Require {
            let what = "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full".to_owned();
            return Err(SettingsError::Contradiction { what });
        }
        let certificate = file("sslcert").or_else(|| home(".postgresql/postgresql.crt"));
        let certificate = certificate.filter(|_| keywords.get("sslcertmode") != Some("disable"));
        let client = certificate.map(|certificate| {
            let key = file("sslkey").or_else(|| environment.in_home(".postgresql/postgresql.key"));
            (certificate, key.unwrap_or_else(|| PathBuf::from("postgresql.key")))
        });
        const VERSIONS: [(&str, u8); 4] = [("TLSv1", 0), ("TLSv1.1", 1), ("TLSv1.2", 2), ("TLSv1.3", 3)];
        let lowest = keywords.choice("ssl_min_protocol_version", &VERSIONS)?.unwrap_or(2);
        let highest = keywords.choice("ssl_max_protocol_version", &VERSIONS)?.unwrap_or(3);
        if highest < 2 || lowest > highest {
            let what =
                "ssl_min_protocol_version and ssl_max_protocol_version leave neither TLSv1.2 nor TLSv1.3";
            return Err(SettingsError::Contradiction { what: what.to_owned() });
        }
        Ok(Self {
            mode,
            direct,
            roots,
            revoked: file("sslcrl").or_else(|| home(".postgresql/root.crl")),
            client,
            sni: keywords.choice("sslsni", &[("1", true), ("0", false)])?.unwrap_or(true),
            allow_1_2: lowest <= 2,
            allow_1_3: highest >= 3,
        })
    }
}

fn mode(keywords: &Keywords, system_roots: bool) -> Result<SslMode, SettingsError> {
    const MODES: [(&str, SslMode); 6] = [
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];
    match keywords.choice("sslmode", &MODES)? {
        Some(mode) if system_roots && mode < SslMode::VerifyFull => {
            let what =
                "sslrootcert=system trusts every public authority, so only sslmode=verify-full makes sense";
            Err(SettingsError::Contradiction { what: what.to_owned() })
        }
        Some(mode) => Ok(mode),
        None if system_roots => Ok(SslMode::VerifyFull),
        None => Ok(SslMode::Prefer),
    }
}
