//! The tasks of this pod, by id. Locks here are held for a lookup, never across an await.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::cgroup::Cgroup;
use crate::error::VerbError;
use crate::oom::OomWatch;
use crate::runtime::Runtime;
use crate::task::process::Process;

/// Locks a mutex. A panic elsewhere leaves plain values that are still valid.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of a task once its init process exists.
#[derive(Debug)]
pub struct Details {
    /// Its cgroup, if it has one of its own.
    pub cgroup: Option<Cgroup>,
    /// Whether its init is the first of a PID namespace, so that all others end with it.
    pub own_pid_namespace: bool,
    /// Tells whether the init was killed for memory.
    pub oom: OomWatch,
}

/// A container, or the sandbox process of the pod.
#[derive(Debug)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its runtime.
    pub runtime: Runtime,
    /// Whether the shim mounted its root file system.
    pub rootfs_mounted: bool,
    /// Whether it is the sandbox process of the pod.
    pub is_sandbox: bool,
    /// Its first process.
    pub init: Arc<Process>,
    /// Set when `create` is done.
    pub details: OnceLock<Details>,
    /// Held while it is being deleted: a second delete waits for the first one's result.
    pub deleting: tokio::sync::Mutex<()>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    exec_number: AtomicU64,
    exec_cgroup_refused: AtomicBool,
}

impl Task {
    /// A task that is about to be created.
    #[must_use]
    pub fn new(
        id: String,
        bundle: PathBuf,
        runtime: Runtime,
        rootfs_mounted: bool,
        init: Process,
    ) -> Self {
        Self {
            id,
            bundle,
            runtime,
            rootfs_mounted,
            is_sandbox: false,
            init: Arc::new(init),
            details: OnceLock::new(),
            deleting: tokio::sync::Mutex::const_new(()),
            execs: Mutex::default(),
            exec_number: AtomicU64::new(0),
            exec_cgroup_refused: AtomicBool::new(false),
        }
    }

    /// Its cgroup, once known.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.details.get()?.cgroup.as_ref()
    }

    /// Whether the other processes end with its init.
    #[must_use]
    pub fn has_own_pid_namespace(&self) -> bool {
        self.details.get().is_some_and(|d| d.own_pid_namespace)
    }

    /// A number that no other exec of the task has.
    pub fn next_exec_number(&self) -> u64 {
        self.exec_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the runtime is known to refuse `exec --cgroup`.
    #[must_use]
    pub fn refuses_exec_cgroup(&self) -> bool {
        self.exec_cgroup_refused.load(Ordering::Relaxed)
    }

    /// Remembers that the runtime refuses `exec --cgroup`.
    pub fn refuse_exec_cgroup(&self) {
        self.exec_cgroup_refused.store(true, Ordering::Relaxed);
    }

    /// The process a request means: the init if `exec_id` is empty.
    ///
    /// # Errors
    /// There is no such exec.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, VerbError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = lock(&self.execs).get(exec_id).cloned();
        found.ok_or_else(|| VerbError::NoExec {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
        })
    }

    /// Adds an exec.
    ///
    /// # Errors
    /// The id is taken.
    pub fn add_exec(&self, process: Process) -> Result<(), VerbError> {
        let mut execs = lock(&self.execs);
        if execs.contains_key(&process.id) {
            return Err(VerbError::Exists {
                what: "exec",
                id: process.id,
            });
        }
        execs.insert(process.id.clone(), Arc::new(process));
        Ok(())
    }

    /// Forgets an exec.
    pub fn remove_exec(&self, exec_id: &str) {
        lock(&self.execs).remove(exec_id);
    }

    /// All execs that are not deleted.
    #[must_use]
    pub fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().cloned().collect()
    }
}

/// The tasks of this pod.
#[derive(Debug, Default)]
pub struct Table {
    tasks: Mutex<HashMap<String, Arc<Task>>>,
}

impl Table {
    /// The task with this id.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> Result<Arc<Task>, VerbError> {
        let found = lock(&self.tasks).get(id).cloned();
        found.ok_or_else(|| VerbError::NoTask { id: id.to_owned() })
    }

    /// Adds a task.
    ///
    /// # Errors
    /// The id is taken.
    pub fn insert(&self, task: Arc<Task>) -> Result<(), VerbError> {
        let mut tasks = lock(&self.tasks);
        if tasks.contains_key(&task.id) {
            return Err(VerbError::Exists {
                what: "container",
                id: task.id.clone(),
            });
        }
        tasks.insert(task.id.clone(), task);
        Ok(())
    }

    /// Forgets a task.
    pub fn remove(&self, id: &str) {
        lock(&self.tasks).remove(id);
    }

    /// Whether any task is left, the sandbox process included.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.tasks).is_empty()
    }

    /// A container that is not stopped, if there is one. The sandbox process does not count.
    #[must_use]
    pub fn running_container(&self) -> Option<String> {
        let tasks = lock(&self.tasks);
        let runs = |t: &&Arc<Task>| !t.is_sandbox && t.init.exit().is_none();
        tasks.values().find(runs).map(|task| task.id.clone())
    }
}
