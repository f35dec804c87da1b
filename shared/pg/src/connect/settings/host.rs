//! Which servers to try: the lists in `host`, `hostaddr` and `port`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::SettingsError;

/// PostgreSQL's default port.
const DEFAULT_PORT: u16 = 5432;

/// Where the servers of distributions, and those built from source, have their sockets.
const SOCKET_DIRECTORIES: &[&str] = &["/var/run/postgresql", "/run/postgresql", "/tmp"];

/// A way to reach a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerAddress {
    /// A Unix socket in one of the usual directories: no host was named.
    DefaultSocket,
    /// A Unix socket in this directory.
    Directory(PathBuf),
    /// A socket in the abstract namespace; without the `@`.
    Abstract(String),
    /// TCP.
    Network {
        /// The name, for certificates and messages; empty if only an address was given.
        name: String,
        /// The address, if given: the name is not looked up.
        address: Option<IpAddr>,
    },
}

/// One server to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// How to reach it.
    pub place: ServerAddress,
    /// The port, or for a socket the number in its name.
    pub port: u16,
}

impl Host {
    /// The path of the Unix socket; begins with NUL for an abstract one. `None` for TCP.
    pub(in crate::connect) fn socket(&self) -> Option<PathBuf> {
        let file = format!(".s.PGSQL.{}", self.port);
        match &self.place {
            ServerAddress::DefaultSocket => {
                let mut paths = SOCKET_DIRECTORIES.iter().map(|d| Path::new(d).join(&file));
                let usual = paths.next();
                usual.iter().find(|p| p.exists()).cloned().or_else(|| paths.find(|p| p.exists())).or(usual)
            }
            ServerAddress::Directory(directory) => Some(directory.join(file)),
            ServerAddress::Abstract(name) => Some(PathBuf::from(format!("\0{name}/{file}"))),
            ServerAddress::Network { .. } => None,
        }
    }

    /// The name that a password file has for it.
    pub(in crate::connect) fn passfile_name(&self) -> String {
        match &self.place {
            ServerAddress::DefaultSocket => "localhost".to_owned(),
            ServerAddress::Directory(directory)
                if SOCKET_DIRECTORIES.iter().any(|d| Path::new(d) == directory) =>
            {
                "localhost".to_owned()
            }
            ServerAddress::Directory(directory) => directory.display().to_string(),
            ServerAddress::Abstract(name) => format!("@{name}"),
            ServerAddress::Network { name, address } if name.is_empty() => {
                address.map(|a| a.to_string()).unwrap_or_default()
            }
            ServerAddress::Network { name, .. } => name.clone(),
        }
    }
}

impl fmt::Display for Host {
    /// `db1:5432`, `db1 (10.0.0.1):5432`, `/var/run/postgresql:5432`, `@name:5432`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            ServerAddress::DefaultSocket => {
                let socket = self.socket().unwrap_or_default();
                write!(f, "{}", socket.parent().unwrap_or(&socket).display())?;
            }
            ServerAddress::Directory(directory) => write!(f, "{}", directory.display())?,
            ServerAddress::Abstract(name) => write!(f, "@{name}")?,
            ServerAddress::Network { name, address: Some(address) } if name.is_empty() => {
                write!(f, "{}", bracketed(*address))?
            }
            ServerAddress::Network { name, address: Some(address) } => write!(f, "{name} ({address})")?,
            ServerAddress::Network { name, address: None } => f.write_str(name)?,
        }
        write!(f, ":{}", self.port)
    }
}

fn bracketed(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

/// The servers that the three lists name. One port may serve all hosts; an empty element stands for the default.
pub(super) fn hosts(host: &str, address: &str, port: &str) -> Result<Vec<Host>, SettingsError> {
    let names: Vec<&str> = host.split(',').collect();
    let addresses: Vec<&str> = address.split(',').collect();
    let ports: Vec<&str> = port.split(',').collect();
    let count = if address.is_empty() { names.len() } else { addresses.len() };
    if !host.is_empty() && names.len() != count {
        let what = format!("host names {} servers and hostaddr {count}", names.len());
        return Err(SettingsError::Contradiction { what });
    }
    if ports.len() != 1 && ports.len() != count {
        let what = format!(
            "port has {} elements for {count} servers\nHINT: Give one port, or one for each server.",
            ports.len()
        );
        return Err(SettingsError::Contradiction { what });
    }
    (0..count)
        .map(|n| {
            let name = names.get(n).copied().unwrap_or_default().trim();
            let address = addresses.get(n).copied().unwrap_or_default().trim();
            let port = ports.get(n).or(ports.first()).copied().unwrap_or_default().trim();
            Ok(Host { place: place(name, address)?, port: port_number(port)? })
        })
        .collect()
}

fn place(name: &str, address: &str) -> Result<ServerAddress, SettingsError> {
    if !address.is_empty() {
        let address = address.parse().map_err(|_| SettingsError::Value {
            keyword: "hostaddr",
            value: address.to_owned(),
            expected: "an IP address",
        })?;
        return Ok(ServerAddress::Network { name: name.to_owned(), address: Some(address) });
    }
    Ok(match name.strip_prefix('@') {
        Some(rest) => ServerAddress::Abstract(rest.to_owned()),
        None if name.is_empty() => ServerAddress::DefaultSocket,
        None if name.starts_with('/') => ServerAddress::Directory(PathBuf::from(name)),
        None => ServerAddress::Network { name: name.to_owned(), address: None },
    })
}

fn port_number(text: &str) -> Result<u16, SettingsError> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().filter(|&p| p != 0).ok_or_else(|| SettingsError::Value {
        keyword: "port",
        value: text.to_owned(),
        expected: "a port (1 to 65535)",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(host: &str, address: &str, port: &str) -> Vec<String> {
        hosts(host, address, port).unwrap().iter().map(Host::to_string).collect()
    }

    #[test]
    fn lists_of_hosts_addresses_and_ports() {
        assert_eq!(shown("a,b", "", "5433"), ["a:5433", "b:5433"]);
        assert_eq!(shown("a,b", "", "5433,"), ["a:5433", "b:5432"]);
        assert_eq!(shown("a,", "10.0.0.1,::1", ""), ["a (10.0.0.1):5432", "[::1]:5432"]);
        assert_eq!(shown("/s,@abc", "", "1,2"), ["/s:1", "@abc:2"]);
        assert_eq!(hosts("", "", "").unwrap()[0].place, ServerAddress::DefaultSocket);
        assert!(hosts("a,b", "10.0.0.1", "").is_err());
        assert!(hosts("a,b", "", "1,2,3").is_err());
        for bad in ["0", "65536", "+1", "x", "-1"] {
            assert!(hosts("a", "", bad).is_err(), "{bad}");
        }
        assert!(hosts("", "db1", "").is_err());
    }

    #[test]
    fn sockets() {
        let socket = |host: &str| hosts(host, "", "5433").unwrap()[0].socket();
        assert_eq!(socket("/s"), Some("/s/.s.PGSQL.5433".into()));
        assert_eq!(socket("@n"), Some("\0n/.s.PGSQL.5433".into()));
        assert_eq!(socket("h"), None);
        assert!(socket("").is_some());
        assert_eq!(hosts("/tmp", "", "").unwrap()[0].passfile_name(), "localhost");
        assert_eq!(hosts("/s", "", "").unwrap()[0].passfile_name(), "/s");
    }
}
