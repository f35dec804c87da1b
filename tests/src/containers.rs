//! Containers without an engine: images by buildah, containers by podman, in a storage of the test's own that is removed
//! with it. Nothing is ever pulled: an image is one that the test built.
//!
//! Containers of one test that share a network share one loopback interface: no bridge, no firewall rules, no port of the
//! machine. Names of services lead there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::compose::{After, Compose, Service};
use crate::dir::TestDir;
use crate::process::{self, Output};

const LIMIT: Duration = Duration::from_secs(240);

/// How long a service may take until it is healthy.
const HEALTHY: Duration = Duration::from_secs(90);

/// The container that owns the shared network.
const NETWORK: &str = "network";

/// A storage of images, containers and volumes.
#[derive(Debug)]
pub struct Engine {
    dir: TestDir,
    driver: &'static str,
    up: Mutex<Vec<String>>,
}

impl Engine {
    /// One without anything in it.
    #[track_caller]
    pub fn empty() -> Engine {
        let dir = TestDir::on_disk();
        for program in ["buildah", "podman", "runc"] {
            let there = Command::new(program).arg("--version").output().is_ok();
            assert!(there, "{program} is missing: run tests/setup/setup.sh --only containers");
        }
        // Limits above this machine's own, cgroups without systemd, and nothing shared with other engines.
        let run = dir.join("tmp");
        let config = format!(
            "[containers]\ndefault_ulimits = [\"nofile=16384:16384\", \"nproc=4096:4096\"]\nlog_driver = \"k8s-file\"\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n\
             tmp_dir = \"{}\"\n[network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
            run.display(),
            dir.join("networks").display()
        );
        dir.write("containers.conf", config);
        // An overlay cannot lie on another one, which is where a test in a container finds itself.
        const OVERLAY: u64 = 0x794c_7630;
        let kind = rustix::fs::statfs(dir.path()).map(|stat| stat.f_type.cast_unsigned());
        let driver = if kind.is_ok_and(|kind| kind == OVERLAY) { "vfs" } else { "overlay" };
        Engine { dir, driver, up: Mutex::new(Vec::new()) }
    }

    /// A directory for what goes into images.
    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.dir.join("storage")).arg("--runroot").arg(self.dir.join("run"));
        command.args(["--storage-driver", self.driver]);
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf")).current_dir(self.dir.path());
        command.env("XDG_RUNTIME_DIR", self.dir.join("run")).env("TMPDIR", self.dir.path());
        command
    }

    /// Runs podman to its end.
    #[track_caller]
    pub fn podman<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        process::run(self.command("podman").args(arguments), LIMIT)
    }

    /// Builds an image from a Dockerfile and a context.
    #[track_caller]
    pub fn build(&self, name: &str, dockerfile: &Path, context: &Path, options: &[&str]) {
        let mut command = self.command("buildah");
        command.args([
            "bud",
            "--isolation=chroot",
            "--network=host",
            "--pull=false",
            "--layers=false",
            "--tag",
            name,
        ]);
        command.args(options).arg("--file").arg(dockerfile).arg(context);
        process::run(&mut command, LIMIT).expect_success();
    }

    /// Makes an image of a directory: what other projects publish has to be stood in for.
    #[track_caller]
    pub fn image_of(&self, name: &str, root: &Path, settings: &str) {
        let dockerfile = self.dir.write("Dockerfile", format!("FROM scratch\nCOPY . /\n{settings}"));
        self.build(name, &dockerfile, root, &[]);
    }

    /// Starts a service and, before it, what it depends on.
    #[track_caller]
    pub fn up(&self, compose: &Compose, name: &str) {
        if self.up.lock().expect("no panic").iter().any(|known| known == name) {
            return;
        }
        let service = compose.services.get(name).unwrap_or_else(|| panic!("compose: no service {name}"));
        for (other, after) in &service.depends_on {
            match after {
                After::Completed => self.complete(compose, other),
                After::Started => self.up(compose, other),
                After::Healthy => {
                    self.up(compose, other);
                    self.wait_healthy(compose, other);
                }
            }
        }
        self.start_network(compose, service);
        let mut arguments = vec!["--detach".to_owned(), format!("--name={name}")];
        arguments.extend(self.run_arguments(service, &service.command));
        self.podman([vec!["run".to_owned()], arguments].concat()).expect_success();
        self.up.lock().expect("no panic").push(name.to_owned());
    }

    /// Runs a service that ends by itself, once.
    #[track_caller]
    fn complete(&self, compose: &Compose, name: &str) {
        if self.up.lock().expect("no panic").iter().any(|known| known == name) {
            return;
        }
        let service = &compose.services[name];
        for (other, after) in &service.depends_on {
            assert_eq!(*after, After::Healthy, "{name}");
            self.up(compose, other);
            self.wait_healthy(compose, other);
        }
        self.run(compose, name, &service.command).expect_success();
        self.up.lock().expect("no panic").push(name.to_owned());
    }

    /// `docker compose run --rm`: a service with another command, in a container that goes when it ends.
    #[track_caller]
    pub fn run<S: AsRef<str>>(&self, compose: &Compose, name: &str, command: &[S]) -> Output {
        let service = &compose.services[name];
        self.start_network(compose, service);
        let command: Vec<String> = command.iter().map(|word| word.as_ref().to_owned()).collect();
        let run = ["run".to_owned(), "--rm".to_owned()];
        self.podman([run.to_vec(), self.run_arguments(service, &command)].concat())
    }

    /// Runs a program in a container that runs already.
    #[track_caller]
    pub fn exec<S: AsRef<str>>(&self, name: &str, command: &[S]) -> Output {
        let words = command.iter().map(AsRef::as_ref);
        self.podman(["exec", name].into_iter().chain(words))
    }

    /// Waits until a service's health check succeeds.
    #[track_caller]
    pub fn wait_healthy(&self, compose: &Compose, name: &str) {
        let check = &compose.services[name].healthcheck;
        assert!(!check.is_empty(), "compose: {name} has no health check");
        let begun = Instant::now();
        loop {
            let answer = self.exec(name, check);
            if answer.success() {
                return;
            }
            let log = || self.logs(name);
            assert!(begun.elapsed() < HEALTHY, "{name} is not healthy: {answer:#?}\n{}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What a container printed.
    pub fn logs(&self, name: &str) -> String {
        let output = self.podman(["logs", name]);
        output.stdout + &output.stderr
    }

    fn run_arguments(&self, service: &Service, command: &[String]) -> Vec<String> {
        let mut arguments = service.options.clone();
        if service.network.is_some() {
            arguments.push(format!("--network=container:{NETWORK}"));
            arguments.push(format!("--volume={}:/etc/hosts:ro", self.dir.join("hosts").display()));
        } else {
            arguments.push("--network=none".to_owned());
        }
        let mut entrypoint = service.entrypoint.iter();
        if let Some(program) = entrypoint.next() {
            arguments.push(format!("--entrypoint={program}"));
        }
        arguments.push("--pull=never".to_owned());
        arguments.push(service.image.clone());
        arguments.extend(entrypoint.cloned());
        arguments.extend(command.iter().cloned());
        arguments
    }

    fn start_network(&self, compose: &Compose, service: &Service) {
        let mut up = self.up.lock().expect("no panic");
        if service.network.is_none() || up.iter().any(|known| known == NETWORK) {
            return;
        }
        let busybox = testbed_busybox();
        let root = self.dir.mkdir("network-root");
        fs::copy(busybox, root.join("sleep")).expect("copy busybox");
        self.image_of("localhost/network", &root, "ENTRYPOINT [\"/sleep\", \"100000\"]\n");
        let name = format!("--name={NETWORK}");
        let arguments = [
            "run",
            "--detach",
            "--network=none",
            "--stop-signal=KILL",
            "--pull=never",
            &name,
            "localhost/network",
        ];
        self.podman(arguments).expect_success();
        let names: Vec<&str> = compose.services.keys().map(String::as_str).collect();
        self.dir.write("hosts", format!("127.0.0.1 localhost {}\n", names.join(" ")));
        up.push(NETWORK.to_owned());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.up.lock().map(|up| up.clone()).unwrap_or_default() {
                let log = self.logs(&name);
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!("--- the last lines of container {name}:");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        if std::env::var_os("WALPOINT_KEEP").is_some() {
            return;
        }
        // The owner of the network goes only after all that share it.
        let containers: &[&str] = &["rm", "--all", "--force", "--time=0"];
        for arguments in [containers, containers, &["volume", "rm", "--all", "--force"]] {
            drop(self.command("podman").args(arguments).output());
        }
        // The storage mounts itself; what is mounted cannot be removed.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = |place: &&str| Path::new(place).starts_with(self.dir.path());
        let mut places: Vec<&str> =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(ours).collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.len()));
        for place in places {
            drop(Command::new("umount").arg("--lazy").arg(place).output());
        }
    }
}

/// Debian's statically linked busybox: a shell and small programs for images that stand in for others.
#[track_caller]
pub fn testbed_busybox() -> PathBuf {
    let path = PathBuf::from("/bin/busybox");
    assert!(path.exists(), "busybox-static is missing: run tests/setup/setup.sh --only containers");
    path
}

/// Copies the shared libraries that a program is linked with to the same places below `root`: none for one that is linked statically.
#[track_caller]
pub fn copy_libraries(program: &Path, root: &Path) {
    let output = process::run(Command::new("ldd").arg(program), LIMIT);
    assert!(output.success() || output.stderr.contains("not a dynamic executable"), "{output:?}");
    let libraries = output
        .stdout
        .split_whitespace()
        .filter(|word| word.starts_with("/lib") || word.starts_with("/usr/lib"));
    for library in libraries {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a directory")).expect("directories");
        fs::copy(library, to).unwrap_or_else(|e| panic!("copy {library}: {e}"));
    }
}
