//! A server that speaks enough S3 to archive to, and keeps next to nothing: what is measured against it is the tool
//! and not a store.
//!
//! Small objects (descriptors, lineages, index) are kept and read back; of larger ones only that they are there and how
//! long they are. Creates that must not replace are refused as S3 does. Signatures are not looked at.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

/// An object up to this length is kept.
const SMALL: u64 = 64 << 10;

/// The most bytes of a request's head.
const MAX_HEAD: u64 = 64 << 10;

/// Where the counts are read: a path that no bucket can have.
pub const COUNTS: &str = "/-counts";

/// What the sink holds and was asked.
#[derive(Debug, Default)]
pub struct Sink {
    objects: BTreeMap<String, Object>,
    counts: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
struct Object {
    size: u64,
    content: Option<Vec<u8>>,
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    /// HTTP/1.0: the end of the answer is the end of the connection.
    closes: bool,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What the length of the body is said to be; HEAD has none.
    length: Option<u64>,
}

impl Answer {
    fn new(status: &'static str) -> Answer {
        Answer { status, headers: Vec::new(), body: Vec::new(), length: None }
    }

    fn error(status: &'static str, code: &str) -> Answer {
        let body =
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
        Answer { body: body.into_bytes(), ..Answer::new(status) }
    }
}

/// Serves a port of 127.0.0.1 until the process ends.
pub fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let sink = Arc::new(Mutex::new(Sink::default()));
    for stream in listener.incoming() {
        let (stream, sink) = (stream?, Arc::clone(&sink));
        std::thread::spawn(move || {
            drop(stream.set_nodelay(true));
            let Ok(reading) = stream.try_clone() else { return };
            // A client that goes away is not worth a word.
            drop(connection(BufReader::with_capacity(256 << 10, reading), stream, &sink));
        });
    }
    Ok(())
}

/// Answers the requests of one connection.
fn connection(mut input: impl BufRead, mut output: impl Write, sink: &Mutex<Sink>) -> io::Result<()> {
    let mut scratch = vec![0; 256 << 10];
    while let Some(request) = read_head(&mut input)? {
        let length = request.headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0u64);
        if request.headers.get("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = read_body(&mut input, length, &mut scratch)?;
        let answer = sink.lock().expect("lock").answer(&request, length, body);
        let head_only = request.method == "HEAD";
        let length = answer.length.unwrap_or(answer.body.len() as u64);
        let mut text = format!("HTTP/1.1 {}\r\nContent-Length: {length}\r\n", answer.status);
        for (name, value) in &answer.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        let mut bytes = text.into_bytes();
        if !head_only {
            bytes.extend(&answer.body);
        }
        output.write_all(&bytes)?;
        if request.closes {
            break;
        }
    }
    Ok(())
}

/// The next request's head; `None` when the client is done.
fn read_head(input: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut lines = Vec::new();
    let mut input = input.take(MAX_HEAD);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" if lines.is_empty() => {}
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "no request");
    let mut first = lines.first().ok_or_else(bad)?.split(' ');
    let (method, target) = (first.next().ok_or_else(bad)?, first.next().ok_or_else(bad)?);
    let closes = first.next() == Some("HTTP/1.0");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers.collect(),
        closes,
    }))
}

/// Reads a body; keeps it if it is small.
fn read_body(input: &mut impl BufRead, length: u64, scratch: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
    if length <= SMALL {
        let mut body = vec![0; usize::try_from(length).unwrap_or(0)];
        input.read_exact(&mut body)?;
        return Ok(Some(body));
    }
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
        let n = input.read(&mut scratch[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= n as u64;
    }
    Ok(None)
}

impl Sink {
    fn answer(&mut self, request: &Request, length: u64, body: Option<Vec<u8>>) -> Answer {
        if request.path == COUNTS {
            let body = serde_json::to_vec(&self.counts()).expect("JSON");
            return Answer { body, ..Answer::new("200 OK") };
        }
        let lists = request.method == "GET" && request.path.trim_matches('/').split('/').count() == 1;
        let kind = if lists { "LIST" } else { request.method.as_str() };
        *self.counts.entry(kind.to_owned()).or_default() += 1;
        match request.method.as_str() {
            "PUT" => self.put(request, length, body),
            "GET" if lists => self.list(request),
            "GET" | "HEAD" => self.get(request),
            "DELETE" => {
                self.objects.remove(&request.path);
                Answer::new("204 No Content")
            }
            _ => Answer::error("501 Not Implemented", "NotImplemented"),
        }
    }

    /// Requests by method (`LIST` for listings), and under `bytes` what all objects have together.
    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = self.counts.clone();
        counts.insert("bytes".to_owned(), self.objects.values().map(|object| object.size).sum());
        counts
    }

    fn put(&mut self, request: &Request, size: u64, content: Option<Vec<u8>>) -> Answer {
        let create = request.headers.get("if-none-match").is_some_and(|value| value == "*");
        if create && self.objects.contains_key(&request.path) {
            return Answer::error("412 Precondition Failed", "PreconditionFailed");
        }
        self.objects.insert(request.path.clone(), Object { size, content });
        let number = ("x-amz-request-id", "1".to_owned());
        Answer { headers: vec![("ETag", etag(size)), number], ..Answer::new("200 OK") }
    }

    fn get(&self, request: &Request) -> Answer {
        let Some(object) = self.objects.get(&request.path) else {
            return Answer::error("404 Not Found", "NoSuchKey");
        };
        let modified = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let mut headers = vec![("ETag", etag(object.size)), ("Last-Modified", modified)];
        if request.method == "HEAD" {
            return Answer { headers, length: Some(object.size), ..Answer::new("200 OK") };
        }
        let Some(content) = &object.content else {
            return Answer::error("410 Gone", "NotKept");
        };
        match request.headers.get("range").and_then(|range| bounds(range, content.len())) {
            Some((from, until)) => {
                headers.push(("Content-Range", format!("bytes {from}-{}/{}", until - 1, content.len())));
                Answer { headers, body: content[from..until].to_vec(), ..Answer::new("206 Partial Content") }
            }
            None => Answer { headers, body: content.clone(), ..Answer::new("200 OK") },
        }
    }

    fn list(&self, request: &Request) -> Answer {
        let prefix = parameter(&request.query, "prefix");
        let bucket = request.path.trim_end_matches('/');
        let mut body =
            String::from("<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>");
        for (path, object) in &self.objects {
            let key = path.strip_prefix(bucket).and_then(|key| key.strip_prefix('/')).unwrap_or("");
            if !key.is_empty() && key.starts_with(&prefix) {
                body += &format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{}</ETag>\
                     <Size>{}</Size></Contents>",
                    etag(object.size),
                    object.size
                );
            }
        }
        body += "</ListBucketResult>";
        Answer { body: body.into_bytes(), ..Answer::new("200 OK") }
    }
}

fn etag(size: u64) -> String {
    format!("\"{size:032x}\"")
}

/// The bytes that a `Range` asks for: `from..until`.
fn bounds(range: &str, length: usize) -> Option<(usize, usize)> {
    let (from, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        let most: usize = last.parse().ok()?;
        return Some((length.saturating_sub(most), length));
    }
    let from: usize = from.parse().ok()?;
    let until = last.parse::<usize>().map_or(length, |last| last.saturating_add(1)).min(length);
    (from < until).then_some((from, until))
}

/// A parameter of a query, decoded.
fn parameter(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let bytes = value.unwrap_or("").as_bytes();
    let mut decoded = Vec::new();
    let mut n = 0;
    while let Some(&byte) = bytes.get(n) {
        let hex = bytes.get(n + 1..n + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                decoded.push(value);
                n += 2;
            }
            _ => decoded.push(byte),
        }
        n += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(sink: &Mutex<Sink>, request: &str, body: &[u8]) -> String {
        let text = format!("{request}\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut output = Vec::new();
        connection(BufReader::new(&[text.as_bytes(), body].concat()[..]), &mut output, sink).unwrap();
        String::from_utf8_lossy(&output).into_owned()
    }

    #[test]
    fn small_objects_come_back_and_large_ones_only_count() {
        let sink = Mutex::default();
        assert!(ask(&sink, "PUT /b/small HTTP/1.1", b"hello").starts_with("HTTP/1.1 200"));
        assert!(ask(&sink, "PUT /b/large HTTP/1.1", &vec![7; 100_000]).starts_with("HTTP/1.1 200"));
        assert!(ask(&sink, "GET /b/small HTTP/1.1", b"").ends_with("\r\n\r\nhello"));
        let part = ask(&sink, "GET /b/small HTTP/1.1\r\nRange: bytes=1-3", b"");
        assert!(part.contains("206") && part.contains("bytes 1-3/5") && part.ends_with("ell"), "{part}");
        assert!(ask(&sink, "HEAD /b/large HTTP/1.1", b"").contains("Content-Length: 100000"));
        assert!(ask(&sink, "GET /b/large HTTP/1.1", b"").contains("410"));
        assert!(ask(&sink, "GET /b/none HTTP/1.1", b"").contains("NoSuchKey"));
        let listed = ask(&sink, "GET /b?list-type=2&prefix=sm%61 HTTP/1.1", b"");
        assert!(listed.contains("<Key>small</Key>") && !listed.contains("large"), "{listed}");
        let counts = ask(&sink, "GET /-counts HTTP/1.1", b"");
        assert!(counts.contains("\"PUT\":2") && counts.contains("\"bytes\":100005"), "{counts}");
    }

    #[test]
    fn a_create_replaces_nothing() {
        let sink = Mutex::default();
        let create = "PUT /b/key HTTP/1.1\r\nIf-None-Match: *";
        assert!(ask(&sink, create, b"one").contains("200 OK"));
        assert!(ask(&sink, create, b"two").contains("412"));
        assert!(ask(&sink, "GET /b/key HTTP/1.1", b"").ends_with("one"));
    }
}
