//! Finds everything that is wrong with the text of a configuration file, not only the first thing.
//!
//! Each key is read by itself, as its table's type declares it; then the tables as a whole, and what they say together.

use std::collections::BTreeMap;

use serde::de::value::Error as Refused;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use walpoint_base::nearest::nearest;
use walpoint_base::table::{FromTable, WrongKey};
use walpoint_base::{ClusterName, Diagnostic, ScenarioName};

use super::problem::{Document, Problem};
use super::{ClusterSettings, Config, DaemonSettings, DrillScenario, StreamSettings, drill};
use crate::args::repository_name;
use crate::retention::{LabelSettings, RetentionSettings};

/// What the text says, unless something is wrong with it, and everything that is, in the order of its lines. `closer` looks at the
/// settings of a repository, `closer_cluster` at those of a cluster.
pub(super) fn examine<R: FromTable<Table: DeserializeOwned>>(
    text: &str,
    closer: impl Fn(&R) -> Vec<WrongKey>,
    closer_cluster: impl Fn(&ClusterSettings) -> Vec<WrongKey>,
) -> (Option<Config<R>>, Vec<Problem>) {
    let (root, errors) = DeTable::parse_recoverable(text);
    let root = root.get_ref();
    let mut found = Findings { document: Document { text, root }, problems: Vec::new() };
    for error in &errors {
        // Where the text is no TOML, nothing is known of its tables.
        found.add_at(error.span().map_or(0, |span| span.start), None, None, error.message());
    }
    if !errors.is_empty() {
        return (None, found.problems);
    }
    found.unknown_keys(&[], root, keys_of::<Config<toml::Table>>());
    if root.contains_key("daemon") && found.top("daemon").is_none() {
        found.add(&[], Some("daemon"), "\"daemon\" is not a table\nHINT: Write [daemon].");
    }
    let repository = found.repositories(&closer);
    let cluster = found.clusters();
    let daemon: Option<DaemonSettings> = match found.top("daemon") {
        Some(table) => found.read(&["daemon"], table),
        None => None,
    };
    for (key, what) in daemon.iter().flat_map(DaemonSettings::contradictions) {
        found.add(&["daemon"], Some(key), what);
    }
    let names: Vec<&str> = found.names("repository");
    for (name, settings) in &cluster {
        for (key, what) in settings.contradictions(name, &names, &cluster) {
            found.add(&["cluster", name.as_str()], Some(key), what);
        }
        if let Some(what) = one_place_twice(settings, &repository) {
            found.add(&["cluster", name.as_str()], Some("repositories"), what);
        }
        for wrong in closer_cluster(settings) {
            found.add_wrong(&["cluster", name.as_str()], wrong);
        }
        for (label, key, what) in settings.retention.iter().flat_map(RetentionSettings::contradictions) {
            let tables = ["cluster", name.as_str(), "retention", "label", label.unwrap_or_default()];
            let tables = if label.is_some() { &tables[..] } else { &tables[..3] };
            found.add(tables, Some(key), what);
        }
        for (key, what) in settings.stream.iter().flat_map(StreamSettings::contradictions) {
            found.add(&["cluster", name.as_str(), "stream"], Some(key), what);
        }
        let of_each = settings.drill.iter().flat_map(|(scenario, settings)| {
            settings.contradictions().into_iter().map(move |(key, what)| (scenario, key, what))
        });
        let of_all = drill::shared_reports(&settings.drill).into_iter();
        for (scenario, key, what) in of_each.chain(of_all.map(|(scenario, what)| (scenario, "report", what)))
        {
            found.add(&["cluster", name.as_str(), "drill", scenario.as_str()], Some(key), what);
        }
    }
    let mut problems = found.problems;
    problems.sort_by_key(|problem| problem.line_number);
    let config = Config { repository, cluster, daemon: daemon.unwrap_or_default() };
    (problems.is_empty().then_some(config), problems)
}

/// Two repositories of a cluster that are one: what is stored there would count as stored twice.
fn one_place_twice<R: FromTable>(
    settings: &ClusterSettings,
    repositories: &BTreeMap<String, R>,
) -> Option<String> {
    let mut places: BTreeMap<String, &String> = BTreeMap::new();
    for name in &settings.repositories {
        let Some(place) = repositories.get(name).and_then(R::place) else { continue };
        if let Some(other) = places.insert(place, name).filter(|other| *other != name) {
            return Some(format!(
                "\"repositories\" names \"{other}\" and \"{name}\", which are one place: their tables lead to the same \
                 store\nHINT: Remove one of the two, or correct its \"url\"."
            ));
        }
    }
    None
}

/// What was found so far.
struct Findings<'a> {
    document: Document<'a>,
    problems: Vec<Problem>,
}

impl<'a> Findings<'a> {
    fn add_at(&mut self, offset: usize, table: Option<String>, key: Option<&str>, what: impl Into<String>) {
        let line = self.document.line_at(offset);
        self.problems.push(Problem::new(line, table, key, &Diagnostic::new(what.into())));
    }

    fn add(&mut self, tables: &[&str], key: Option<&str>, what: impl Into<String>) {
        let line = self.document.line(tables, key);
        self.problems.push(Problem::new(line, joined(tables), key, &Diagnostic::new(what.into())));
    }

    fn add_wrong(&mut self, tables: &[&str], wrong: WrongKey) {
        let WrongKey { key, what, hint } = wrong;
        self.add(tables, Some(key), Diagnostic::new(what).hint(hint));
    }

    /// The table of that name at the top.
    fn top(&self, name: &str) -> Option<&'a DeTable<'a>> {
        self.document.root.get(name).and_then(|value| value.get_ref().as_table())
    }

    /// The names of the tables `[of.NAME]`.
    fn names(&self, of: &str) -> Vec<&'a str> {
        let tables = self.top(of).into_iter().flat_map(|table| table.keys());
        tables.map(|name| name.get_ref().as_ref()).collect()
    }

    /// The tables `[of.NAME]`; what is no table is a problem.
    fn tables(&mut self, of: &str) -> Vec<(&'a str, &'a DeTable<'a>)> {
        if self.document.root.contains_key(of) && self.top(of).is_none() {
            self.add(&[], Some(of), format!("\"{of}\" is not a table\nHINT: Write [{of}.NAME]."));
        }
        let mut tables = Vec::new();
        for (name, value) in self.top(of).into_iter().flat_map(|table| table.iter()) {
            let name: &str = name.get_ref().as_ref();
            match value.get_ref().as_table() {
                Some(table) => tables.push((name, table)),
                None => {
                    let what = format!("\"{of}.{name}\" is not a table\nHINT: Write [{of}.NAME].");
                    self.add(&[of, name], None, what);
                }
            }
        }
        tables
    }

    fn repositories<R: FromTable<Table: DeserializeOwned>>(
        &mut self,
        closer: impl Fn(&R) -> Vec<WrongKey>,
    ) -> BTreeMap<String, R> {
        let mut all = BTreeMap::new();
        for (name, table) in self.tables("repository") {
            let tables = ["repository", name];
            if let Err(what) = repository_name(name) {
                self.add(&tables, None, what);
            }
            let mut sound = self.sound::<R::Table>(&tables, table, &[]);
            let settings = loop {
                let Some(keys) = self.whole::<R::Table>(&tables, table, sound.clone()) else { break None };
                match R::from_table(keys) {
                    Ok(settings) => break Some(settings),
                    // Without that key the others show what is wrong with them.
                    Err(wrong) => {
                        let removed = sound.remove(wrong.key).is_some();
                        self.add_wrong(&tables, wrong);
                        if !removed {
                            break None;
                        }
                    }
                }
            };
            let Some(settings) = settings else { continue };
            for wrong in closer(&settings) {
                self.add_wrong(&tables, wrong);
            }
            all.insert(name.to_owned(), settings);
        }
        all
    }

    fn clusters(&mut self) -> BTreeMap<ClusterName, ClusterSettings> {
        let mut all = BTreeMap::new();
        for (name, table) in self.tables("cluster") {
            let tables = ["cluster", name];
            let nested = ["retention", "stream", "drill"];
            let mut sound = self.sound::<ClusterSettings>(&tables, table, &nested);
            let retention = table.get("retention").and_then(|value| value.get_ref().as_table());
            let retention = retention.and_then(|table| {
                sound.remove("retention");
                self.retention(name, table)
            });
            let stream = table.get("stream").and_then(|value| value.get_ref().as_table());
            let stream = stream.and_then(|table| {
                sound.remove("stream");
                self.read::<StreamSettings>(&["cluster", name, "stream"], table)
            });
            let drill = table.get("drill").and_then(|value| value.get_ref().as_table());
            let drill = drill.map(|table| {
                sound.remove("drill");
                self.scenarios(name, table)
            });
            let settings = self.whole::<ClusterSettings>(&tables, table, sound);
            match (name.parse::<ClusterName>(), settings) {
                (Ok(name), Some(settings)) => {
                    let (retention, stream) = (retention.or(settings.retention), stream.or(settings.stream));
                    let drill = drill.unwrap_or_default();
                    all.insert(name, ClusterSettings { retention, stream, drill, ..settings });
                }
                (Ok(_), None) => {}
                (Err(error), _) => self.add(&tables, None, error.to_string()),
            }
        }
        all
    }

    /// What can be read of `[cluster.NAME.retention]` and of the tables below it.
    fn retention(&mut self, cluster: &str, table: &DeTable<'_>) -> Option<RetentionSettings> {
        let tables = ["cluster", cluster, "retention"];
        let mut sound = self.sound::<RetentionSettings>(&tables, table, &["label"]);
        let before = self.problems.len();
        let labels = table.get("label").and_then(|value| value.get_ref().as_table());
        for (label, value) in labels.into_iter().flat_map(|labels| labels.iter()) {
            let label: &str = label.get_ref().as_ref();
            let tables = ["cluster", cluster, "retention", "label", label];
            match value.get_ref().as_table() {
                Some(table) => drop(self.read::<LabelSettings>(&tables, table)),
                None => {
                    let what = format!("\"{label}\" is not a table\nHINT: Write [{}].", tables.join("."));
                    self.add(&tables, None, what);
                }
            }
        }
        if self.problems.len() > before {
            sound.remove("label");
        }
        self.whole(&tables, table, sound)
    }

    /// What can be read of the tables `[cluster.NAME.drill.SCENARIO]`.
    fn scenarios(&mut self, cluster: &str, table: &DeTable<'_>) -> BTreeMap<ScenarioName, DrillScenario> {
        let mut all = BTreeMap::new();
        for (scenario, value) in table.iter() {
            let scenario: &str = scenario.get_ref().as_ref();
            let tables = ["cluster", cluster, "drill", scenario];
            let Some(table) = value.get_ref().as_table() else {
                let drills = tables[..3].join(".");
                let what = format!(
                    "\"{scenario}\" is not a table\nHINT: The drills of a cluster have names: write [{drills}.NAME]."
                );
                self.add(&tables, None, what);
                continue;
            };
            let read = self.read::<DrillScenario>(&tables, table);
            match (scenario.parse::<ScenarioName>(), read) {
                (Ok(name), Some(read)) => drop(all.insert(name, read)),
                (Ok(_), None) => {}
                (Err(error), _) => self.add(&tables, None, error.to_string()),
            }
        }
        all
    }

    fn unknown_keys(&mut self, tables: &[&str], table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let key: &str = key.get_ref().as_ref();
            if !known.contains(&key) {
                let meant = nearest(key, known.iter().copied());
                let meant =
                    meant.map_or(String::new(), |meant| format!("\nHINT: Perhaps you meant \"{meant}\"."));
                self.add(tables, Some(key), format!("unknown key \"{key}\"{meant}"));
            }
        }
    }

    /// The keys of a table that can be read, each by itself. Tables in it that are looked at by themselves are `nested`.
    fn sound<'t, T: DeserializeOwned>(
        &mut self,
        tables: &[&str],
        table: &DeTable<'t>,
        nested: &[&str],
    ) -> DeTable<'t> {
        let known = keys_of::<T>();
        self.unknown_keys(tables, table, known);
        let mut sound = DeTable::new();
        for (key, value) in table.iter() {
            let name: &str = key.get_ref().as_ref();
            if !known.contains(&name) {
                continue;
            }
            let alone = DeTable::from_iter([(key.clone(), value.clone())]);
            match parse::<T>(alone) {
                Err(error)
                    if !(is_missing(&error) || nested.contains(&name) && value.get_ref().is_table()) =>
                {
                    let offset = error.span().map_or(key.span().start, |span| span.start);
                    let what = format!("\"{name}\": {}", readable(error.message()));
                    self.add_at(offset, joined(tables), Some(name), what);
                }
                _ => {
                    sound.insert(key.clone(), value.clone());
                }
            }
        }
        sound
    }

    /// Reads the sound keys of a table together. `None` if it lacks one, be it one that is wrong.
    fn whole<T: DeserializeOwned>(
        &mut self,
        tables: &[&str],
        table: &DeTable<'_>,
        sound: DeTable<'_>,
    ) -> Option<T> {
        let error = match parse::<T>(sound) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let missing = error.message().split('`').nth(1).unwrap_or_default();
        if !is_missing(&error) {
            self.add(tables, None, readable(error.message()));
        } else if !table.contains_key(missing) {
            self.add(tables, None, format!("\"{missing}\" is missing"));
        }
        None
    }

    fn read<T: DeserializeOwned>(&mut self, tables: &[&str], table: &DeTable<'_>) -> Option<T> {
        let sound = self.sound::<T>(tables, table, &[]);
        self.whole(tables, table, sound)
    }
}

/// The name of a table as its heading has it.
fn joined(tables: &[&str]) -> Option<String> {
    (!tables.is_empty()).then(|| tables.join("."))
}

fn parse<T: DeserializeOwned>(table: DeTable<'_>) -> Result<T, toml::de::Error> {
    let value: Spanned<DeValue<'_>> = Spanned::new(0..0, DeValue::Table(table));
    T::deserialize(toml::de::ValueDeserializer::from(value))
}

fn is_missing(error: &toml::de::Error) -> bool {
    error.message().starts_with("missing field ")
}

/// What a library says of a value, in words that the pages use for values.
fn readable(message: &str) -> String {
    const WORDS: [(&str, &str); 7] = [
        ("expected usize", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected i32", "expected a whole number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
        ("expected path string", "expected a path"),
    ];
    WORDS.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to)).replace('`', "\"")
}

/// The keys of a table, as its type declares them.
fn keys_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut keys: &'static [&'static str] = &[];
    // It is asked for its declaration and given no value.
    T::deserialize(Declaration(&mut keys)).err();
    keys
}

struct Declaration<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Declaration<'_> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        Err(Refused::custom("no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Refused> {
        *self.0 = fields;
        Err(Refused::custom("no value"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}
