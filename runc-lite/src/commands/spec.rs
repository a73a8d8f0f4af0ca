//! `spec`: write a config.json to begin with.

use std::io::Write;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use serde_json::{Value, json};

use super::{CommandError, io_error, refused};
use crate::cgroup::Hierarchies;

const DOCUMENT: &str = include_str!("spec.json");

pub(super) fn run(parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let (mut bundle, mut rootless) = (PathBuf::from("."), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('b') | Long("bundle") => bundle = PathBuf::from(parser.value()?),
            Long("rootless") => rootless = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let mut document = document()?;
    if rootless {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        make_rootless(&mut document, uid.as_raw(), gid.as_raw());
    }
    write(&bundle.join("config.json"), &document)
}

/// The document for this host.
fn document() -> Result<Value, CommandError> {
    let fail = |e: serde_json::Error| io_error("read", "the built-in document", e.into());
    let mut document: Value = serde_json::from_str(DOCUMENT).map_err(fail)?;
    // With cgroup v1 the mounts of the host's hierarchies are what programs know, as with runc.
    if Hierarchies::of_this_host().is_ok_and(|found| found.version() != Some(2)) {
        retain(&mut document["linux"]["namespaces"], |namespace| {
            namespace["type"] != "cgroup"
        });
    }
    Ok(document)
}

/// Changes the document for a runtime without privileges: a user namespace with the caller as root, the
/// caller's network, and nothing that needs another user or a cgroup.
fn make_rootless(document: &mut Value, uid: u32, gid: u32) {
    let mapping = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    let linux = &mut document["linux"];
    retain(&mut linux["namespaces"], |namespace| {
        namespace["type"] != "network"
    });
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
    linux["uidMappings"] = mapping(uid);
    linux["gidMappings"] = mapping(gid);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    for mount in document["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            // A new sysfs needs a network namespace of its own.
            *mount = json!({
                "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]
            });
        }
        let Some(options) = mount.get_mut("options") else {
            continue;
        };
        retain(options, |option| {
            !option
                .as_str()
                .is_some_and(|text| text.starts_with("uid=") || text.starts_with("gid="))
        });
    }
}

fn retain(list: &mut Value, keep: impl Fn(&Value) -> bool) {
    if let Some(list) = list.as_array_mut() {
        list.retain(keep);
    }
}

fn write(path: &Path, document: &Value) -> Result<(), CommandError> {
    let object = || path.display().to_string();
    let text = serde_json::to_string_pretty(document)
        .map_err(|e| io_error("write", object(), e.into()))?;
    // Never over a document that is there.
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all((text + "\n").as_bytes()));
    written.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            refused(format!("file {} exists, remove it first", object()))
        }
        _ => io_error("write", object(), e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(document: Value) {
        let config = serde_json::from_value(document).unwrap();
        let mut warnings = Vec::new();
        crate::spec::plan(config, &mut warnings).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn the_document_is_one_this_runtime_takes() {
        accept(document().unwrap());
    }

    #[test]
    fn a_rootless_document_maps_the_caller_and_asks_for_nothing_it_may_not_have() {
        let mut document = document().unwrap();
        make_rootless(&mut document, 1000, 100);
        let linux = &document["linux"];
        assert_eq!(linux["uidMappings"][0]["hostID"], 1000);
        assert_eq!(linux["gidMappings"][0]["hostID"], 100);
        assert!(linux.get("resources").is_none());
        let text = document.to_string();
        assert!(!text.contains("network") && !text.contains("gid="));
    }
}
