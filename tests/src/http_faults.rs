//! An HTTP proxy that answers some requests itself: throttling, forbidden, missing. For S3 over plain HTTP.
//!
//! One request per connection to the server: it adds `Connection: close`, and clients open a new connection next time.
//! Signatures do not cover that header.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Which requests are answered, with what, how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRule {
    /// `PUT`, `GET` …; empty: any.
    pub method: String,
    /// A part of the path and query; empty: any.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// The S3 error code in its body: `SlowDown`, `AccessDenied`, `NoSuchBucket`.
    pub code: String,
    /// How many requests more; `u32::MAX`: always.
    pub times: u32,
    /// How many matching requests are let through first.
    pub skip: u32,
    /// Forward the request too, and answer so only afterwards: it was done, and the client is told otherwise.
    pub after_doing_it: bool,
    /// Answer as a proxy does that shows its own page in the place of the store.
    pub page: bool,
}

impl FaultRule {
    /// Answers every matching request, without forwarding it.
    pub fn new(method: &str, path: &str, status: u16, code: &str) -> FaultRule {
        let (method, path, code) = (method.to_owned(), path.to_owned(), code.to_owned());
        FaultRule { method, path, status, code, times: u32::MAX, skip: 0, after_doing_it: false, page: false }
    }

    /// Only so many times.
    pub fn times(mut self, times: u32) -> FaultRule {
        self.times = times;
        self
    }

    /// Only after so many that are let through.
    pub fn after(mut self, requests: u32) -> FaultRule {
        self.skip = requests;
        self
    }

    /// Answers every matching request with success and the page of a proxy.
    pub fn page(method: &str) -> FaultRule {
        FaultRule { page: true, ..FaultRule::new(method, "", 200, "") }
    }

    /// The request is done all the same.
    pub fn after_doing_it(mut self) -> FaultRule {
        self.after_doing_it = true;
        self
    }
}

/// The proxy; ends when dropped.
#[derive(Debug)]
pub struct HttpProxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    rules: Mutex<Vec<FaultRule>>,
    requests: Mutex<Vec<String>>,
    /// Seconds by which the server's clock seems to be ahead.
    ahead: AtomicI64,
    /// Milliseconds by which each request is late.
    late: AtomicU64,
    stop: AtomicBool,
}

impl HttpProxy {
    /// Starts one in front of a port of 127.0.0.1.
    pub fn to(target: u16) -> HttpProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let shared = Shared {
            target,
            rules: Mutex::new(Vec::new()),
            requests: Mutex::new(Vec::new()),
            ahead: AtomicI64::new(0),
            late: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        let shared = Arc::new(shared);
        let owned = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if owned.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&owned);
                std::thread::spawn(move || drop(serve(client, &shared)));
            }
        });
        HttpProxy { port, shared }
    }

    /// Where to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets the rules; the first that matches a request is used. None: everything is forwarded.
    pub fn set(&self, rules: Vec<FaultRule>) {
        *self.shared.rules.lock().expect("lock") = rules;
    }

    /// Lets the server's clock seem to be so many seconds ahead: in the times of objects that are asked for one by one.
    pub fn shift_clock(&self, seconds: i64) {
        self.shared.ahead.store(seconds, Ordering::Relaxed);
    }

    /// Lets each request arrive so much later.
    pub fn delay(&self, span: Duration) {
        self.shared.late.store(u64::try_from(span.as_millis()).expect("a short span"), Ordering::Relaxed);
    }

    /// `METHOD path` of every request so far: how many a command makes.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("lock").clone()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.requests.lock().expect("lock").clear();
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

fn serve(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    // The head of the request, and what of its body came with it.
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            n => bytes.extend(&buffer[..n]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    shared.requests.lock().expect("lock").push(format!("{method} {path}"));
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let length: usize = header("content-length:").and_then(|value| value.parse().ok()).unwrap_or(0);
    while bytes.len() < end + length {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            n => bytes.extend(&buffer[..n]),
        }
    }
    std::thread::sleep(Duration::from_millis(shared.late.load(Ordering::Relaxed)));
    let rule = shared.rules.lock().expect("lock").iter_mut().find_map(|rule| {
        let matches = rule.times > 0
            && (rule.method.is_empty() || rule.method == method)
            && (rule.path.is_empty() || path.contains(&rule.path));
        if matches && rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        matches.then(|| {
            rule.times = if rule.times == u32::MAX { u32::MAX } else { rule.times - 1 };
            rule.clone()
        })
    });
    if rule.as_ref().is_none_or(|rule| rule.after_doing_it) {
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.target))?;
        server.write_all(&bytes[..end - 2])?;
        server.write_all(b"Connection: close\r\n\r\n")?;
        server.write_all(&bytes[end..])?;
        if rule.is_none() {
            let ahead = shared.ahead.load(Ordering::Relaxed);
            if ahead != 0 && method == "HEAD" {
                let mut answer = Vec::new();
                server.read_to_end(&mut answer)?;
                return client.write_all(&shifted(&answer, ahead));
            }
            return std::io::copy(&mut server, &mut client).map(drop);
        }
        std::io::copy(&mut server, &mut std::io::sink())?;
    }
    let Some(rule) = rule else { return Ok(()) };
    let body = if method == "HEAD" {
        String::new()
    } else if rule.page {
        "<html>We are in maintenance</html>".to_owned()
    } else {
        format!("<Error><Code>{0}</Code><Message>{0}, said the test</Message></Error>", rule.code)
    };
    let kind = if rule.page { "text/html\r\nETag: \"5f-abc\"" } else { "application/xml" };
    write!(
        client,
        "HTTP/1.1 {} Fault\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        rule.status,
        body.len()
    )
}

/// An answer without a body whose `Last-Modified` is so many seconds later.
fn shifted(answer: &[u8], seconds: i64) -> Vec<u8> {
    let text = String::from_utf8_lossy(answer);
    let lines = text.split_inclusive("\r\n").map(|line| {
        let value = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("last-modified"));
        let time = value.and_then(|(_, value)| jiff::fmt::rfc2822::parse(value.trim()).ok());
        let Some(time) = time else { return line.to_owned() };
        let later = time.timestamp() + jiff::SignedDuration::from_secs(seconds);
        format!("Last-Modified: {}\r\n", later.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    });
    lines.collect::<String>().into_bytes()
}
