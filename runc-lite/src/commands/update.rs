//! `update`: change limits of a container that runs. Only what is given changes; what cannot be written
//! leaves everything as it was.

mod merge;
mod options;
mod rdt;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use super::{CommandError, Globals, io_error, refused};
use crate::cgroup::{Change, Driver};
use crate::config::Resources;
use crate::container::{Container, Status};
use crate::state::{CONFIG_FILE, RESOURCES_FILE};
use options::Options;

/// Bound of a resources document.
const MAX_DOCUMENT: u64 = 1 << 20;

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let options = Options::parse(parser)?;
    let container = Container::open(&globals.root, &options.id)?;
    let not_running = || refused("container not running");
    if matches!(container.status(), Status::Stopped | Status::Creating) {
        return Err(not_running());
    }
    let group = container.cgroup().ok_or_else(not_running)?;
    let mut patch = match &options.document {
        Some(path) => read_document(path)?,
        None => options.changes.clone(),
    };
    let _lock = lock(&container)?;
    let config = read_json(&container, CONFIG_FILE)?.unwrap_or_default();
    let before = match read_json(&container, RESOURCES_FILE)? {
        Some(before) => before,
        None => config
            .pointer("/linux/resources")
            .cloned()
            .unwrap_or_default(),
    };
    // Callers send a container's whole resources back to change one limit. The device rules among them are
    // a change only when they differ: others may have added to what is in force since (GPU plugins do).
    if patch.get("devices") == before.get("devices")
        && let Some(fields) = patch.as_object_mut()
    {
        fields.remove("devices");
    }
    let merged = merge::merge(before.clone(), patch.clone());
    let asked = resources(patch)?;
    let known = resources(merged.clone())?;
    let earlier = resources(if before.is_null() {
        Value::Object(serde_json::Map::new())
    } else {
        before.clone()
    })?;
    crate::spec::check_resources(&asked)?;
    let rdt = rdt::Change::plan(&options, container.record.resctrl.as_ref())?;

    // Order: the record has what is asked for before the kernel has, and what was before when it refuses.
    store(&container, &merged)?;
    let mut warnings = Vec::new();
    let change = Change {
        asked: &asked,
        known: &known,
        before: &earlier,
    };
    let mut done = rdt.as_ref().map_or(Ok(()), |rdt| rdt.write(&mut warnings));
    if done.is_ok() {
        done = group
            .update(change, &mut warnings)
            .map_err(CommandError::from);
        if let (Err(_), Some(rdt)) = (&done, &rdt) {
            rdt.take_back(&mut warnings);
        }
    }
    for warning in &warnings {
        globals.log.warn(warning);
        // runc's callers read this one; it says which of two wishes was left out.
        if globals.cgroup_driver == Driver::Systemd && warning.contains("unable to apply both") {
            let _ = writeln!(std::io::stderr(), "{warning}");
        }
    }
    if done.is_err() {
        store(&container, &before)?;
    }
    done
}

fn resources(document: Value) -> Result<Resources, CommandError> {
    serde_json::from_value(document).map_err(|e| io_error("read", "the resources", e.into()))
}

fn read_document(path: &std::path::Path) -> Result<Value, CommandError> {
    let object = path.display().to_string();
    let fail = |e: std::io::Error| io_error("read", object.clone(), e);
    let mut bytes = Vec::new();
    let source: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).map_err(fail)?)
    };
    source
        .take(MAX_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_DOCUMENT {
        return Err(refused(format!(
            "{object} is longer than {MAX_DOCUMENT} bytes"
        )));
    }
    let document: Value = serde_json::from_slice(&bytes).map_err(|e| fail(e.into()))?;
    if document.is_object() {
        Ok(document)
    } else {
        Err(refused(format!("{object} holds no JSON object")))
    }
}

fn read_json(container: &Container, name: &str) -> Result<Option<Value>, CommandError> {
    let Some(bytes) = container.directory.read(name)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| io_error("read", name, e.into()))
}

fn store(container: &Container, resources: &Value) -> Result<(), CommandError> {
    Ok(container
        .directory
        .write(RESOURCES_FILE, resources.to_string().as_bytes())?)
}

/// Keeps other updates of this container out. Not by the directory's own lock: a start may hold that for long.
fn lock(container: &Container) -> Result<OwnedFd, CommandError> {
    let fail = |e: std::io::Error| io_error("lock", "the container's document", e);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(container.directory.fd(), CONFIG_FILE, flags, Mode::empty())
        .map_err(|e| fail(e.into()))?;
    match crate::state::lock(&file) {
        Ok(true) => Ok(file),
        Ok(false) => Err(refused(format!(
            "container {:?} is busy: another process is updating it",
            container.record.id
        ))),
        Err(e) => Err(fail(e.into())),
    }
}
