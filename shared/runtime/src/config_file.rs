//! The value of `--config` and of its variable.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, Command};

/// A file's path. Only a variable may be empty, which counts as one that is not set (`CommonArgs::given_config`).
#[derive(Debug, Clone)]
pub(crate) struct ConfigFile;

impl TypedValueParser for ConfigFile {
    type Value = PathBuf;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<PathBuf, clap::Error> {
        PathBufValueParser::new().parse_ref(command, argument, value)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<PathBuf, clap::Error> {
        match source == ValueSource::EnvVariable && value.is_empty() {
            true => Ok(PathBuf::new()),
            false => self.parse_ref(command, argument, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::CommonArgs;

    #[derive(Debug, clap::Parser)]
    struct Program {
        #[command(flatten)]
        common: CommonArgs,
    }

    #[test]
    fn an_empty_variable_names_no_configuration_and_an_empty_option_is_refused() {
        let parser = ConfigFile;
        let (command, empty) = (Program::command(), OsStr::new(""));
        let parsed = |source| parser.parse_ref_(&command, None, empty, source);
        assert_eq!(parsed(ValueSource::EnvVariable).unwrap(), PathBuf::new());
        assert!(parsed(ValueSource::CommandLine).is_err());
        assert!(Program::try_parse_from(["program", "--config", ""]).is_err());
        let given = Program::try_parse_from(["program", "--config", "/etc/c"]).unwrap().common;
        assert_eq!(given.given_config(), Some(Path::new("/etc/c")));
        let unset = CommonArgs { config: Some(PathBuf::new()), ..CommonArgs::default() };
        assert_eq!(unset.given_config(), None);
    }
}
