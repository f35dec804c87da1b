//! Whether a certificate is for a host: libpq's rules, which know the common name and wildcards of one label.
//!
//! Source: `fe-secure-common.c` and `pgtls_verify_peer_name_matches_certificate_guts` of libpq 15 and later.

use std::net::IpAddr;

/// The names in a certificate.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// Subject alternative names, DNS.
    pub(super) dns: Vec<String>,
    /// Subject alternative names, addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// The first common name of the subject.
    pub(super) common: Option<String>,
}

impl Names {
    /// Whether one of them is `host`, a DNS name or an address as text. The common name counts only if there is no
    /// alternative name of the host's kind.
    pub(super) fn match_host(&self, host: &str) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        let same_kind = if address.is_some() { !self.addresses.is_empty() } else { !self.dns.is_empty() };
        self.dns.iter().any(|name| matches(name, host))
            || address.is_some_and(|address| self.addresses.contains(&address))
            || (!same_kind && self.common.as_deref().is_some_and(|name| matches(name, host)))
    }

    /// For an error message.
    pub(super) fn shown(&self) -> String {
        let mut shown: Vec<String> = self.dns.clone();
        shown.extend(self.addresses.iter().map(IpAddr::to_string));
        shown.extend(self.common.iter().map(|name| format!("CN={name}")));
        if shown.is_empty() { "no name at all".to_owned() } else { shown.join(", ") }
    }
}

/// `*.example.com` stands for one label, and nothing else holds a wildcard.
fn matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(suffix) = pattern.strip_prefix('*').filter(|suffix| suffix.len() > 1 && suffix.starts_with('.'))
    else {
        return false;
    };
    host.split_once('.')
        .is_some_and(|(label, rest)| !label.is_empty() && suffix[1..].eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &[&str], addresses: &[&str], common: Option<&str>) -> Names {
        Names {
            dns: dns.iter().map(|n| (*n).to_owned()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            common: common.map(str::to_owned),
        }
    }

    #[test]
    fn wildcards_stand_for_one_label() {
        for (pattern, host, expected) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.Example.com", true),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("d*.example.com", "db.example.com", false),
            ("*", "db", false),
            ("*.", "db.", false),
            ("", "db", false),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn the_common_name_counts_only_without_others_of_the_kind() {
        assert!(names(&[], &[], Some("db")).match_host("db"));
        assert!(!names(&["other"], &[], Some("db")).match_host("db"));
        assert!(names(&[], &["10.0.0.1"], Some("db")).match_host("db"));
        assert!(names(&["db"], &[], Some("10.0.0.1")).match_host("10.0.0.1"));
        assert!(!names(&["db"], &["10.0.0.2"], Some("10.0.0.1")).match_host("10.0.0.1"));
        assert!(names(&[], &["::1"], None).match_host("0:0::1"));
        assert!(!names(&[], &[], None).match_host("db"));
    }
}
