//! Reads the CDI documents of the node, at each creation that asks for devices, and looks up what they leave to
//! the host. What documents may say is not here (`daemon/src/domain/container/cdi.rs`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::domain::container::cdi::{
    self, CdiDocument, CdiNode, ContainerEdits, DeviceName, DocumentFile, Injection, SelectError,
};
use crate::domain::container::oci::DeviceKind;
use crate::domain::failure::{Class, Failure};
use crate::engine::spawn::blocking;

/// Most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 4096;

/// Most documents of all directories.
const MAX_DOCUMENTS: usize = 512;

/// Largest document, in bytes. Those of a machine with eight large GPUs have some tens of KiB.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Most bytes of all documents.
const MAX_BYTES: u64 = 32 << 20;

/// Unusable documents named in one error.
const NAMED: usize = 3;

/// Permission bits of a node for which a document has none: what OCI runtimes take.
const NODE_MODE: u32 = 0o666;

/// What these devices change of a container.
///
/// # Errors
/// `NotFound` for a device in no document, `FailedPrecondition` for one whose document is unusable or disputed,
/// for what is not there on the host, and when documents are too many or too large.
pub async fn inject(dirs: &[PathBuf], names: &[DeviceName]) -> Result<Injection, Failure> {
    if names.is_empty() {
        return Ok(Injection::default());
    }
    let (dirs, names) = (dirs.to_vec(), names.to_vec());
    blocking("read CDI documents", move || {
        let read = read_all(&dirs)?;
        for (path, why) in &read.unusable {
            tracing::warn!(path = %path.display(), error = why, "a CDI document is not usable");
        }
        let edits = cdi::select(&read.files, &names)
            .map_err(|error| refused(&error, &dirs, &read.unusable))?;
        look_up(edits).map_err(|failure| {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            failure.during(format!("CDI devices {}", names.join(", ")))
        })
    })
    .await
}

fn refused(error: &SelectError, dirs: &[PathBuf], unusable: &[(PathBuf, String)]) -> Failure {
    let SelectError::Unknown { .. } = error else {
        return Failure::precondition(error.to_string());
    };
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut message = format!("{error} of {}", dirs.join(", "));
    let list = unusable.iter().take(NAMED);
    for (path, why) in list {
        message.push_str(&format!("; not usable: {}: {why}", path.display()));
    }
    let class = if unusable.is_empty() {
        Class::NotFound
    } else {
        Class::FailedPrecondition
    };
    Failure::new(class, message)
}

#[derive(Debug, Default)]
struct ReadDocuments {
    files: Vec<DocumentFile>,
    /// With the reason.
    unusable: Vec<(PathBuf, String)>,
}

/// Every document of these directories, not of those below; a directory that is not there has none.
fn read_all(dirs: &[PathBuf]) -> Result<ReadDocuments, Failure> {
    let mut read = ReadDocuments::default();
    let mut bytes = 0;
    for (priority, dir) in dirs.iter().enumerate() {
        for path in documents_of(dir)? {
            if read.files.len() + read.unusable.len() >= MAX_DOCUMENTS {
                let message = format!("CDI: more than {MAX_DOCUMENTS} documents");
                return Err(Failure::precondition(message));
            }
            match read_document(&path, &mut bytes) {
                Ok(document) => read.files.push(DocumentFile {
                    path,
                    priority,
                    document,
                }),
                Err(why) => read.unusable.push((path, why)),
            }
            if bytes > MAX_BYTES {
                let message = format!("CDI: documents of more than {MAX_BYTES} bytes together");
                return Err(Failure::precondition(message));
            }
        }
    }
    Ok(read)
}

fn documents_of(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error: &io::Error| Failure::io(format!("list {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&error)),
    };
    let mut paths = Vec::new();
    for (number, entry) in entries.enumerate() {
        if number >= MAX_ENTRIES {
            let message = format!("CDI: {} has more than {MAX_ENTRIES} entries", dir.display());
            return Err(Failure::precondition(message));
        }
        let path = entry.map_err(|error| failed(&error))?.path();
        if path
            .extension()
            .is_some_and(|end| end == "json" || end == "yaml")
        {
            paths.push(path);
        }
    }
    // So that messages are the same each time.
    paths.sort();
    Ok(paths)
}

fn read_document(path: &Path, bytes: &mut u64) -> Result<CdiDocument, String> {
    // A FIFO of that name is not waited for.
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| error.to_string())?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("is no regular file".to_owned());
    }
    let mut text = String::new();
    file.take(MAX_DOCUMENT_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    *bytes += text.len() as u64;
    if text.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(format!("is larger than {MAX_DOCUMENT_BYTES} bytes"));
    }
    let document = parse(&text, path.extension() == Some(OsStr::new("json")))?;
    document.check().map_err(|error| error.to_string())?;
    Ok(document)
}

fn parse(text: &str, json: bool) -> Result<CdiDocument, String> {
    if json {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    let options = serde_saphyr::options! {
        // 0660 is octal to the reference implementation.
        legacy_octal_numbers: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_documents: 1, max_anchors: 1024, max_aliases: 1024 },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// Device nodes as they are on the host. A path that is not there is told now rather than by the OCI runtime.
fn look_up(edits: ContainerEdits) -> Result<Injection, Failure> {
    let ContainerEdits {
        env,
        device_nodes,
        net_devices,
        hooks,
        mounts,
        intel_rdt,
        additional_gids,
    } = edits;
    for mount in mounts.iter().filter(|mount| mount.is_bind()) {
        fs::metadata(&mount.host_path)
            .map_err(|error| missing("mounts.hostPath", &mount.host_path, &error))?;
    }
    for hook in &hooks {
        fs::metadata(&hook.path).map_err(|error| missing("hooks.path", &hook.path, &error))?;
    }
    let mut nodes = Vec::new();
    for node in device_nodes {
        let host = node.host_path.filter(|path| !path.is_empty());
        let host = host.as_deref().unwrap_or(&node.path);
        let asked = node.kind.as_deref().and_then(kind_of);
        let (kind, major, minor) = match (asked, node.major) {
            (Some(DeviceKind::Fifo), _) => (DeviceKind::Fifo, 0, 0),
            (Some(kind), Some(major)) => (kind, major, node.minor.unwrap_or(0)),
            (asked, major) => {
                let (kind, their_major, their_minor) = device_at(host)?;
                if let Some(other) = asked.filter(|&asked| asked != kind) {
                    return Err(Failure::precondition(format!(
                        "deviceNodes.type \"{}\": {host:?} on the host is {}",
                        other.letter(),
                        kind.letter()
                    )));
                }
                match major {
                    Some(major) => (kind, major, node.minor.unwrap_or(0)),
                    None => (kind, their_major, their_minor),
                }
            }
        };
        let access = match node.permissions.as_deref() {
            None | Some("") => "rwm",
            Some("none") => "",
            Some(permissions) => permissions,
        };
        nodes.push(CdiNode {
            kind,
            major,
            minor,
            mode: node.file_mode.unwrap_or(NODE_MODE) & 0o7777,
            uid: node.uid,
            gid: node.gid,
            access: access.to_owned(),
            path: node.path,
        });
    }
    let pairs = net_devices
        .into_iter()
        .map(|net| (net.host_interface_name, net.name));
    Ok(Injection {
        env,
        nodes,
        mounts,
        hooks,
        net_devices: pairs.collect::<BTreeMap<_, _>>(),
        intel_rdt,
        additional_gids,
    })
}

fn missing(field: &str, path: &str, error: &io::Error) -> Failure {
    Failure::precondition(format!("{field} {path:?}: {error}"))
}

fn kind_of(letter: &str) -> Option<DeviceKind> {
    match letter {
        "b" => Some(DeviceKind::Block),
        "c" | "u" => Some(DeviceKind::Char),
        "p" => Some(DeviceKind::Fifo),
        _ => None,
    }
}

fn device_at(path: &str) -> Result<(DeviceKind, u32, u32), Failure> {
    let field = "deviceNodes.hostPath";
    let meta = fs::metadata(path).map_err(|error| missing(field, path, &error))?;
    let kind = meta.file_type();
    let kind = if kind.is_char_device() {
        DeviceKind::Char
    } else if kind.is_block_device() {
        DeviceKind::Block
    } else if kind.is_fifo() {
        return Ok((DeviceKind::Fifo, 0, 0));
    } else {
        return Err(Failure::precondition(format!(
            "{field} {path:?}: is no device"
        )));
    };
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok((
        kind,
        number(nix::sys::stat::major(meta.rdev())),
        number(nix::sys::stat::minor(meta.rdev())),
    ))
}

#[cfg(test)]
mod tests;
