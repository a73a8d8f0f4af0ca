//! Records on disk: one JSON file each, replaced atomically.
//!
//! ```text
//! <root>/pods/<pod>/pod.json
//! <root>/pods/<pod>/containers/<container>.json
//! <root>/images/<hex of the image id>.json
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use axil_proto::ids::{ContainerId, PodId};
use axil_snapshotter::DamagedRecord;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::durable::{atomic_write, make_private_dir, remove_file};
use crate::domain::container::record::{CONTAINER_RECORD_VERSION, ContainerRecord};
use crate::domain::failure::{Class, Failure};
use crate::domain::image::stored::{IMAGE_RECORD_VERSION, StoredImage};
use crate::domain::pod::record::{POD_RECORD_VERSION, PodRecord};
use crate::ports::images::ImageRecords;
use crate::ports::{Answer, Records};

/// Largest record read, in bytes: a pod's annotations are bounded by the API server at 256 KiB.
const MAX_RECORD: u64 = 16 << 20;

/// The records below one root.
#[derive(Debug, Clone)]
pub struct RecordFiles {
    pods: PathBuf,
    images: PathBuf,
}

impl RecordFiles {
    /// Makes the directories.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(root: &Path) -> Result<Self, Failure> {
        let files = Self {
            pods: root.join("pods"),
            images: root.join("images"),
        };
        make_private_dir(&files.pods)?;
        make_private_dir(&files.images)?;
        Ok(files)
    }

    fn pod_dir(&self, pod: &str) -> PathBuf {
        self.pods.join(pod)
    }

    fn container_file(&self, pod: &str, container: &str) -> PathBuf {
        self.pod_dir(pod)
            .join("containers")
            .join(format!("{container}.json"))
    }

    fn image_file(&self, id: &str) -> PathBuf {
        let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
        self.images.join(format!("{hex}.json"))
    }

    fn load_pod(dir: &Path) -> Result<(PodRecord, Vec<ContainerRecord>), Failure> {
        let pod: PodRecord = read(&dir.join("pod.json"))?;
        check_version(&pod.id, pod.version, POD_RECORD_VERSION)?;
        let mut containers = Vec::new();
        for file in list(&dir.join("containers"), "json")? {
            let record = read::<ContainerRecord>(&file).and_then(|record| {
                check_version(&record.id, record.version, CONTAINER_RECORD_VERSION)?;
                Ok(record)
            });
            match record {
                Ok(record) => containers.push(record),
                Err(failure) => tracing::error!(error = %failure, "a damaged container record"),
            }
        }
        Ok((pod, containers))
    }
}

impl Records for RecordFiles {
    fn put_pod(&self, record: &PodRecord) -> Answer<()> {
        let dir = self.pod_dir(&record.id);
        make_private_dir(&dir.join("containers"))?;
        write(&dir.join("pod.json"), record)
    }

    fn put_container(&self, record: &ContainerRecord) -> Answer<()> {
        let file = self.container_file(&record.pod, &record.id);
        write(&file, record)
    }

    fn delete_pod(&self, pod: &PodId) -> Answer<()> {
        let dir = self.pod_dir(pod.as_str());
        // Order: the pod's own record first; without it the rest is garbage, not a pod.
        remove_file(&dir.join("pod.json"))?;
        match fs::remove_dir_all(&dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure::io(format!("remove {}", dir.display()), &error)),
        }
    }

    fn delete_container(&self, pod: &PodId, container: &ContainerId) -> Answer<()> {
        remove_file(&self.container_file(pod.as_str(), container.as_str()))
    }

    fn load(&self) -> Answer<Vec<(PodRecord, Vec<ContainerRecord>)>> {
        let mut found = Vec::new();
        for dir in list(&self.pods, "")? {
            if !dir.join("pod.json").exists() {
                // A removal that was interrupted after the pod's own record was gone.
                let removed = fs::remove_dir_all(&dir);
                tracing::info!(path = %dir.display(), ok = removed.is_ok(), "a remnant is removed");
                continue;
            }
            match Self::load_pod(&dir) {
                Ok(pod) => found.push(pod),
                Err(failure) => tracing::error!(error = %failure, "a damaged pod record"),
            }
        }
        Ok(found)
    }
}

impl ImageRecords for RecordFiles {
    fn put(&self, image: &StoredImage) -> Answer<()> {
        write(&self.image_file(&image.id), image)
    }

    fn delete(&self, id: &str) -> Answer<()> {
        remove_file(&self.image_file(id))
    }

    fn load(&self) -> Answer<Vec<StoredImage>> {
        let mut found = Vec::new();
        for file in list(&self.images, "json")? {
            let record = read::<StoredImage>(&file).and_then(|image| {
                check_version(&image.id, image.version, IMAGE_RECORD_VERSION)?;
                Ok(image)
            });
            match record {
                Ok(image) => found.push(image),
                Err(failure) => tracing::error!(error = %failure, "a damaged image record"),
            }
        }
        Ok(found)
    }

    fn damaged(&self) -> Answer<Vec<DamagedRecord>> {
        let mut damaged = Vec::new();
        for file in list(&self.images, "json")? {
            let reason = match read::<StoredImage>(&file) {
                Ok(image) if self.image_file(&image.id) != file => "is the record of another image",
                Ok(_) => continue,
                Err(_) if !file.exists() => continue,
                Err(_) => "cannot be read as the record of an image",
            };
            damaged.push(DamagedRecord {
                path: file.display().to_string(),
                reason: reason.to_owned(),
            });
        }
        Ok(damaged)
    }

    fn discard(&self, record: &DamagedRecord) -> Answer<()> {
        if ImageRecords::damaged(self)?.contains(record) {
            remove_file(Path::new(&record.path))?;
        }
        Ok(())
    }
}

fn check_version(id: &str, found: u32, known: u32) -> Result<(), Failure> {
    if found <= known {
        return Ok(());
    }
    let message = format!("record of {id} has version {found}; this axild knows up to {known}");
    Err(Failure::new(Class::Unsupported, message))
}

fn write<T: Serialize>(path: &Path, record: &T) -> Answer<()> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Failure::internal(format!("encode {}", path.display()), &error))?;
    atomic_write(path, &bytes)
}

fn read<T: DeserializeOwned>(path: &Path) -> Answer<T> {
    let failed = |error: io::Error| Failure::io(format!("read {}", path.display()), &error);
    let length = fs::symlink_metadata(path).map_err(failed)?.len();
    if length > MAX_RECORD {
        let message = format!(
            "{} has {length} bytes, more than {MAX_RECORD}",
            path.display()
        );
        return Err(Failure::new(Class::Exhausted, message));
    }
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::internal(format!("parse {}", path.display()), &error))
}

/// Entries of a directory with this extension, sorted; none when there is no directory.
fn list(dir: &Path, extension: &str) -> Answer<Vec<PathBuf>> {
    let failed = |error: &io::Error| Failure::io(format!("list {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(&error))?.path();
        if path.extension().unwrap_or_default() == extension {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_is_skipped_and_stays() {
        let root = tempfile::tempdir().unwrap();
        let files = RecordFiles::open(root.path()).unwrap();
        let dir = files.pod_dir("p1");
        make_private_dir(&dir).unwrap();
        atomic_write(&dir.join("pod.json"), b"{").unwrap();
        assert!(Records::load(&files).unwrap().is_empty());
        assert!(dir.join("pod.json").exists());
    }

    #[test]
    fn a_removal_cut_short_is_finished_at_load() {
        let root = tempfile::tempdir().unwrap();
        let files = RecordFiles::open(root.path()).unwrap();
        make_private_dir(&files.pod_dir("p1").join("containers")).unwrap();
        assert!(Records::load(&files).unwrap().is_empty());
        assert!(!files.pod_dir("p1").exists());
    }

    #[test]
    fn deleting_what_is_not_there_is_success() {
        let root = tempfile::tempdir().unwrap();
        let files = RecordFiles::open(root.path()).unwrap();
        let pod: PodId = "p1".parse().unwrap();
        files.delete_pod(&pod).unwrap();
        files
            .delete_container(&pod, &"c1".parse().unwrap())
            .unwrap();
        ImageRecords::delete(&files, "sha256:00").unwrap();
    }
}
