//! Certificates are made by the openssl program; real servers are in the tests crate.

use std::process::Command;

use super::*;

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn certificate_of(directory: &Path, file: &str) -> Vec<u8> {
    let all: Vec<CertificateDer<'static>> = pem(&directory.join(file), "certificate").unwrap();
    all[0].to_vec()
}

#[test]
fn the_hash_for_channel_binding_follows_the_signature() {
    let dir = tempfile::tempdir().unwrap();
    for (algorithm, signature, bytes) in [
        ("rsa:2048", "-sha1", Some(32)),
        ("rsa:2048", "-sha256", Some(32)),
        ("rsa:2048", "-sha384", Some(48)),
        ("rsa:2048", "-sha512 -sigopt rsa_padding_mode:pss", Some(64)),
        ("ec -pkeyopt ec_paramgen_curve:P-256", "-sha512", Some(64)),
        ("ed25519", "-text", None),
    ] {
        let arguments =
            format!("req -x509 -newkey {algorithm} -nodes -keyout k -out c -subj /CN=db {signature}");
        openssl(dir.path(), &arguments);
        let hash = certificate::end_point(&certificate_of(dir.path(), "c"));
        assert_eq!(hash.map(|h| h.len()), bytes, "{algorithm} {signature}");
    }
    assert_eq!(certificate::end_point(b"nonsense"), None);
}

#[test]
fn the_manuals_version_1_certificate_is_trusted_only_under_its_issuer() {
    let dir = tempfile::tempdir().unwrap();
    for ca in ["a", "b"] {
        let subject = "-subj /CN=authority -addext basicConstraints=critical,CA:TRUE";
        openssl(
            dir.path(),
            &format!("req -x509 -newkey rsa:2048 -nodes -keyout {ca}.key -out {ca}.crt {subject}"),
        );
    }
    openssl(dir.path(), "req -new -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=db");
    openssl(dir.path(), "x509 -req -in s.csr -days 2 -CA a.crt -CAkey a.key -CAcreateserial -out s.crt");
    let leaf = certificate_of(dir.path(), "s.crt");
    let roots = |name: &str| vec![certificate_of(dir.path(), name)];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let trusted = |roots: &[Vec<u8>], days: u64| {
        let now = rustls::pki_types::UnixTime::now().as_secs() + days * 86_400;
        let now = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        certificate::is_directly_trusted(&leaf, roots, now, provider.signature_verification_algorithms.all)
    };
    assert!(trusted(&roots("a.crt"), 0));
    assert!(!trusted(&roots("b.crt"), 0), "the same name but another key");
    assert!(!trusted(&roots("a.crt"), 3), "expired");
    assert!(trusted(&roots("s.crt"), 0), "the certificate itself, copied to the client");
    let names = certificate::names(&certificate::parse(&leaf).unwrap());
    assert!(names.match_host("db") && !names.match_host("other"));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_certificate_or_not(bytes: Vec<u8>) {
        let _result = certificate::end_point(&bytes);
        let _result = certificate::public_key(&bytes);
    }
}
