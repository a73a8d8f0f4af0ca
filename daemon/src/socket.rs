//! The daemon's Unix sockets: bound over what an earlier life left, removed when this one ends in order.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::net::UnixListener;

/// The name of a bound socket; dropped, it is removed.
#[derive(Debug)]
#[must_use]
pub struct Bound {
    path: PathBuf,
    file: (u64, u64),
}

/// Binds `path`, replacing a socket that is there; nothing but a socket is replaced.
///
/// # Errors
/// Something else is there, or the kernel refuses.
pub fn listen(path: &Path, mode: u32) -> anyhow::Result<(UnixListener, Bound)> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            fs::remove_file(path).with_context(|| format!("replace {}", path.display()))?;
        }
        Ok(_) => anyhow::bail!("{} exists and is no socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    let listener = UnixListener::bind(path);
    let listener = listener.with_context(|| format!("bind {}", path.display()))?;
    let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    let bound = Bound {
        path: path.to_owned(),
        file: (meta.dev(), meta.ino()),
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok((listener, bound))
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Another daemon, with a state directory of its own, may have taken the name since.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_replaced_and_removed_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (first, first_name) = listen(&path, 0o600).unwrap();
        // As if the first daemon had been killed.
        let (_second, second_name) = listen(&path, 0o660).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o660
        );
        drop((first, first_name));
        assert!(path.exists());
        drop(second_name);
        assert!(!path.exists());

        fs::write(&path, "a file").unwrap();
        let refused = listen(&path, 0o600).unwrap_err().to_string();
        assert!(refused.contains("is no socket"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }
}
