//! What the logging URI's query asks for, as the argv pairs the shim makes of it.

use std::ffi::OsString;
use std::path::PathBuf;

/// The smallest size a log file can be limited to: room for the longest record and a notice.
pub const MIN_FILE_BYTES: u64 = 32 * 1024;
const DEFAULT_FILE_BYTES: u64 = 10 * 1024 * 1024;
const DEFAULT_FILES: u32 = 3;
const MAX_FILES: u32 = 1000;

/// Where to log and how much to keep.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// The folder of `current.log`; made if absent.
    pub dir: PathBuf,
    /// No log file grows beyond this many bytes.
    pub max_bytes: u64,
    /// How many files to keep, `current.log` counted.
    pub max_files: u32,
    /// The file that says until when the container may run, if it may not always.
    pub lease: Option<PathBuf>,
}

impl Config {
    /// Reads `dir`, `max_bytes`, `max_files` and `lease` in any order. Unknown keys are passed over, and a
    /// number that makes no sense falls back to the default: a container must not stay
    /// without its logger over a setting.
    pub fn from_pairs(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let (mut dir, mut lease) = (PathBuf::new(), None);
        let (mut max_bytes, mut max_files) = (DEFAULT_FILE_BYTES, DEFAULT_FILES);
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            match key.to_str() {
                Some("dir") => dir = PathBuf::from(value),
                Some("lease") => lease = Some(PathBuf::from(value)),
                Some("max_bytes") => max_bytes = positive(&value).unwrap_or(DEFAULT_FILE_BYTES),
                Some("max_files") => {
                    max_files = positive(&value).and_then(|n| u32::try_from(n).ok()).unwrap_or(DEFAULT_FILES);
                }
                _ => {}
            }
        }
        if !dir.is_absolute() {
            return Err("needs `dir` with an absolute path".to_owned());
        }
        Ok(Self { dir, max_bytes: max_bytes.max(MIN_FILE_BYTES), max_files: max_files.min(MAX_FILES), lease })
    }
}

fn positive(value: &std::ffi::OsStr) -> Option<u64> {
    value.to_str()?.parse().ok().filter(|&number| number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Config, String> {
        Config::from_pairs(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn pairs_come_in_any_order_with_strangers_between() {
        let expected = Config { dir: "/x".into(), max_bytes: 1_048_576, max_files: 5, lease: None };
        for words in ["dir /x max_bytes 1048576 max_files 5", "max_files 5 colour red max_bytes 1048576 dir /x"] {
            assert_eq!(parse(words).as_ref(), Ok(&expected), "{words}");
        }
    }

    #[test]
    fn nonsense_numbers_become_defaults_and_tiny_ones_the_minimum() {
        let expected =
            Config { dir: "/x".into(), max_bytes: DEFAULT_FILE_BYTES, max_files: DEFAULT_FILES, lease: None };
        for words in ["dir /x", "dir /x max_bytes 0 max_files -1", "dir /x max_bytes ten max_files 99999999999"] {
            assert_eq!(parse(words).as_ref(), Ok(&expected), "{words}");
        }
        assert_eq!(parse("dir /x max_bytes 1").map(|config| config.max_bytes), Ok(MIN_FILE_BYTES));
    }

    #[test]
    fn a_lease_is_where_it_is_said_to_be() {
        assert_eq!(parse("lease /run/x/lease dir /x").map(|config| config.lease), Ok(Some("/run/x/lease".into())));
    }

    #[test]
    fn a_missing_or_relative_dir_is_refused() {
        for words in ["", "max_files 3", "dir", "dir logs"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
