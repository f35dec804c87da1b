//! `docker/compose.yaml`, read strictly: what a service asks for is what `podman run` gets, and a key that is not
//! understood here fails the test instead of being ignored.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use yaml_rust2::yaml::Hash;
use yaml_rust2::{Yaml, YamlLoader};

/// When a service may start after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Started.
    Started,
    /// Its health check succeeded.
    Healthy,
    /// It ended with status 0.
    Completed,
}

/// A service of the file.
#[derive(Debug, Clone, Default)]
pub struct Service {
    /// Its image.
    pub image: String,
    /// The program, in place of the image's.
    pub entrypoint: Vec<String>,
    /// Its arguments, in place of the image's.
    pub command: Vec<String>,
    /// The programs that have to be there before it.
    pub depends_on: Vec<(String, After)>,
    /// The command that finds out whether it is healthy.
    pub healthcheck: Vec<String>,
    /// The network it is in; without one it sees nothing but itself.
    pub network: Option<String>,
    /// Options of `podman run` for everything else.
    pub options: Vec<String>,
}

/// The services by name, and the volumes.
#[derive(Debug)]
pub struct Compose {
    /// All services, those of profiles included.
    pub services: BTreeMap<String, Service>,
    directory: PathBuf,
    variables: BTreeMap<String, String>,
    volumes: Vec<String>,
}

impl Compose {
    /// Reads the file; `variables` stand in for the environment.
    #[track_caller]
    pub fn read(path: &Path, variables: &[(&str, &str)]) -> Compose {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let documents =
            YamlLoader::load_from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let [document] = &documents[..] else { panic!("{} is not one document", path.display()) };
        let mut compose = Compose {
            services: BTreeMap::new(),
            directory: path.parent().expect("a directory").to_owned(),
            variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            volumes: Vec::new(),
        };
        let mut services = Vec::new();
        for (key, value) in entries(document) {
            match key.as_str() {
                "services" => services = entries(value),
                "volumes" => compose.volumes = entries(value).into_iter().map(|(name, _)| name).collect(),
                "name" | "networks" => {}
                key if key.starts_with("x-") => {}
                key => panic!("compose: what is {key}?"),
            }
        }
        for (name, value) in services {
            let service = compose.service(value);
            compose.services.insert(name, service);
        }
        compose
    }

    fn service(&self, value: &Yaml) -> Service {
        let mut service = Service::default();
        for (key, value) in entries(value) {
            let mut option = |name: &str, value: &str| service.options.push(format!("--{name}={value}"));
            match key.as_str() {
                "image" => service.image = self.text(value),
                "entrypoint" => service.entrypoint = self.list(value),
                "command" => service.command = self.list(value),
                "user" => option("user", &self.text(value)),
                // Without the writable /tmp and /run that podman would add by itself.
                "read_only" if value.as_bool() == Some(true) => {
                    service.options.extend(["--read-only", "--read-only-tmpfs=false"].map(str::to_owned));
                }
                "cap_drop" => self.list(value).iter().for_each(|cap| option("cap-drop", cap)),
                "security_opt" => self.list(value).iter().for_each(|opt| option("security-opt", opt)),
                // As Docker mounts it; podman would copy up what the image has there.
                "tmpfs" => self
                    .list(value)
                    .iter()
                    .for_each(|at| option("tmpfs", &format!("{at}:mode=1777,notmpcopyup"))),
                "volumes" => {
                    self.list(value).iter().for_each(|volume| option("volume", &self.volume(volume)))
                }
                "environment" => {
                    let pairs = entries(value).into_iter().map(|(name, value)| (name, self.text(value)));
                    pairs.for_each(|(name, value)| option("env", &format!("{name}={value}")));
                }
                "networks" => service.network = self.list(value).pop(),
                "depends_on" => service.depends_on = entries(value).into_iter().map(after).collect(),
                "healthcheck" => service.healthcheck = self.healthcheck(value),
                // The test is what builds, restarts and chooses.
                "build" | "restart" | "profiles" | "stop_grace_period" => {}
                key => panic!("compose: a service has {key}: {value:?}"),
            }
        }
        service
    }

    /// A volume as podman takes it: named ones are known, files lie beside the compose file.
    fn volume(&self, text: &str) -> String {
        let (source, rest) = text.split_once(':').unwrap_or_else(|| panic!("compose: volume {text}"));
        if source.starts_with("./") {
            let file = self.directory.join(source);
            assert!(file.is_file(), "compose: {} is not there", file.display());
            return format!("{}:{rest}", file.display());
        }
        assert!(self.volumes.iter().any(|volume| volume == source), "compose: there is no volume {source}");
        text.to_owned()
    }

    fn healthcheck(&self, value: &Yaml) -> Vec<String> {
        let test = entries(value).into_iter().find(|(key, _)| key == "test").expect("a test");
        let mut test = self.list(test.1);
        assert_eq!(test.remove(0), "CMD", "a health check without a shell");
        test
    }

    fn list(&self, value: &Yaml) -> Vec<String> {
        value
            .as_vec()
            .unwrap_or_else(|| panic!("compose: not a list: {value:?}"))
            .iter()
            .map(|v| self.text(v))
            .collect()
    }

    /// A scalar, with `${NAME:?…}` replaced.
    fn text(&self, value: &Yaml) -> String {
        let text = match value {
            Yaml::String(text) => text.clone(),
            Yaml::Integer(number) => number.to_string(),
            other => panic!("compose: not a text: {other:?}"),
        };
        let Some((before, rest)) = text.split_once("${") else { return text };
        let (name, after) = rest.split_once('}').unwrap_or_else(|| panic!("compose: {text}"));
        let (name, _) =
            name.split_once(":?").unwrap_or_else(|| panic!("compose: {text} has no hint for who forgets it"));
        let value = self.variables.get(name).unwrap_or_else(|| panic!("compose: {name} is not set"));
        format!("{before}{value}{after}")
    }
}

fn after((name, value): (String, &Yaml)) -> (String, After) {
    let after = match value["condition"].as_str() {
        Some("service_started") => After::Started,
        Some("service_healthy") => After::Healthy,
        Some("service_completed_successfully") => After::Completed,
        other => panic!("compose: {name}: what is {other:?}?"),
    };
    (name, after)
}

/// The members of a mapping. `<<` merges another one, whose members give way to the mapping's own.
fn entries(value: &Yaml) -> Vec<(String, &Yaml)> {
    let hash: &Hash = value.as_hash().unwrap_or_else(|| panic!("compose: not a mapping: {value:?}"));
    let mut found: Vec<(String, &Yaml)> = Vec::new();
    for (key, value) in hash {
        let key = key.as_str().expect("a name");
        let more = if key == "<<" { entries(value) } else { vec![(key.to_owned(), value)] };
        for (name, value) in more {
            match found.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) if key != "<<" => *known = value,
                Some(_) => {}
                None => found.push((name, value)),
            }
        }
    }
    found
}
