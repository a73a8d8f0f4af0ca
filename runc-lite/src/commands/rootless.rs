//! `--rootless`, and where an ordinary user's containers are kept.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{CommandError, DEFAULT_ROOT, io_error, usage};
use crate::rootfs::is_in_user_namespace;

/// Understands the option's value; without one, or with `auto`, everybody but the host's root is rootless.
pub(super) fn parse(value: Option<&OsStr>) -> Result<bool, CommandError> {
    match value.map(OsStr::to_str) {
        Some(Some("true")) => Ok(true),
        Some(Some("false")) => Ok(false),
        None | Some(Some("auto" | "")) => Ok(is_rootless()),
        Some(_) => Err(usage(format!(
            "--rootless {:?} is not true, false or auto",
            value.unwrap_or_default()
        ))),
    }
}

fn is_rootless() -> bool {
    !rustix::process::geteuid().is_root() || is_in_user_namespace()
}

/// The root when none is given: that of the host's root, or a directory of the user's session.
pub(super) fn default_root() -> PathBuf {
    let named_root = std::env::var_os("USER").is_some_and(|user| user == "root");
    let session =
        std::env::var_os("XDG_RUNTIME_DIR").filter(|value| Path::new(value).is_absolute());
    let is_root = rustix::process::geteuid().is_root();
    let belongs_to_user = || !is_root || (is_in_user_namespace() && !named_root);
    choose_root(session.filter(|_| belongs_to_user()))
}

fn choose_root(session: Option<OsString>) -> PathBuf {
    session.map_or_else(
        || PathBuf::from(DEFAULT_ROOT),
        |directory| Path::new(&directory).join("runc-lite"),
    )
}

/// Makes the default root in a user's session directory. The sticky bit keeps it from being cleaned up as
/// an old file, see the XDG Base Directory Specification.
pub(super) fn make_default_root(root: &Path) -> Result<(), CommandError> {
    if root == Path::new(DEFAULT_ROOT) {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(root)
        .and_then(|()| std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o1700)))
        .map_err(|e| {
            let object = format!("{}, the root in $XDG_RUNTIME_DIR", root.display());
            io_error("make", object, e)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_has_three_values() {
        assert!(parse(Some(OsStr::new("true"))).unwrap());
        assert!(!parse(Some(OsStr::new("false"))).unwrap());
        assert_eq!(
            parse(Some(OsStr::new("auto"))).unwrap(),
            parse(None).unwrap()
        );
        let text = parse(Some(OsStr::new("yes"))).unwrap_err().to_string();
        assert!(text.contains("--rootless \"yes\""), "{text}");
    }

    #[test]
    fn users_have_their_containers_in_their_session() {
        assert_eq!(choose_root(None), Path::new("/run/runc-lite"));
        let session = Some(OsString::from("/run/user/1000"));
        assert_eq!(choose_root(session), Path::new("/run/user/1000/runc-lite"));
    }
}
