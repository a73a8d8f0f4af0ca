//! Paths in documents: text, absolute, and inside the container without "..".

use std::path::Path;

use super::OciError;

/// The kernel's longest path, in bytes.
const MAX_PATH_BYTES: usize = 4096;

/// A path in a container, absolute, without doubled or trailing slashes and ".". Never has "..".
///
/// # Errors
/// [`OciError::Path`] naming `field` when it is relative, climbs, has a control character or is too long.
pub fn clean_container_path(field: &'static str, path: &str) -> Result<String, OciError> {
    let refuse = |reason| {
        Err(OciError::Path {
            field,
            path: path.chars().take(MAX_PATH_BYTES).collect(),
            reason,
        })
    };
    if !path.starts_with('/') {
        return refuse("not an absolute path");
    }
    if path.len() >= MAX_PATH_BYTES {
        return refuse("longer than 4095 bytes");
    }
    if path.contains(char::is_control) {
        return refuse("control characters are not allowed");
    }
    let mut clean = String::with_capacity(path.len());
    for part in path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
    {
        if part == ".." {
            return refuse("\"..\" is not allowed");
        }
        clean.push('/');
        clean.push_str(part);
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Ok(clean)
}

/// A path of the host that a request names: absolute. The kubelet is trusted with where it leads.
pub(super) fn host_path(field: &'static str, path: &str) -> Result<String, OciError> {
    let refuse = |reason| {
        Err(OciError::Path {
            field,
            path: path.to_owned(),
            reason,
        })
    };
    if !path.starts_with('/') {
        return refuse("not an absolute path");
    }
    if path.contains('\0') {
        return refuse("NUL is not allowed");
    }
    Ok(path.to_owned())
}

/// A path of our own making, as JSON can hold it.
pub(super) fn text(path: &Path) -> Result<String, OciError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| OciError::Path {
            field: "path",
            path: path.to_string_lossy().into_owned(),
            reason: "not UTF-8",
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn container_paths_are_cleaned_or_refused() {
        for (path, expect) in [
            ("/", "/"),
            ("//", "/"),
            ("/data/", "/data"),
            ("/./a//b/.", "/a/b"),
            ("/..data/a..b", "/..data/a..b"),
            ("/\u{e4} b", "/\u{e4} b"),
        ] {
            assert_eq!(clean_container_path("f", path).unwrap(), expect, "{path:?}");
        }
        for path in [
            "", "a", "./a", "..", "/..", "/a/../b", "/a/..", "/a\0", "/a\nb", "/\u{7f}",
        ] {
            let error = clean_container_path("mounts.container_path", path).unwrap_err();
            assert!(
                error.to_string().starts_with("mounts.container_path"),
                "{path:?}: {error}"
            );
        }
        assert!(clean_container_path("f", &format!("/{}", "a".repeat(4094))).is_ok());
        assert!(clean_container_path("f", &format!("/{}", "a".repeat(4095))).is_err());
    }

    proptest! {
        #[test]
        fn clean_paths_stay_as_they_are_and_never_climb(path in "(/|\\.|\\.\\.|[a-z\u{e4}\n]){0,12}") {
            if let Ok(clean) = clean_container_path("f", &path) {
                prop_assert!(clean.starts_with('/'));
                prop_assert!(clean.split('/').all(|part| part != ".." && part != "."));
                prop_assert!(!clean.contains("//") && (clean == "/" || !clean.ends_with('/')));
                prop_assert_eq!(clean_container_path("f", &clean).unwrap(), clean);
            }
        }
    }
}
