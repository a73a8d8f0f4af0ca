//! A small OCI runtime: namespaces, cgroups, mounts, seccomp and capabilities, driven by runc's command line.
//!
//! Reading order: [`commands`] (one file per verb) → [`spec`] (config.json to [`plan::Plan`], pure) →
//! [`process`] (parent, intermediate, init) → [`rootfs`], [`cgroup`], [`seccomp`]. There is no async
//! runtime and one thread only, because the child is made by a plain clone of this process; the one exception
//! (`process::courier`) begins when nothing is cloned any more but hooks of the container.
//!
//! It needs Linux 5.12 (clone3, openat2, close_range, the mount API with mount_setattr, pidfd).
#![deny(unsafe_code)]

pub mod cgroup;
pub mod commands;
pub mod config;
pub mod container;
#[doc(hidden)]
pub mod fuzzing;
pub mod log;
mod netlink;
pub mod plan;
pub mod process;
pub mod resctrl;
pub mod rootfs;
pub mod seccomp;
mod socket;
pub mod spec;
pub mod state;
#[expect(
    unsafe_code,
    reason = "the one place for system calls that neither std nor rustix offers safely"
)]
pub mod sys;

/// The message of `error` and of everything below it, for the one place where it is shown.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(": ");
        match source.downcast_ref() {
            Some(error) => text.push_str(&errno_text(error)),
            None => text.push_str(&source.to_string()),
        }
        below = source.source();
    }
    text
}

/// The text of an I/O error without its number, beginning lower-case. docker tells "no such file or
/// directory" (exit code 127) and "permission denied" (126) from other failures by just these letters.
#[must_use]
pub fn errno_text(error: &std::io::Error) -> String {
    let mut text = error.to_string();
    if let Some(errno) = error.raw_os_error() {
        let number = format!(" (os error {errno})");
        text.truncate(
            text.len()
                - if text.ends_with(&number) {
                    number.len()
                } else {
                    0
                },
        );
        // Not "I/O error": a word follows, not an abbreviation.
        if text.chars().nth(1).is_some_and(char::is_lowercase)
            && let Some(first) = text.get_mut(..1)
        {
            first.make_ascii_lowercase();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::errno_text;

    #[test]
    fn errno_texts_are_those_engines_look_for() {
        let text = |errno| errno_text(&std::io::Error::from_raw_os_error(errno));
        assert_eq!(text(libc::ENOENT), "no such file or directory");
        assert_eq!(text(libc::EACCES), "permission denied");
        assert!(text(libc::EIO).starts_with(['I', 'i']));
        assert_eq!(errno_text(&std::io::Error::other("As It Is")), "As It Is");
    }
}
