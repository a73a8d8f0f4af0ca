//! The last steps before a process becomes the container's program: the same for init and for `exec`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::CapabilitySet;

use super::courier;
use super::environment::{ChangeDirectory, change_directory, find_program, home_of, variable};
use super::identity::{Identity, set_limits, take_on};
use super::scheduling;
use super::terminal::give_streams;
use crate::plan::ProcessPlan;
use crate::rootfs::{Root, write_lsm_label};
use crate::seccomp::Filter;
use crate::sys::Arguments;

/// A process that has become what it should be but for the program.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    name: String,
    path: CString,
    arguments: Arguments,
    filter: Option<&'a Filter>,
    no_new_privileges: bool,
    identity: Identity,
}

/// Takes on everything but the filter. The calling process is in the container's namespaces and root.
pub(super) fn prepare<'a>(
    id: &str,
    root: &Root,
    plan: &ProcessPlan,
    filter: Option<&'a Filter>,
    may_set_groups: bool,
    warn: &mut dyn FnMut(String),
) -> Result<Prepared<'a>, String> {
    join_keyring(id)?;
    let label = |field: &str, label: &str, attribute: &str, value: &str| {
        // The kernel says ENOENT for a profile that is not loaded: the error has to name it.
        write_lsm_label(attribute, value)
            .map_err(|e| format!("{field}: {label:?}: {}", crate::error_chain(&e)))
    };
    let profile = &plan.apparmor_profile;
    if is_label(profile) {
        let change = format!("exec {profile}");
        label("process.apparmorProfile", profile, "apparmor/exec", &change)?;
    }
    let selinux = &plan.selinux_label;
    if is_label(selinux) {
        label("process.selinuxLabel", selinux, "exec", selinux)?;
    }
    let env = environment(plan, root)?;
    let denied = match change_directory(root, &plan.cwd) {
        Ok(()) => false,
        Err(ChangeDirectory::Denied) => true,
        Err(ChangeDirectory::Failed(text)) => return Err(text),
    };
    rustix::process::umask(Mode::from_raw_mode(plan.umask));
    set_limits(plan, warn)?;
    // Order: before the identity, which may take CAP_SYS_NICE away; after the cgroup, whose CPUs and memory
    // nodes the kernel checks against.
    scheduling::apply(plan)?;
    give_streams(plan.terminal, plan.uid, plan.gid);
    // Without no_new_privs a filter needs CAP_SYS_ADMIN when it is loaded.
    let keep = if filter.is_some() && !plan.no_new_privileges {
        CapabilitySet::SYS_ADMIN
    } else {
        CapabilitySet::empty()
    };
    let identity = take_on(plan, keep, may_set_groups, warn)?;
    // With fs.suid_dumpable=1 the change of user made this process open to every other one of that user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| format!("cannot protect the process: {e}"))?;
    if denied {
        // Root may be kept out where the user is let in (FUSE, NFS).
        change_directory(root, &plan.cwd).map_err(|failure| match failure {
            ChangeDirectory::Denied => {
                format!(
                    "cannot change directory to {:?}: permission denied",
                    plan.cwd
                )
            }
            ChangeDirectory::Failed(text) => text,
        })?;
    }
    let path = find_program(&plan.args[0], &plan.env)?;
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(|e| format!("cannot set no_new_privs: {e}"))?;
    }
    Ok(Prepared {
        name: plan.args[0].clone(),
        path,
        arguments: Arguments::new(c_strings(&plan.args)?, env),
        filter,
        no_new_privileges: plan.no_new_privileges,
        identity,
    })
}

impl Prepared<'_> {
    /// The program's environment.
    pub(super) fn environment(&self) -> &[CString] {
        self.arguments.environment()
    }

    /// Puts the filter in force; its listener, if it has one, goes over `socket` with `payload`. Nothing but
    /// hooks and [`Prepared::execute`] comes after it.
    pub(super) fn confine(
        &self,
        socket: BorrowedFd<'_>,
        payload: &'static [u8],
    ) -> Result<(), String> {
        crate::sys::restore_default_signals()
            .map_err(|e| format!("cannot restore the signals: {e}"))?;
        let Some(filter) = self.filter else {
            return Ok(());
        };
        self.load(filter, socket, payload)
            .map_err(|e| format!("cannot load the seccomp filter: {e}"))
    }

    /// Executes the program; returns the reason when that fails.
    pub(super) fn execute(self) -> String {
        let error = crate::sys::exec(&self.path, &self.arguments);
        let hint = match error.raw_os_error() {
            Some(libc::ENOEXEC) => " (not a program of this machine, or a script without #!)",
            _ => "",
        };
        let reason = crate::errno_text(&error);
        format!("exec {}: {reason}{hint}", self.name.escape_debug())
    }

    fn load(
        &self,
        filter: &Filter,
        socket: BorrowedFd<'_>,
        payload: &'static [u8],
    ) -> std::io::Result<()> {
        if !self.no_new_privileges {
            // Kept until execve, because capset(2) would be judged by the filter. It gives nothing to the
            // program: what execve makes permitted comes from the bounding, inheritable and ambient sets
            // (capabilities(7)), and the capability is in none of them but where the plan has it.
            self.identity.raise(CapabilitySet::SYS_ADMIN)?;
        }
        courier::load(filter, socket, payload)
    }
}

/// Whether a security label asks for something.
pub(super) fn is_label(label: &str) -> bool {
    !label.is_empty() && label != "unconfined"
}

fn join_keyring(id: &str) -> Result<(), String> {
    let name = CString::new(format!("_ses.{id}")).map_err(|e| e.to_string())?;
    match crate::sys::join_session_keyring(&name) {
        Ok(()) => Ok(()),
        // No keyrings in this kernel, or none for us: then there is nothing to be kept apart from.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        Err(e) => Err(format!(
            "cannot join the session keyring of the container: {e}"
        )),
    }
}

fn environment(plan: &ProcessPlan, root: &Root) -> Result<Vec<CString>, String> {
    let mut env: Vec<&str> = Vec::with_capacity(plan.env.len() + 1);
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(plan.env.len());
    for entry in &plan.env {
        // getenv(3) takes the first of two entries, the specification means the last.
        let name = entry.split('=').next().unwrap_or_default();
        match places.entry(name) {
            Entry::Occupied(place) => env[*place.get()] = entry,
            Entry::Vacant(place) => {
                place.insert(env.len());
                env.push(entry);
            }
        }
    }
    let home;
    if variable(&plan.env, "HOME").is_none_or(str::is_empty) {
        env.retain(|entry| !entry.starts_with("HOME="));
        home = format!("HOME={}", home_of(root, plan.uid));
        env.push(&home);
    }
    c_strings(&env)
}

fn c_strings(list: &[impl AsRef<str>]) -> Result<Vec<CString>, String> {
    list.iter()
        .map(|text| CString::new(text.as_ref()).map_err(|e| format!("{:?}: {e}", text.as_ref())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_entries_of_a_variable_the_last_stands_where_the_first_stood() {
        let plan = crate::spec::plan_process(
            serde_json::from_str(r#"{"args": ["x"], "env": ["A=1", "HOME=/h", "B=2", "A=3"]}"#)
                .unwrap(),
            &crate::config::Linux::default(),
        );
        let env = environment(&plan.unwrap(), &Root::of_this_process().unwrap()).unwrap();
        assert_eq!(env, [c"A=3", c"HOME=/h", c"B=2"].map(CString::from));
    }
}
