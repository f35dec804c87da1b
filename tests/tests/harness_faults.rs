//! The harness itself: the proxy, the traced system calls and the small disk fail in the way they say.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use walpoint_tests::dir::TestDir;
use walpoint_tests::faults::{self, SmallDisk};
use walpoint_tests::process::{self, Background};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::{needs_root, user, wait};

/// Answers each 4 bytes of a connection with 100,000.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut request = [0; 4];
                while stream.read_exact(&mut request).is_ok() && stream.write_all(&[b'x'; 100_000]).is_ok() {}
            });
        }
    });
    port
}

fn ask(proxy: &Proxy) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port()))?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(b"ping")?;
    let mut answer: Vec<u8> = Vec::new();
    let mut buffer = [0; 10_000];
    while answer.len() < 100_000 {
        match stream.read(&mut buffer)? {
            0 => break,
            n => answer.extend(&buffer[..n]),
        }
    }
    Ok(answer.len())
}

#[test]
fn the_proxy_forwards_and_fails_as_told() {
    let proxy = Proxy::to(server());
    assert_eq!(ask(&proxy).unwrap(), 100_000);

    proxy.set(Fault::TruncateAnswerAfter(1_000));
    assert_eq!(ask(&proxy).unwrap(), 1_000);
    proxy.set(Fault::HalfCloseAfter(2_000));
    assert_eq!(ask(&proxy).unwrap(), 2_000);
    proxy.set(Fault::StallAnswerAfter(2_000));
    assert!(matches!(ask(&proxy).unwrap_err().kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    proxy.set(Fault::ResetAnswerAfter(1_000));
    assert_eq!(ask(&proxy).unwrap_err().kind(), ErrorKind::ConnectionReset);
    proxy.set(Fault::ResetRequestAfter(2));
    assert_eq!(ask(&proxy).unwrap_err().kind(), ErrorKind::ConnectionReset);
    proxy.set(Fault::Blackhole);
    assert!(matches!(ask(&proxy).unwrap_err().kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    proxy.set(Fault::Refuse);
    assert_eq!(ask(&proxy).unwrap_err().kind(), ErrorKind::ConnectionRefused);

    proxy.set(Fault::Bandwidth(400_000));
    let start = Instant::now();
    wait::until_true(wait::SOON, "the proxy listens again", || {
        TcpStream::connect(("127.0.0.1", proxy.port())).is_ok()
    });
    assert_eq!(ask(&proxy).unwrap(), 100_000);
    assert!(start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
    proxy.heal();
    assert_eq!(ask(&proxy).unwrap(), 100_000);
    assert!(proxy.connections() >= 9);
}

#[test]
fn a_cut_resets_what_is_open() {
    let proxy = Proxy::to(server());
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 100_000]).unwrap();
    proxy.cut();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_system_call_fails_or_kills() {
    let dir = TestDir::new();
    let from = dir.write("from", "text");
    let mut copy = Command::new("cp");
    copy.arg(&from).arg(dir.join("to"));
    let output =
        process::run(&mut faults::inject(&copy, &["openat:error=EACCES"], &[&from]), Duration::from_secs(20));
    assert_eq!(output.status, 1);
    assert!(output.stderr.contains("Permission denied"), "{}", output.stderr);

    let mut rename = Command::new("mv");
    rename.arg(&from).arg(dir.join("to"));
    let killed = process::run(
        &mut faults::inject(&rename, &["rename,renameat,renameat2:signal=SIGKILL:when=1"], &[]),
        Duration::from_secs(20),
    );
    assert_eq!(killed.status, 128 + 9);
}

#[test]
fn the_writes_of_a_running_process_fail() {
    needs_root!();
    let dir = TestDir::new();
    let mut command = Command::new("bash");
    command.args(["-c", "while :; do echo .; read -t 0.01 < <(:); done"]);
    let victim = Background::start(user::become_user(&mut command), &dir.join("log"));
    let lines = || victim.log().len();
    wait::until_true(wait::SOON, "it writes", || lines() > 0);
    let tracer = faults::attach(&dir, victim.pid(), &["write:error=EIO"], &[]);
    let before = lines();
    wait::holds_for(Duration::from_millis(300), "no write succeeds", || lines() == before);
    drop(tracer);
    wait::until_true(wait::SOON, "it writes again", || lines() > before);
}

#[test]
fn a_small_disk_is_full_read_only_and_gone() {
    needs_root!();
    let disk = SmallDisk::new(8);
    disk.fill(100_000);
    let write = |size: usize| {
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "bs=1", "status=none"]);
        command.arg(format!("count={size}")).arg(format!("of={}", disk.path().join("new").display()));
        process::run(user::become_user(&mut command), Duration::from_secs(60))
    };
    assert!(write(300_000).stderr.contains("No space left"));
    disk.free();
    write(300_000).expect_success();
    disk.set_read_only(true);
    assert!(write(1).stderr.contains("Read-only"));
    disk.set_read_only(false);
    write(1).expect_success();
    disk.unmount();
    assert!(!disk.path().join("new").exists() && disk.path().exists());
}
