//! The durable record of each attachment: written before anything is done for the pod, so that
//! it can be undone after a crash, a reboot or a change of configuration.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    atomic::{self, Survives},
    pod::{PortMapping, check_id},
};

const VERSION: u32 = 1;
/// A result of at most 1 MiB, a list of at most 1 MiB, annotations.
const MAX_RECORD_BYTES: u64 = 8 << 20;
const SUFFIX: &str = "json";

/// Why a record could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path}")]
pub struct RecordError {
    /// "read", "write" or "remove".
    pub step: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// What is on disk about one attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttachmentRecord {
    version: u32,
    pub(crate) pod: String,
    pub(crate) netns: PathBuf,
    pub(crate) via: Via,
    /// The result of ADD; missing until it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Value>,
    /// Whether an earlier process wrote it.
    #[serde(skip)]
    pub(crate) inherited: bool,
}

/// Who made the attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum Via {
    /// Plugins, with all that DEL needs.
    #[serde(rename_all = "camelCase")]
    Conflist {
        file: PathBuf,
        list: Value,
        args: String,
        capabilities: Map<String, Value>,
    },
    /// The built-in network; addresses are in the leases.
    #[serde(rename_all = "camelCase")]
    Builtin { ports: Vec<PortMapping> },
    /// The file of an earlier process cannot be read; it is never written.
    Unreadable { reason: String },
}

impl AttachmentRecord {
    pub(crate) fn new(pod: &str, netns: &Path, via: Via) -> AttachmentRecord {
        AttachmentRecord {
            version: VERSION,
            pod: pod.to_owned(),
            netns: netns.to_owned(),
            via,
            result: None,
            inherited: false,
        }
    }
}

/// All records of a directory, in memory and on disk alike.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    records: Mutex<BTreeMap<String, AttachmentRecord>>,
}

impl Cache {
    /// Reads the directory, which is made when missing. A damaged record is kept as such.
    pub(crate) fn open(dir: &Path) -> Result<Cache, RecordError> {
        let failed = |step| {
            move |source| RecordError {
                step,
                path: dir.to_owned(),
                source,
            }
        };
        fs::create_dir_all(dir).map_err(failed("create"))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(failed("read"))? {
            let path = entry.map_err(failed("read"))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name.ends_with(atomic::TEMPORARY) {
                let removed = atomic::remove(&path);
                removed.map_err(|source| RecordError {
                    step: "remove",
                    path,
                    source,
                })?;
            } else if let Some(pod) = name
                .strip_suffix(".json")
                .filter(|pod| check_id(pod).is_ok())
            {
                records.insert(pod.to_owned(), load(&path, pod));
            }
        }
        Ok(Cache {
            dir: dir.to_owned(),
            records: Mutex::new(records),
        })
    }

    pub(crate) fn get(&self, pod: &str) -> Option<AttachmentRecord> {
        self.lock().get(pod).cloned()
    }

    pub(crate) fn pods(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<AttachmentRecord> {
        self.lock().values().cloned().collect()
    }

    /// Writes a record, then shows it. Plugins may keep state that survives a reboot, so their
    /// records do; the built-in network is only in the kernel.
    pub(crate) fn put(&self, record: AttachmentRecord) -> Result<(), RecordError> {
        let path = self.path(&record.pod);
        let text = serde_json::to_vec(&record).expect("records have text keys only");
        let survives = match record.via {
            Via::Builtin { .. } => Survives::Kill,
            Via::Conflist { .. } | Via::Unreadable { .. } => Survives::PowerCut,
        };
        atomic::write(&path, &text, survives).map_err(|source| RecordError {
            step: "write",
            path,
            source,
        })?;
        self.lock().insert(record.pod.clone(), record);
        Ok(())
    }

    pub(crate) fn remove(&self, pod: &str) -> Result<(), RecordError> {
        let path = self.path(pod);
        let removed = atomic::remove(&path);
        removed.map_err(|source| RecordError {
            step: "remove",
            path,
            source,
        })?;
        self.lock().remove(pod);
        Ok(())
    }

    fn path(&self, pod: &str) -> PathBuf {
        self.dir.join(format!("{pod}.{SUFFIX}"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, AttachmentRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(path: &Path, pod: &str) -> AttachmentRecord {
    let read = || -> Result<AttachmentRecord, String> {
        let text = atomic::read(path, MAX_RECORD_BYTES).map_err(|error| error.to_string())?;
        let record: AttachmentRecord =
            serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if record.version != VERSION || record.pod != pod {
            return Err(format!(
                "has version {} and pod {:?}",
                record.version, record.pod
            ));
        }
        Ok(record)
    };
    let mut record = read().unwrap_or_else(|reason| {
        AttachmentRecord::new(pod, Path::new(""), Via::Unreadable { reason })
    });
    record.inherited = true;
    record
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The form of version 1; a change of it needs a new version and a conversion.
    const GOLDEN: &str = r#"{"version":1,"pod":"p1","netns":"/run/netns/p1","via":{"kind":"conflist","file":"/etc/cni/net.d/10-x.conflist","list":{"name":"x"},"args":"IgnoreUnknown=1","capabilities":{}},"result":{"ips":[]}}"#;

    #[test]
    fn records_round_trip_and_match_the_golden_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("p1.json"), GOLDEN).unwrap();
        fs::write(dir.path().join("p2.json"), "{").unwrap();
        fs::write(dir.path().join("p3.json.1.2.new"), "half").unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        assert_eq!(cache.pods(), ["p1", "p2"]);
        assert!(!dir.path().join("p3.json.1.2.new").exists());
        assert!(matches!(
            cache.get("p2").unwrap().via,
            Via::Unreadable { .. }
        ));
        let record = cache.get("p1").unwrap();
        assert!(record.inherited);
        cache.put(record).unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("p1.json")).unwrap(),
            GOLDEN
        );
        let ports = vec![PortMapping {
            host_ip: None,
            host_port: 1,
            container_port: 2,
            protocol: crate::Protocol::Sctp,
        }];
        let mut built = AttachmentRecord::new("p4", Path::new("/n"), Via::Builtin { ports });
        built.result = Some(json!({}));
        cache.put(built.clone()).unwrap();
        let again = Cache::open(dir.path()).unwrap().get("p4").unwrap();
        assert_eq!(
            AttachmentRecord {
                inherited: false,
                ..again
            },
            built
        );
        cache.remove("p4").unwrap();
        cache.remove("p4").unwrap();
        assert_eq!(cache.pods(), ["p1", "p2"]);
    }
}
