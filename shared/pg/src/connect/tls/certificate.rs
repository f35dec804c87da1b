//! What libpq looks at in a server's certificate and rustls does not tell: the common name, the signature's hash for
//! channel binding, and certificates of X.509 version 1, which the recipe in PostgreSQL's manual makes.

use std::net::IpAddr;

use aws_lc_rs::digest;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode, EncodeValue};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::names::Names;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Signature algorithms and the hash that RFC 5929 prescribes for them: their own, but SHA-256 for MD5 and SHA-1.
const SIGNATURE_HASHES: &[(&str, &digest::Algorithm)] = &[
    ("1.2.840.113549.1.1.4", &digest::SHA256),
    ("1.2.840.113549.1.1.5", &digest::SHA256),
    ("1.2.840.113549.1.1.11", &digest::SHA256),
    ("1.2.840.113549.1.1.12", &digest::SHA384),
    ("1.2.840.113549.1.1.13", &digest::SHA512),
    ("1.2.840.10045.4.1", &digest::SHA256),
    ("1.2.840.10045.4.3.2", &digest::SHA256),
    ("1.2.840.10045.4.3.3", &digest::SHA384),
    ("1.2.840.10045.4.3.4", &digest::SHA512),
];

const RSA_PSS: &str = "1.2.840.113549.1.1.10";

/// The hash inside the parameters of RSA-PSS, whose default is SHA-1.
const PSS_HASHES: &[(&str, &digest::Algorithm)] = &[
    ("2.16.840.1.101.3.4.2.1", &digest::SHA256),
    ("2.16.840.1.101.3.4.2.2", &digest::SHA384),
    ("2.16.840.1.101.3.4.2.3", &digest::SHA512),
];

/// The certificate in `der`; `None` if it is not one.
pub(super) fn parse(der: &[u8]) -> Option<Certificate> {
    Certificate::from_der(der).ok()
}

/// The names in it. An extension that cannot be read gives no names at all, so nothing matches.
pub(super) fn names(certificate: &Certificate) -> Names {
    let mut names = Names::default();
    let clean = |text: &str| (!text.contains('\0')).then(|| text.to_owned());
    match certificate.tbs_certificate.get::<SubjectAltName>() {
        Err(_) => return names,
        Ok(None) => {}
        Ok(Some((_, alternatives))) => {
            for name in &alternatives.0 {
                match name {
                    GeneralName::DnsName(name) => names.dns.extend(clean(name.as_str())),
                    GeneralName::IpAddress(bytes) => names.addresses.extend(address(bytes.as_bytes())),
                    _ => {}
                }
            }
        }
    }
    let mut attributes = certificate.tbs_certificate.subject.0.iter().flat_map(|rdn| rdn.0.iter());
    let common = attributes.find(|attribute| attribute.oid == COMMON_NAME);
    names.common = common.and_then(|a| std::str::from_utf8(a.value.value()).ok()).and_then(clean);
    names
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The hash that stands for this certificate in channel binding (tls-server-end-point, RFC 5929); `None` for signature
/// algorithms without one, such as Ed25519, with which a PostgreSQL server cannot bind either.
pub(super) fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    let algorithm = parse(der)?.signature_algorithm;
    let oid = algorithm.oid.to_string();
    let hash = if oid == RSA_PSS {
        pss_hash(&algorithm)
    } else {
        SIGNATURE_HASHES.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash)
    }?;
    Some(digest::digest(hash, der).as_ref().to_vec())
}

/// The hash of RSASSA-PSS-params: `SEQUENCE { [0] EXPLICIT AlgorithmIdentifier … }`.
fn pss_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<&'static digest::Algorithm> {
    let parameters = algorithm.parameters.as_ref()?;
    let explicit = x509_cert::der::asn1::ContextSpecific::<AlgorithmIdentifierOwned>::from_der;
    // The first element, if it is tagged [0]; without it the hash is SHA-1, which RFC 5929 replaces by SHA-256.
    let content = parameters.value();
    let Some((&0xA0, _)) = content.split_first() else { return Some(&digest::SHA256) };
    let length = usize::from(*content.get(1)?).checked_add(2)?;
    let hash = explicit(content.get(..length)?).ok()?;
    PSS_HASHES.iter().find(|(known, _)| *known == hash.value.oid.to_string()).map(|(_, hash)| *hash)
}

/// The public key, for signatures of the handshake under a certificate that webpki does not read.
pub(super) fn public_key(der: &[u8]) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let key = parse(der)?.tbs_certificate.subject_public_key_info.to_der().ok()?;
    Some(SubjectPublicKeyInfoDer::from(key))
}

/// Whether a certificate that webpki refuses by its form is good all the same: it is one of the trusted ones itself
/// (self-signed, copied to the client), or of version 1 and issued directly by a trusted one; and `now` is in its time.
pub(super) fn is_directly_trusted(
    der: &[u8],
    roots: &[Vec<u8>],
    now: UnixTime,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let Some(certificate) = parse(der) else { return false };
    let validity = &certificate.tbs_certificate.validity;
    let now = now.as_secs();
    let begun = validity.not_before.to_unix_duration().as_secs() <= now;
    let over = validity.not_after.to_unix_duration().as_secs() < now;
    if !begun || over {
        return false;
    }
    if roots.iter().any(|root| root == der) {
        return true;
    }
    let version_1 = certificate.tbs_certificate.version == x509_cert::Version::V1;
    version_1
        && roots
            .iter()
            .filter_map(|root| parse(root))
            .any(|root| is_issued_by(&certificate, &root, algorithms))
}

fn is_issued_by(
    certificate: &Certificate,
    issuer: &Certificate,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    if certificate.tbs_certificate.issuer != issuer.tbs_certificate.subject {
        return false;
    }
    let key = &issuer.tbs_certificate.subject_public_key_info;
    let (Ok(message), Some(signature), Some(public)) = (
        certificate.tbs_certificate.to_der(),
        certificate.signature.as_bytes(),
        key.subject_public_key.as_bytes(),
    ) else {
        return false;
    };
    let (Some(signed_with), Some(key_kind)) =
        (content(&certificate.signature_algorithm), content(&key.algorithm))
    else {
        return false;
    };
    algorithms.iter().any(|algorithm| {
        algorithm.signature_alg_id().as_ref() == signed_with
            && algorithm.public_key_alg_id().as_ref() == key_kind
            && algorithm.verify_signature(public, &message, signature).is_ok()
    })
}

/// The DER of an algorithm without its outermost tag and length, as rustls names algorithms.
fn content(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    algorithm.encode_value(&mut bytes).ok().map(|()| bytes)
}
