//! The command line of `update`, turned into the document that `-r` would name.

use std::path::PathBuf;

use lexopt::prelude::*;
use serde_json::{Map, Value};

use super::super::{CommandError, parse_id, text_value, usage};
use crate::state::ContainerId;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) id: ContainerId,
    /// `-r`; then every other flag of a limit is ignored, as runc does.
    pub(super) document: Option<PathBuf>,
    /// A resources document made of the flags.
    pub(super) changes: Value,
    pub(super) l3_cache_schema: Option<String>,
    pub(super) memory_bandwidth_schema: Option<String>,
}

/// What a flag's value is.
#[derive(Clone, Copy)]
enum Form {
    /// Bytes with an optional unit, -1 for no limit.
    Bytes,
    Unsigned,
    Signed,
    Text,
}

/// Flag, object and field of the document, form of the value.
const FLAGS: [(&str, &str, &str, Form); 18] = [
    ("memory", "memory", "limit", Form::Bytes),
    ("memory-swap", "memory", "swap", Form::Bytes),
    ("memory-reservation", "memory", "reservation", Form::Bytes),
    ("kernel-memory", "memory", "kernel", Form::Bytes),
    ("kernel-memory-tcp", "memory", "kernelTCP", Form::Bytes),
    ("pids-limit", "pids", "limit", Form::Signed),
    ("cpu-share", "cpu", "shares", Form::Unsigned),
    ("cpu-shares", "cpu", "shares", Form::Unsigned),
    ("cpu-quota", "cpu", "quota", Form::Signed),
    ("cpu-period", "cpu", "period", Form::Unsigned),
    ("cpu-burst", "cpu", "burst", Form::Unsigned),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime", Form::Signed),
    ("cpu-rt-period", "cpu", "realtimePeriod", Form::Unsigned),
    ("cpu-idle", "cpu", "idle", Form::Signed),
    ("cpuset-cpus", "cpu", "cpus", Form::Text),
    ("cpuset-mems", "cpu", "mems", Form::Text),
    ("blkio-weight", "blockIO", "weight", Form::Unsigned),
    ("blkio-leaf-weight", "blockIO", "leafWeight", Form::Unsigned),
];

impl Options {
    pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Options, CommandError> {
        let (mut id, mut document) = (None, None);
        let (mut l3_cache_schema, mut memory_bandwidth_schema) = (None, None);
        let mut changes: Map<String, Value> = Map::new();
        while let Some(argument) = parser.next()? {
            match argument {
                Short('r') | Long("resources") => document = Some(PathBuf::from(parser.value()?)),
                Long("l3-cache-schema") => {
                    l3_cache_schema = Some(text_value(parser, "l3-cache-schema")?);
                }
                Long("mem-bw-schema") => {
                    memory_bandwidth_schema = Some(text_value(parser, "mem-bw-schema")?);
                }
                Long(name) => {
                    let flag = FLAGS.iter().find(|flag| flag.0 == name);
                    let Some((name, object, field, form)) = flag else {
                        return Err(Long(name).unexpected().into());
                    };
                    let text = text_value(parser, name)?;
                    // An empty value is no value, as with runc.
                    if !text.is_empty() {
                        let fields = changes
                            .entry(*object)
                            .or_insert_with(|| Value::Object(Map::new()));
                        fields[*field] = form.read(name, &text)?;
                    }
                }
                Value(value) if id.is_none() => id = Some(value),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Options {
            id: parse_id(id)?,
            document,
            changes: Value::Object(changes),
            l3_cache_schema,
            memory_bandwidth_schema,
        })
    }
}

impl Form {
    fn read(self, flag: &str, text: &str) -> Result<Value, CommandError> {
        let value = match self {
            Form::Bytes => parse_bytes(text).map(Value::from),
            Form::Unsigned => text.parse::<u64>().ok().map(Value::from),
            Form::Signed => text.parse::<i64>().ok().map(Value::from),
            Form::Text => Some(Value::from(text)),
        };
        value.ok_or_else(|| usage(format!("invalid value for --{flag}: {text:?}")))
    }
}

/// Bytes as runc takes them: `-1`, or a number, decimals allowed, with a unit of powers of 1024 (`k`, `MB`,
/// `GiB`, in any case, after an optional space).
fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    let scale = 1i64 << power;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let whole: i64 = whole.parse().ok()?;
    // Three places after the point are more than anybody writes; what is below a byte is left out.
    let places = u32::try_from(part.len()).ok().filter(|p| *p <= 9)?;
    let part: i64 = if part.is_empty() {
        0
    } else {
        part.parse().ok()?
    };
    let below = i128::from(part) * i128::from(scale) / i128::from(10i64.pow(places));
    whole
        .checked_mul(scale)?
        .checked_add(i64::try_from(below).ok()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, CommandError> {
        Options::parse(&mut lexopt::Parser::from_args(arguments))
    }

    #[test]
    fn bytes_have_binary_units() {
        for (text, bytes) in [
            ("-1", Some(-1)),
            ("0", Some(0)),
            ("50M", Some(50 << 20)),
            ("67108864", Some(67_108_864)),
            ("1.5g", Some(3 << 29)),
            ("2 KiB", Some(2048)),
            ("7b", Some(7)),
            ("", None),
            ("M", None),
            ("-2", None),
            ("1x", None),
            ("1..5k", None),
            ("9223372036854775808", None),
            ("9999999P", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
    }

    #[test]
    fn flags_become_a_document_on_both_sides_of_the_id() {
        let options = parse(&[
            "--memory",
            "50M",
            "box",
            "--memory-swap=-1",
            "--cpu-share",
            "7",
            "--cpuset-cpus",
            "0-1",
            "--pids-limit",
            "-1",
            "--cpu-idle",
            "1",
            "--cpu-quota",
            "",
            "--blkio-weight",
            "9",
        ])
        .unwrap();
        assert_eq!(options.id.as_str(), "box");
        assert_eq!(
            options.changes,
            json!({"memory": {"limit": 52_428_800, "swap": -1},
                   "cpu": {"shares": 7, "cpus": "0-1", "idle": 1},
                   "pids": {"limit": -1}, "blockIO": {"weight": 9}})
        );
        assert!(
            parse(&["box", "--cpu-quota", "x"])
                .unwrap_err()
                .to_string()
                .contains("--cpu-quota")
        );
        assert!(parse(&["box", "--cpu-period", "-5"]).is_err());
        assert!(parse(&["box", "--unknown", "1"]).is_err());
        assert!(parse(&["--memory", "1"]).is_err());
    }
}
