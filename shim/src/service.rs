//! The ttrpc services: convert, call the pod, convert back.

pub mod axil;
pub mod sandbox;
pub mod task;

use axil_proto::shim::options::Options;
use prost::Message as _;
use prost_types::Any;

use crate::error::VerbError;

/// The full name of runc-style options.
const OPTIONS_NAME: &str = "containerd.runc.v1.Options";

/// Reads the options of a request. None are defaults.
fn parse_options(options: Option<&Any>) -> Result<Options, VerbError> {
    let Some(options) = options.filter(|o| !o.type_url.is_empty() || !o.value.is_empty()) else {
        return Ok(Options::default());
    };
    let error = |reason: String| VerbError::Field {
        field: "options",
        reason,
        value: options.type_url.clone(),
    };
    // The name follows the last slash, whatever the prefix.
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    if name != OPTIONS_NAME {
        return Err(error(format!("must be of type {OPTIONS_NAME}")));
    }
    Options::decode(options.value.as_slice()).map_err(|e| error(format!("cannot be decoded: {e}")))
}

/// Checks the id of a new container or sandbox, which becomes part of paths.
fn check_id(field: &'static str, id: &str) -> Result<String, VerbError> {
    match id.parse::<axil_proto::ids::ContainerId>() {
        Ok(id) => Ok(id.to_string()),
        Err(error) => Err(VerbError::Field {
            field,
            reason: error.to_string(),
            value: id.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_with_any_prefix() {
        let value = Options {
            binary_name: "runc".into(),
            ..Options::default()
        };
        for prefix in ["", "type.googleapis.com/"] {
            let any = Any {
                type_url: format!("{prefix}{OPTIONS_NAME}"),
                value: value.encode_to_vec(),
            };
            assert_eq!(parse_options(Some(&any)).unwrap(), value);
        }
        assert_eq!(parse_options(None).unwrap(), Options::default());
        let other = Any {
            type_url: "x.Other".into(),
            value: Vec::new(),
        };
        assert!(
            parse_options(Some(&other))
                .unwrap_err()
                .to_string()
                .contains("x.Other")
        );
    }
}
