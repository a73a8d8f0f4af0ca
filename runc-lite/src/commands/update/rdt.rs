//! Intel RDT schemata of a container that has a group of its own.

use std::path::PathBuf;

use serde_json::Value;

use super::super::{CommandError, io_error, refused};
use super::options::Options;

const RESCTRL: &str = "/sys/fs/resctrl";

/// What to write where.
#[derive(Debug, Default)]
pub(super) struct Change {
    schemata: PathBuf,
    lines: Vec<String>,
}

impl Change {
    /// Checks what the flags ask for.
    pub(super) fn plan(
        options: &Options,
        config: &Value,
        id: &str,
    ) -> Result<Change, CommandError> {
        let enabled = |resource: &str| {
            let info = PathBuf::from(RESCTRL).join("info").join(resource);
            info.is_dir()
        };
        if options.l3_cache_schema.is_some() && !enabled("L3") {
            return Err(refused("Intel RDT/CAT: l3 cache schema is not enabled"));
        }
        if options.memory_bandwidth_schema.is_some() && !enabled("MB") {
            return Err(refused(
                "Intel RDT/MBA: memory bandwidth schema is not enabled",
            ));
        }
        let lines: Vec<String> = [&options.l3_cache_schema, &options.memory_bandwidth_schema]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        if lines.is_empty() {
            return Ok(Change::default());
        }
        let Some(settings) = config.pointer("/linux/intelRdt").filter(|v| v.is_object()) else {
            return Err(refused(
                "updating a non-existent Intel RDT configuration is not supported",
            ));
        };
        let group = settings.get("closID").and_then(Value::as_str);
        let group = group.filter(|name| !name.is_empty()).unwrap_or(id);
        if group.contains('/') || group == ".." {
            return Err(refused(format!(
                "linux.intelRdt.closID: {group:?} is no name"
            )));
        }
        Ok(Change {
            schemata: PathBuf::from(RESCTRL).join(group).join("schemata"),
            lines,
        })
    }

    /// Writes the schemata, a line at a time as the kernel takes them.
    pub(super) fn write(&self) -> Result<(), CommandError> {
        for line in &self.lines {
            let opened = std::fs::OpenOptions::new().write(true).open(&self.schemata);
            opened
                .and_then(|mut file| {
                    std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes())
                })
                .map_err(|e| io_error("write", self.schemata.display().to_string(), e))?;
        }
        Ok(())
    }
}
