//! Every keyword that libpq 13 to 19 knows, the environment variable that stands in for it, and what is done with it.

use super::SettingsError;

/// What a keyword means here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// Honoured.
    Honoured,
    /// Without effect on what this client does, whatever its value.
    Ignored,
    /// Only these values can be honoured. A setting that protects somebody is refused rather than ignored.
    Only(&'static [&'static str]),
}

#[derive(Debug)]
pub(super) struct Keyword {
    /// As written in a connection string.
    pub(super) name: &'static str,
    /// The environment variable, or an empty text.
    pub(super) variable: &'static str,
    means: Use,
}

const fn honoured(name: &'static str, variable: &'static str) -> Keyword {
    Keyword { name, variable, means: Use::Honoured }
}

const fn ignored(name: &'static str, variable: &'static str) -> Keyword {
    Keyword { name, variable, means: Use::Ignored }
}

const fn only(name: &'static str, variable: &'static str, values: &'static [&'static str]) -> Keyword {
    Keyword { name, variable, means: Use::Only(values) }
}

/// All of them, in the order of libpq's manual.
pub(super) const KEYWORDS: &[Keyword] = &[
    honoured("host", "PGHOST"),
    honoured("hostaddr", "PGHOSTADDR"),
    honoured("port", "PGPORT"),
    honoured("dbname", "PGDATABASE"),
    honoured("user", "PGUSER"),
    honoured("password", "PGPASSWORD"),
    honoured("passfile", "PGPASSFILE"),
    honoured("require_auth", "PGREQUIREAUTH"),
    honoured("channel_binding", "PGCHANNELBINDING"),
    honoured("connect_timeout", "PGCONNECT_TIMEOUT"),
    // Always UTF8: what this client reads and prints.
    ignored("client_encoding", "PGCLIENTENCODING"),
    honoured("options", "PGOPTIONS"),
    honoured("application_name", "PGAPPNAME"),
    honoured("fallback_application_name", ""),
    honoured("keepalives", ""),
    honoured("keepalives_idle", ""),
    honoured("keepalives_interval", ""),
    honoured("keepalives_count", ""),
    honoured("tcp_user_timeout", ""),
    honoured("replication", ""),
    only("gssencmode", "PGGSSENCMODE", &["disable", "prefer"]),
    ignored("krbsrvname", "PGKRBSRVNAME"),
    ignored("gsslib", "PGGSSLIB"),
    ignored("gssdelegation", "PGGSSDELEGATION"),
    honoured("sslmode", "PGSSLMODE"),
    only("requiressl", "PGREQUIRESSL", &["0"]),
    honoured("sslnegotiation", "PGSSLNEGOTIATION"),
    // Servers and clients have refused to compress TLS for years.
    ignored("sslcompression", "PGSSLCOMPRESSION"),
    honoured("sslcert", "PGSSLCERT"),
    honoured("sslkey", "PGSSLKEY"),
    // Needed for encrypted keys only, and those are refused with a message of their own.
    ignored("sslpassword", ""),
    only("sslcertmode", "PGSSLCERTMODE", &["disable", "allow"]),
    honoured("sslrootcert", "PGSSLROOTCERT"),
    honoured("sslcrl", "PGSSLCRL"),
    only("sslcrldir", "PGSSLCRLDIR", &[]),
    honoured("sslsni", "PGSSLSNI"),
    only("requirepeer", "PGREQUIREPEER", &[]),
    honoured("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    honoured("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    only("min_protocol_version", "PGMINPROTOCOLVERSION", &["3.0"]),
    ignored("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    honoured("service", "PGSERVICE"),
    honoured("servicefile", "PGSERVICEFILE"),
    honoured("target_session_attrs", "PGTARGETSESSIONATTRS"),
    honoured("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    only("scram_client_key", "", &[]),
    only("scram_server_key", "", &[]),
    ignored("sslkeylogfile", ""),
    ignored("oauth_issuer", ""),
    ignored("oauth_client_id", ""),
    ignored("oauth_client_secret", ""),
    ignored("oauth_scope", ""),
    ignored("oauth_ca_file", "PGOAUTHCAFILE"),
];

/// The keyword of that name, provided that it can be honoured with that value.
pub(super) fn checked(name: &str, value: &str) -> Result<&'static Keyword, SettingsError> {
    let keyword = KEYWORDS.iter().find(|k| k.name == name);
    let keyword = keyword.ok_or_else(|| SettingsError::Keyword { name: name.to_owned() })?;
    match keyword.means {
        Use::Only(values) if !value.is_empty() && !values.contains(&value) => {
            Err(SettingsError::Unsupported {
                keyword: keyword.name,
                value: value.to_owned(),
                supported: values,
            })
        }
        _ => Ok(keyword),
    }
}
