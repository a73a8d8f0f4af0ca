//! Devices of the Container Device Interface: what they are called, and which of a node's documents speaks for a
//! device. What a document can say is in `cdi/document.rs`; reading documents and looking at devices is not here
//! (`daemon/src/host/cdi.rs`).
//!
//! ```text
//! name    = kind "=" device
//! kind    = vendor "/" class      letters, digits and . - _ ; begins with a letter, ends with a letter or digit
//! device  = likewise and ":"      begins and ends with a letter or digit
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::container::oci::DeviceKind;

mod document;

pub use document::{CdiDocument, ContainerEdits, DocumentError, HookEdit, IntelRdt, MountEdit};

/// What the names of annotations that ask for devices begin with.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// Longest name, in bytes; the specification has no bound.
const MAX_NAME: usize = 512;

/// The full name of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    kind: String,
    device: String,
}

impl FromStr for DeviceName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_NAME {
            return Err("longer than 512 bytes");
        }
        let (kind, device) = text
            .split_once('=')
            .ok_or("is not of the form vendor/class=device")?;
        check_kind(kind)?;
        check_device(device)?;
        Ok(Self {
            kind: kind.to_owned(),
            device: device.to_owned(),
        })
    }
}

impl TryFrom<String> for DeviceName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind
        .split_once('/')
        .ok_or("has no kind of the form vendor/class")?;
    for part in [vendor, class] {
        if !part.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err("vendor and class begin with a letter");
        }
        check_word(part, "._-")
            .map_err(|()| "vendor and class are of letters, digits and . - _ and end with one of the first two")?;
    }
    Ok(())
}

fn check_device(device: &str) -> Result<(), &'static str> {
    check_word(device, "._-:").map_err(|()| {
        "the device is of letters, digits and . - _ : and begins and ends with one of the first two"
    })
}

fn check_word(word: &str, more: &str) -> Result<(), ()> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let fits = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    let sound =
        edge(word.chars().next()) && edge(word.chars().next_back()) && word.chars().all(fits);
    if sound { Ok(()) } else { Err(()) }
}

/// The devices that annotations of a container ask for, each with the annotation, in the order of those. Such
/// annotations are of device plugins: the kubelet copies none of a pod's to its containers, and those of images
/// are never looked at.
pub fn named_in(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let ours = annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX));
    ours.flat_map(|(key, value)| value.split(',').map(move |name| (key.as_str(), name)))
}

/// A sound document of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Number of its directory; a later one wins.
    pub priority: usize,
    /// What it says.
    pub document: CdiDocument,
}

/// Why a device is not had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No document has it.
    #[error("CDI device \"{name}\" is in no sound document")]
    Unknown {
        /// The device.
        name: DeviceName,
    },
    /// Two documents of one directory have it.
    #[error("CDI device \"{name}\" is both in {} and in {}", first.display(), second.display())]
    Conflict {
        /// The device.
        name: DeviceName,
        /// A document.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
}

/// What these devices change of a container: for each what its document changes for all of its devices, once, and
/// then what the device does.
///
/// # Errors
/// [`SelectError`] naming the device.
pub fn select(files: &[DocumentFile], names: &[DeviceName]) -> Result<ContainerEdits, SelectError> {
    let mut edits = ContainerEdits::default();
    let mut used: Vec<&Path> = Vec::new();
    for name in names {
        let having = files.iter().filter(|file| file.has(name));
        let priority = having.clone().map(|file| file.priority).max();
        let mut best = having.filter(|file| Some(file.priority) == priority);
        let Some(file) = best.next() else {
            return Err(SelectError::Unknown { name: name.clone() });
        };
        if let Some(other) = best.next() {
            return Err(SelectError::Conflict {
                name: name.clone(),
                first: file.path.clone(),
                second: other.path.clone(),
            });
        }
        if !used.contains(&file.path.as_path()) {
            used.push(&file.path);
            edits.append(file.document.for_all());
        }
        if let Some(device) = file.document.device(&name.device) {
            edits.append(device);
        }
    }
    Ok(edits)
}

impl DocumentFile {
    fn has(&self, name: &DeviceName) -> bool {
        self.document.kind() == name.kind && self.document.device(&name.device).is_some()
    }
}

/// What a container gets of its devices: the edits with their device nodes looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Injection {
    /// "NAME=value".
    pub env: Vec<String>,
    /// Device nodes, as they are on the host.
    pub nodes: Vec<CdiNode>,
    /// Mounts.
    pub mounts: Vec<MountEdit>,
    /// Hooks.
    pub hooks: Vec<HookEdit>,
    /// Interfaces of the host, by their names there, and their names in the container.
    pub net_devices: BTreeMap<String, String>,
    /// Cache and memory bandwidth class.
    pub intel_rdt: Option<IntelRdt>,
    /// Groups of the process.
    pub additional_gids: Vec<u32>,
}

/// A device node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiNode {
    /// Path in the container.
    pub path: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner; none is the user of the process.
    pub uid: Option<u32>,
    /// Group; none is that of the process.
    pub gid: Option<u32>,
    /// Of `r`, `w` and `m`; empty gives the process no use of it.
    pub access: String,
}

#[cfg(test)]
mod tests;
