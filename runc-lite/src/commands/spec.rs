//! `spec`: write a config.json to begin with.

use std::io::Write;
use std::path::PathBuf;

use lexopt::prelude::*;

use super::{CommandError, io_error};

const DOCUMENT: &str = include_str!("spec.json");

pub(super) fn run(parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let mut bundle = PathBuf::from(".");
    while let Some(argument) = parser.next()? {
        match argument {
            Short('b') | Long("bundle") => bundle = PathBuf::from(parser.value()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let path = bundle.join("config.json");
    // Never over a document that is there.
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(DOCUMENT.as_bytes()))
        .map_err(|e| io_error("write", path.display().to_string(), e))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_document_is_one_this_runtime_takes() {
        let config = serde_json::from_str(super::DOCUMENT).unwrap();
        let mut warnings = Vec::new();
        crate::spec::plan(config, &mut warnings).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
    }
}
