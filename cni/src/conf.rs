//! Conflists: parsing, protocol versions, validation. Pure but for the file that is read.

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::atomic;

/// A configuration file larger than this is a mistake.
const MAX_CONF_BYTES: u64 = 1 << 20;
const MAX_PLUGINS: usize = 64;

/// Why a network configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The file or directory could not be read.
    #[error("cannot read {path}")]
    File {
        /// What was read.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is no JSON object.
    #[error("{path} is not JSON")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// A field is missing or wrong.
    #[error("{path}: field {field} is {value}: {reason}")]
    Field {
        /// The file.
        path: PathBuf,
        /// Which field, with the index of its plugin.
        field: String,
        /// What it was, as JSON; "missing" when it was not there.
        value: String,
        /// What it should be.
        reason: &'static str,
    },
}

/// The protocol versions axil speaks, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(crate) fn parse(text: &str) -> Option<Version> {
        match text {
            "0.3.0" => Some(Version::V0_3_0),
            "0.3.1" => Some(Version::V0_3_1),
            "0.4.0" => Some(Version::V0_4_0),
            "1.0.0" => Some(Version::V1_0_0),
            "1.1.0" => Some(Version::V1_1_0),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        })
    }
}

/// A checked network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conflist {
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<PluginConf>,
    /// The list as it was read, for the record.
    pub(crate) raw: Value,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginConf {
    pub(crate) kind: String,
    pub(crate) capabilities: BTreeSet<String>,
    pub(crate) raw: Map<String, Value>,
}

impl Conflist {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Conflist, ConfError> {
        let content = atomic::read(path, MAX_CONF_BYTES).map_err(|source| ConfError::File {
            path: path.into(),
            source,
        })?;
        let value = serde_json::from_slice(&content).map_err(|source| ConfError::Json {
            path: path.into(),
            source,
        })?;
        Conflist::parse(path, value)
    }

    /// Checks a configuration; `path` is for messages and its extension. A single plugin (the
    /// `.conf` form) becomes a list of one.
    pub(crate) fn parse(path: &Path, value: Value) -> Result<Conflist, ConfError> {
        let fields = Fields {
            path,
            object: &value,
            prefix: String::new(),
        };
        let single = value.get("plugins").is_none()
            && path
                .extension()
                .is_none_or(|extension| extension != "conflist");
        let entries = if single {
            vec![value.clone()]
        } else {
            let plugins = value.get("plugins").and_then(Value::as_array);
            plugins
                .cloned()
                .ok_or_else(|| fields.wrong("plugins", "must be a list of plugins"))?
        };
        if entries.is_empty() || entries.len() > MAX_PLUGINS {
            return Err(fields.wrong("plugins", "must have 1 to 64 plugins"));
        }
        let plugins = entries.into_iter().enumerate().map(|(index, entry)| {
            let prefix = if single {
                String::new()
            } else {
                format!("plugins[{index}].")
            };
            parse_plugin(path, prefix, entry)
        });
        Ok(Conflist {
            name: parse_name(&fields)?,
            version: parse_version(&fields)?,
            disable_check: fields.flag("disableCheck")?,
            disable_gc: fields.flag("disableGC")?,
            plugins: plugins.collect::<Result<_, _>>()?,
            raw: value,
        })
    }
}

fn parse_plugin(path: &Path, prefix: String, entry: Value) -> Result<PluginConf, ConfError> {
    let fields = Fields {
        path,
        object: &entry,
        prefix,
    };
    let kind = fields.text("type")?.to_owned();
    // The type becomes a file name below the plugin directories (CVE-2021-20206).
    if !is_word(&kind) || kind.len() > 128 {
        return Err(fields.wrong("type", "must be a plain file name of A-Z a-z 0-9 _ . -"));
    }
    let capabilities = match entry.get("capabilities") {
        None | Some(Value::Null) => BTreeSet::new(),
        Some(Value::Object(map)) => {
            let wanted = map
                .iter()
                .filter(|(_, wanted)| **wanted == Value::Bool(true));
            wanted.map(|(name, _)| name.clone()).collect()
        }
        Some(_) => return Err(fields.wrong("capabilities", "must be an object of booleans")),
    };
    match entry {
        Value::Object(raw) => Ok(PluginConf {
            kind,
            capabilities,
            raw,
        }),
        _ => unreachable!("text() found a field in it"),
    }
}

fn parse_name(fields: &Fields<'_>) -> Result<String, ConfError> {
    let name = fields.text("name")?;
    if !is_word(name) || name.len() > 128 {
        let reason = "must be 1 to 128 of A-Z a-z 0-9 _ . -, beginning with a letter or digit";
        return Err(fields.wrong("name", reason));
    }
    Ok(name.to_owned())
}

/// The highest version that both sides speak, of `cniVersion` and (since 1.1) `cniVersions`.
fn parse_version(fields: &Fields<'_>) -> Result<Version, ConfError> {
    let one = fields.object.get("cniVersion");
    if one.is_some_and(|version| !version.is_string()) {
        return Err(fields.wrong("cniVersion", "must be a string"));
    }
    let many = match fields.object.get("cniVersions") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(many)) => many,
        Some(_) => return Err(fields.wrong("cniVersions", "must be a list of strings")),
    };
    let spoken = one
        .into_iter()
        .chain(many)
        .filter_map(Value::as_str)
        .filter_map(Version::parse);
    spoken
        .max()
        .ok_or_else(|| fields.wrong("cniVersion", "must be one of 0.3.0 to 1.1.0"))
}

/// The names of networks and plugins: CNI's own rule for network names.
fn is_word(text: &str) -> bool {
    let starts = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    starts
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

struct Fields<'a> {
    path: &'a Path,
    object: &'a Value,
    prefix: String,
}

impl Fields<'_> {
    fn text(&self, field: &str) -> Result<&str, ConfError> {
        let text = self.object.get(field).and_then(Value::as_str);
        text.ok_or_else(|| self.wrong(field, "must be a string"))
    }

    /// A boolean, which old configurations write as a string.
    fn flag(&self, field: &str) -> Result<bool, ConfError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(self.wrong(field, "must be a boolean")),
        }
    }

    fn wrong(&self, field: &str, reason: &'static str) -> ConfError {
        const SHOWN: usize = 200;
        let value = self.object.get(field);
        let value = value.map_or_else(|| "missing".to_owned(), Value::to_string);
        ConfError::Field {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.prefix),
            value: value.chars().take(SHOWN).collect(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(name: &str, value: Value) -> Result<Conflist, String> {
        Conflist::parse(Path::new(name), value).map_err(|error| error.to_string())
    }

    fn check_fault(value: Value, fault: &str) {
        let error = parse("10-x.conflist", value.clone()).expect_err(&value.to_string());
        assert!(error.contains(fault), "{error}");
    }

    #[test]
    fn a_list_and_a_single_plugin() {
        let list = parse(
            "a.conflist",
            json!({"cniVersion": "1.0.0", "name": "net", "disableCheck": "true", "plugins": [
                {"type": "bridge", "bridge": "cni0"},
                {"type": "portmap", "capabilities": {"portMappings": true, "dns": false}}]}),
        );
        let list = list.unwrap();
        assert_eq!((list.version, list.disable_check), (Version::V1_0_0, true));
        assert_eq!(
            list.plugins[1].capabilities,
            BTreeSet::from(["portMappings".to_owned()])
        );
        let single = json!({"cniVersion": "0.4.0", "name": "net", "type": "ptp"});
        assert_eq!(parse("a.conf", single).unwrap().plugins[0].kind, "ptp");
    }

    #[test]
    fn the_highest_common_version_counts() {
        let check = |one: Value, many: Value, expect: Option<Version>| {
            let value = json!({"cniVersion": one, "cniVersions": many, "name": "n", "plugins": [{"type": "x"}]});
            assert_eq!(
                parse("a.conflist", value).ok().map(|list| list.version),
                expect
            );
        };
        check(json!("0.3.1"), Value::Null, Some(Version::V0_3_1));
        check(
            json!("0.4.0"),
            json!(["1.1.0", "9.0.0", "1.0.0"]),
            Some(Version::V1_1_0),
        );
        check(json!("9.0.0"), json!(["1.0.0"]), Some(Version::V1_0_0));
        check(json!("0.2.0"), Value::Null, None);
        check(json!(1), Value::Null, None);
        check(json!("1.0.0"), json!("1.1.0"), None);
    }

    #[test]
    fn cve_2021_20206_types_are_plain_names() {
        for kind in [
            "../../bin/sh",
            "/bin/sh",
            "",
            ".",
            "..",
            "a/b",
            "a\0",
            "-x",
            "a b",
        ] {
            let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": kind}]});
            check_fault(list, "plugins[0].type");
        }
    }

    #[test]
    fn faults_name_the_field() {
        check_fault(json!([]), "plugins");
        check_fault(
            json!({"name": "n", "cniVersion": "1.0.0", "plugins": []}),
            "1 to 64",
        );
        check_fault(
            json!({"name": "../n", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}),
            "name",
        );
        check_fault(
            json!({"name": "n", "plugins": [{"type": "x"}]}),
            "cniVersion is missing",
        );
        check_fault(
            json!({"name": "n", "cniVersion": "1.0.0", "plugins": [7]}),
            "plugins[0].type",
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,200}") {
            if let Ok(value) = serde_json::from_str(&text) {
                let _ = Conflist::parse(Path::new("x.conflist"), value);
            }
        }
    }
}
