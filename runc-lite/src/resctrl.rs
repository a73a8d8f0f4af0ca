//! Intel RDT (and AMD's and Arm's like) through the kernel's resctrl file system.
//!
//! ```text
//! <resctrl>/                       the default class of service, closID "/"
//!   schemata  tasks  info/last_cmd_status
//!   mon_groups/<container>/tasks   made with enableMonitoring, removed by delete
//!   <class>/                       closID; made when it is not there and has a schema, never removed
//!   <container>/                   without closID; made by create, removed by delete
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::plan::{ClassOfService, IntelRdtPlan};

/// Bound of a file read here.
const MAX_FILE: u64 = 1 << 20;
/// How long another runtime process may take from making a class to the last of its lines.
const MAKING_PATIENCE: Duration = Duration::from_secs(1);

/// Why a class of service cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ResctrlError {
    /// The kernel or the host has none.
    #[error("config.json: linux.intelRdt needs a resctrl file system, and none is mounted here")]
    NotMounted,
    /// A class without a schema must be there already.
    #[error(
        "config.json: linux.intelRdt.closID: {class:?} does not exist in {root}, and no schema says what to make"
    )]
    MissingClass {
        /// closID.
        class: String,
        /// Mount point.
        root: PathBuf,
    },
    /// The container's own directory belongs to somebody else.
    #[error("linux.intelRdt: {path} exists already")]
    Occupied {
        /// Directory.
        path: PathBuf,
    },
    /// The class is there and is another one.
    #[error("config.json: linux.intelRdt: {wanted:?} is not what {path} has: {found:?}")]
    Differs {
        /// Line of the document.
        wanted: String,
        /// Schemata file.
        path: PathBuf,
        /// Its line of this resource, or nothing.
        found: String,
    },
    /// A system call failed.
    #[error("linux.intelRdt: cannot {operation} {path}{status}")]
    Io {
        /// Verb and value.
        operation: String,
        /// Object.
        path: PathBuf,
        /// What the kernel says about it in `info/last_cmd_status`, in parentheses, or nothing.
        status: String,
        /// Errno.
        source: std::io::Error,
    },
}

/// Where a container is in the resctrl tree; written to its record before anything is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResctrlRecord {
    /// Mount point.
    root: PathBuf,
    /// Directory of the class.
    class: PathBuf,
    /// Whether create makes it.
    makes_class: bool,
    /// Whether it is the container's alone.
    owns_class: bool,
    /// Directory of the monitoring group.
    monitoring: Option<PathBuf>,
}

/// The mount point of the resctrl file system.
///
/// # Errors
/// [`ResctrlError::NotMounted`].
pub fn mount_point() -> Result<PathBuf, ResctrlError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    find_mount(&table).ok_or(ResctrlError::NotMounted)
}

/// Finds the mount of the whole file system in the text of mountinfo, proc(5).
fn find_mount(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        if what.split(' ').next() != Some("resctrl") {
            return None;
        }
        let mut fields = place.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/").then(|| PathBuf::from(unescape(point)))
    })
}

/// Blanks are written in octal there.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Decides where container `id` goes below `root`, without changing anything.
///
/// # Errors
/// [`ResctrlError`] when the class is not there, is not what the document says, or is taken.
pub fn locate(root: &Path, plan: &IntelRdtPlan, id: &str) -> Result<ResctrlRecord, ResctrlError> {
    let class = match &plan.class {
        ClassOfService::Default => root.to_owned(),
        ClassOfService::Named(name) => root.join(name),
        ClassOfService::OfContainer => root.join(id),
    };
    let owns_class = plan.class == ClassOfService::OfContainer;
    let exists = class.is_dir();
    let has_schema = !plan.compared.is_empty() || !plan.schemata.is_empty();
    match &plan.class {
        ClassOfService::OfContainer if exists => {
            return Err(ResctrlError::Occupied { path: class });
        }
        ClassOfService::Named(name) if !exists && !has_schema => {
            return Err(ResctrlError::MissingClass {
                class: name.clone(),
                root: root.to_owned(),
            });
        }
        ClassOfService::Default | ClassOfService::Named(_) | ClassOfService::OfContainer => {}
    }
    if exists {
        compare(&class.join("schemata"), &plan.compared)?;
    }
    let monitoring = plan.monitoring.then(|| class.join("mon_groups").join(id));
    if let Some(path) = monitoring.as_ref().filter(|path| path.exists()) {
        return Err(ResctrlError::Occupied { path: path.clone() });
    }
    Ok(ResctrlRecord {
        root: root.to_owned(),
        makes_class: !exists,
        class,
        owns_class,
        monitoring,
    })
}

/// `RESOURCE:ID=VALUE;...` as the resource and its numbers; MB is in decimal, masks are in hexadecimal.
fn parse_line(line: &str) -> Option<(&str, Vec<(u64, u64)>)> {
    let (resource, domains) = line.split_once(':')?;
    let resource = resource.trim();
    let radix = if resource.starts_with("MB") { 10 } else { 16 };
    let domains = domains
        .trim()
        .split(';')
        .filter(|part| !part.trim().is_empty());
    let values = domains.map(|part| {
        let (id, value) = part.split_once('=')?;
        let value = value.trim().trim_start_matches("0x");
        Some((
            id.trim().parse().ok()?,
            u64::from_str_radix(value, radix).ok()?,
        ))
    });
    Some((resource, values.collect::<Option<_>>()?))
}

/// An existing class must have, for every domain that a line names, the value of that line.
fn compare(path: &Path, lines: &[String]) -> Result<(), ResctrlError> {
    if lines.is_empty() {
        return Ok(());
    }
    let text = read(path).map_err(|source| ResctrlError::Io {
        operation: "read".to_owned(),
        path: path.to_owned(),
        status: String::new(),
        source,
    })?;
    for wanted in lines {
        let found = line_of(&text, wanted).unwrap_or_default();
        let same = match (parse_line(wanted), parse_line(found)) {
            (Some((_, wanted)), Some((_, found))) => {
                wanted.iter().all(|domain| found.contains(domain))
            }
            _ => wanted.trim() == found,
        };
        if !same {
            return Err(ResctrlError::Differs {
                wanted: wanted.clone(),
                path: path.to_owned(),
                found: found.to_owned(),
            });
        }
    }
    Ok(())
}

/// The line of `text` for the resource that `wanted` is about.
fn line_of<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    let resource = wanted.split(':').next().unwrap_or_default().trim();
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.split(':').next() == Some(resource))
}

/// Compares a class that somebody else is just making: its lines come after it.
fn compare_patiently(path: &Path, lines: &[String]) -> Result<(), ResctrlError> {
    let deadline = Instant::now() + MAKING_PATIENCE;
    loop {
        match compare(path, lines) {
            Err(ResctrlError::Differs { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

impl ResctrlRecord {
    fn failed(
        &self,
        operation: impl Into<String>,
        path: &Path,
        source: std::io::Error,
    ) -> ResctrlError {
        let status = read(&self.root.join("info/last_cmd_status")).unwrap_or_default();
        let status = match status.trim() {
            "" | "ok" => String::new(),
            words => format!(" ({words})"),
        };
        ResctrlError::Io {
            operation: operation.into(),
            path: path.to_owned(),
            status,
            source,
        }
    }

    fn write(&self, path: &Path, line: &str) -> Result<(), ResctrlError> {
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| self.failed(format!("write {line:?} to"), path, source))
    }

    /// Makes what is to be made and writes the schemata.
    ///
    /// # Errors
    /// [`ResctrlError`]; [`ResctrlRecord::undo`] then takes back what was done.
    pub fn create(&mut self, plan: &IntelRdtPlan) -> Result<(), ResctrlError> {
        let schemata = self.class.join("schemata");
        if self.makes_class {
            match std::fs::create_dir(&self.class) {
                Ok(()) => self.write_lines(&plan.compared)?,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    // Another container of the class came first since it was looked for: it is not this one's
                    // to take back.
                    self.makes_class = false;
                    if self.owns_class {
                        return Err(ResctrlError::Occupied {
                            path: self.class.clone(),
                        });
                    }
                    compare_patiently(&schemata, &plan.compared)?;
                }
                Err(source) => return Err(self.failed("make", &self.class, source)),
            }
        }
        self.write_lines(&plan.schemata)?;
        let Some(group) = self.monitoring.clone() else {
            return Ok(());
        };
        std::fs::create_dir(&group).map_err(|source| {
            // Not made here, not to be taken back.
            self.monitoring = None;
            self.failed("make", &group, source)
        })
    }

    /// Writes schemata, a line at a time as the kernel takes them.
    ///
    /// # Errors
    /// [`ResctrlError::Io`]; the lines before stay.
    pub fn write_lines(&self, lines: &[String]) -> Result<(), ResctrlError> {
        let schemata = self.class.join("schemata");
        lines
            .iter()
            .try_for_each(|line| self.write(&schemata, line))
    }

    /// What the class has now for the resources of `lines`, as lines to write to go back to it.
    ///
    /// # Errors
    /// [`ResctrlError::Io`].
    pub fn read_lines(&self, lines: &[String]) -> Result<Vec<String>, ResctrlError> {
        let schemata = self.class.join("schemata");
        let text = read(&schemata).map_err(|e| self.failed("read", &schemata, e))?;
        let found = lines.iter().filter_map(|line| line_of(&text, line));
        Ok(found.map(str::to_owned).collect())
    }

    /// Puts process `pid` into the class and the monitoring group; what it bears is born there.
    ///
    /// # Errors
    /// [`ResctrlError::Io`].
    pub fn join(&self, pid: i32) -> Result<(), ResctrlError> {
        let pid = pid.to_string();
        self.write(&self.class.join("tasks"), &pid)?;
        match &self.monitoring {
            Some(group) => self.write(&group.join("tasks"), &pid),
            None => Ok(()),
        }
    }

    /// Removes what belongs to the container alone; what is not there is no error.
    ///
    /// # Errors
    /// [`ResctrlError::Io`].
    pub fn remove(&self) -> Result<(), ResctrlError> {
        let group = self
            .monitoring
            .as_deref()
            .map_or(Ok(()), |group| self.unmake(group));
        let class = if self.owns_class && self.makes_class {
            self.unmake(&self.class)
        } else {
            Ok(())
        };
        group.and(class)
    }

    /// Removes all that create made.
    ///
    /// # Errors
    /// [`ResctrlError::Io`].
    pub fn undo(&self) -> Result<(), ResctrlError> {
        let removed = self.remove();
        if self.makes_class {
            removed.and(self.unmake(&self.class))
        } else {
            removed
        }
    }

    fn unmake(&self, path: &Path) -> Result<(), ResctrlError> {
        match std::fs::remove_dir(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(self.failed("remove", path, e))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(class: ClassOfService, compared: &[&str], schemata: &[&str]) -> IntelRdtPlan {
        let own = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        IntelRdtPlan {
            class,
            compared: own(compared),
            schemata: own(schemata),
            monitoring: false,
        }
    }

    fn named(name: &str) -> ClassOfService {
        ClassOfService::Named(name.to_owned())
    }

    /// A directory that looks like a mounted resctrl with one class.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for class in ["", "gold"] {
            let class = dir.path().join(class);
            std::fs::create_dir_all(class.join("mon_groups")).unwrap();
            let schemata = "    MB:0= 20;1= 70\n    L3:0=7f0;1=1f\n";
            std::fs::write(class.join("schemata"), schemata).unwrap();
            std::fs::write(class.join("tasks"), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("info")).unwrap();
        std::fs::write(
            dir.path().join("info/last_cmd_status"),
            "mask f00 has non-consecutive bits\n",
        )
        .unwrap();
        dir
    }

    #[test]
    fn the_mount_is_found_in_mountinfo() {
        let table = "25 1 8:1 / / rw - ext4 /dev/a rw\n\
                     31 25 0:26 /part /mnt rw - resctrl none rw\n\
                     30 25 0:26 / /sys/fs/res\\040ctrl rw,nosuid shared:9 - resctrl resctrl rw\n";
        assert_eq!(find_mount(table), Some(PathBuf::from("/sys/fs/res ctrl")));
        assert_eq!(find_mount("25 1 8:1 / / rw - ext4 resctrl rw\n"), None);
    }

    #[test]
    fn an_existing_class_must_be_what_the_document_says() {
        let dir = tree();
        let locate = |plan: &IntelRdtPlan| locate(dir.path(), plan, "box");
        for same in [
            &["L3:0=7f0;1=1f"][..],
            &["L3:1=01f"],
            &["L3:0=0x7f0"],
            &["MB:1=70;0=20"],
            &[],
        ] {
            let record = locate(&plan(named("gold"), same, &[])).unwrap();
            assert!(!record.makes_class && !record.owns_class);
        }
        for other in ["L3:0=7f1", "L3:2=1", "MB:0=70", "L2:0=f", "L3:junk"] {
            let error = locate(&plan(named("gold"), &[other], &[])).unwrap_err();
            assert!(matches!(error, ResctrlError::Differs { .. }), "{error}");
        }
        let error = locate(&plan(named("silver"), &[], &[])).unwrap_err();
        assert!(
            error.to_string().contains("\"silver\" does not exist"),
            "{error}"
        );
        assert!(
            locate(&plan(named("silver"), &[], &["L3:0=1"]))
                .unwrap()
                .makes_class
        );
        assert!(
            !locate(&plan(ClassOfService::Default, &[], &[]))
                .unwrap()
                .makes_class
        );
        std::fs::create_dir(dir.path().join("box")).unwrap();
        let error = locate(&plan(ClassOfService::OfContainer, &[], &[])).unwrap_err();
        assert!(matches!(error, ResctrlError::Occupied { .. }));
    }

    #[test]
    fn a_container_is_put_into_its_class_and_monitoring_group() {
        let dir = tree();
        let wanted = IntelRdtPlan {
            monitoring: true,
            ..plan(named("gold"), &["L3:0=7f0"], &["L2:0=f"])
        };
        let mut record = locate(dir.path(), &wanted, "box").unwrap();
        record.create(&wanted).unwrap();
        let group = dir.path().join("gold/mon_groups/box");
        assert!(group.is_dir());
        // The line to compare is not written to a class that has it.
        let written = std::fs::read_to_string(dir.path().join("gold/schemata")).unwrap();
        assert!(written.starts_with("L2:0=f\n"), "{written}");
        // A real resctrl brings the file with the directory.
        std::fs::write(group.join("tasks"), "").unwrap();
        record.join(42).unwrap();
        for tasks in [dir.path().join("gold/tasks"), group.join("tasks")] {
            assert_eq!(std::fs::read_to_string(tasks).unwrap(), "42\n");
        }
        std::fs::remove_file(group.join("tasks")).unwrap();
        record.remove().unwrap();
        record.remove().unwrap();
        assert!(!group.exists() && dir.path().join("gold").exists());
    }

    #[test]
    fn what_create_made_is_removed_by_delete_or_by_undo() {
        let dir = tree();
        let own = plan(ClassOfService::OfContainer, &[], &[]);
        let mut record = locate(dir.path(), &own, "box").unwrap();
        record.create(&own).unwrap();
        assert!(dir.path().join("box").is_dir());
        record.remove().unwrap();
        assert!(!dir.path().join("box").exists());
        // Here the new directory has no schemata file, as a kernel that refuses the write would show it.
        let silver = plan(named("silver"), &["L3:0=f00"], &[]);
        let mut record = locate(dir.path(), &silver, "box").unwrap();
        let error = record.create(&silver).unwrap_err();
        assert!(
            error.to_string().contains("non-consecutive bits"),
            "{error}"
        );
        record.remove().unwrap();
        assert!(
            dir.path().join("silver").exists(),
            "a class with a name outlives the container"
        );
        record.undo().unwrap();
        assert!(!dir.path().join("silver").exists());
    }

    #[test]
    fn what_another_container_made_meanwhile_is_not_taken_back() {
        let dir = tree();
        let schemata = |class: &str, line: &str| {
            std::fs::create_dir(dir.path().join(class)).unwrap();
            std::fs::write(dir.path().join(class).join("schemata"), line).unwrap();
        };
        let silver = plan(named("silver"), &["L3:0=f0"], &[]);
        let mut same = locate(dir.path(), &silver, "box").unwrap();
        let mut other = same.clone();
        schemata("silver", "    L3:0=f0\n");
        same.create(&silver).unwrap();
        same.undo().unwrap();
        let wants_more = plan(named("silver"), &["L3:0=ff"], &[]);
        let error = other.create(&wants_more).unwrap_err();
        assert!(matches!(error, ResctrlError::Differs { .. }), "{error}");
        other.undo().unwrap();
        assert!(dir.path().join("silver").exists());

        let own = plan(ClassOfService::OfContainer, &[], &[]);
        let mut record = locate(dir.path(), &own, "box").unwrap();
        schemata("box", "");
        let error = record.create(&own).unwrap_err();
        assert!(matches!(error, ResctrlError::Occupied { .. }), "{error}");
        record.undo().unwrap();
        assert!(dir.path().join("box").exists());
    }

    #[test]
    fn an_update_can_go_back() {
        let dir = tree();
        let record = locate(dir.path(), &plan(named("gold"), &[], &[]), "box").unwrap();
        let lines = ["MB:0=50".to_owned(), "L2:0=f".to_owned()];
        assert_eq!(record.read_lines(&lines).unwrap(), ["MB:0= 20;1= 70"]);
    }
}
