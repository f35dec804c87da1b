//! Authorities and certificates, made by the openssl program.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use walpoint_tests::dir::TestDir;
use walpoint_tests::{process, user};

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// A certificate and its key; the key is the server user's own and nobody else's.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// An authority that signs.
pub(crate) struct Authority {
    dir: Arc<TestDir>,
    name: String,
}

fn openssl(dir: &TestDir, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(dir.path());
    process::run(&mut command, Duration::from_secs(30)).expect_success();
}

fn pair(dir: &TestDir, name: &str) -> Pair {
    let pair = Pair { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
    for (path, mode) in [(&pair.certificate, 0o644), (&pair.key, 0o600)] {
        set_mode(path, mode);
        user::give(path);
    }
    pair
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("chmod");
}

impl Authority {
    /// All authorities have the same name, as impostors would.
    pub(crate) fn new(dir: &Arc<TestDir>, name: &str) -> Authority {
        let (certificate, key) = (format!("{name}.crt"), format!("{name}.key"));
        let mut arguments =
            vec!["req", "-x509", "-subj", "/CN=authority", "-out", &certificate, "-keyout", &key];
        arguments.extend(NEW_KEY);
        arguments.extend(["-addext", "basicConstraints=critical,CA:TRUE"]);
        openssl(dir, &arguments);
        Authority { dir: Arc::clone(dir), name: name.to_owned() }
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.join(format!("{}.crt", self.name))
    }

    /// Signs a certificate for a common name. With `extensions` (such as `subjectAltName=DNS:db`) it is of version 3;
    /// without, it is what the recipe in PostgreSQL's manual gives: version 1.
    pub(crate) fn issue(&self, name: &str, common: &str, extensions: Option<&str>) -> Pair {
        let (csr, certificate, key) = (format!("{name}.csr"), format!("{name}.crt"), format!("{name}.key"));
        let subject = format!("/CN={common}");
        let mut arguments = vec!["req", "-new", "-subj", &subject, "-out", &csr, "-keyout", &key];
        arguments.extend(NEW_KEY);
        openssl(&self.dir, &arguments);
        let (ca, ca_key) = (format!("{}.crt", self.name), format!("{}.key", self.name));
        let mut arguments =
            vec!["x509", "-req", "-in", &csr, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
        arguments.extend(["-days", "2", "-out", &certificate]);
        if let Some(extensions) = extensions {
            self.dir.write("extensions.cnf", extensions);
            arguments.extend(["-extfile", "extensions.cnf"]);
        }
        openssl(&self.dir, &arguments);
        pair(&self.dir, name)
    }

    /// A list that revokes `pair`'s certificate.
    pub(crate) fn revoke(&self, revoked: &Pair) -> PathBuf {
        let (ca, ca_key) = (format!("{}.crt", self.name), format!("{}.key", self.name));
        let config = "[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=2\n[v2]\nauthorityKeyIdentifier=keyid\n";
        self.dir.write("ca.cnf", config);
        self.dir.write("index.txt", "");
        let certificate = shown(revoked.certificate.display());
        let common = ["ca", "-config", "ca.cnf", "-cert", &ca, "-keyfile", &ca_key];
        openssl(&self.dir, &[&common[..], &["-revoke", &certificate]].concat());
        openssl(&self.dir, &[&common[..], &["-gencrl", "-crlexts", "v2", "-out", "revoked.crl"]].concat());
        self.dir.join("revoked.crl")
    }
}

/// A certificate that signed itself, as `openssl req -x509` makes it: an authority of its own.
pub(crate) fn self_signed(dir: &TestDir, name: &str, common: &str) -> Pair {
    let (certificate, key, subject) = (format!("{name}.crt"), format!("{name}.key"), format!("/CN={common}"));
    let mut arguments = vec!["req", "-x509", "-subj", &subject, "-out", &certificate, "-keyout", &key];
    arguments.extend(NEW_KEY);
    openssl(dir, &arguments);
    pair(dir, name)
}

fn shown(text: impl Display) -> String {
    text.to_string()
}
