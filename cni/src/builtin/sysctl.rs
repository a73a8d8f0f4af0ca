//! Reads and sets kernel parameters below /proc/sys/net of the calling thread's namespace.

use std::{fs, io, path::PathBuf};

use super::BuiltinError;

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// The value of `net/<key>`; `None` when the kernel has no such parameter.
pub(crate) fn read(key: &str) -> Result<Option<String>, BuiltinError> {
    match fs::read_to_string(path(key)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BuiltinError::Sysctl {
            path: path(key),
            value: None,
            source,
        }),
    }
}

/// Sets `net/<key>` unless it has the value already, so that a read-only /proc/sys that an
/// administrator prepared is enough.
pub(crate) fn ensure(key: &str, value: &str) -> Result<(), BuiltinError> {
    if read(key)?.as_deref() == Some(value) {
        return Ok(());
    }
    let failed = |source| BuiltinError::Sysctl {
        path: path(key),
        value: Some(value.to_owned()),
        source,
    };
    fs::write(path(key), value).map_err(failed)
}

/// Whether IPv6 is compiled in and not turned off.
pub(crate) fn ipv6_usable() -> Result<bool, BuiltinError> {
    Ok(read("ipv6/conf/all/disable_ipv6")?.as_deref() == Some("0"))
}

/// Turns routing on. Hosts that configure themselves by router advertisements keep doing so:
/// the kernel ignores advertisements on forwarding interfaces unless `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst).
pub(crate) fn enable_forwarding(ipv4: bool, ipv6: bool) -> Result<(), BuiltinError> {
    if ipv4 {
        ensure("ipv4/ip_forward", "1")?;
    }
    if !ipv6 || read("ipv6/conf/all/forwarding")?.as_deref() == Some("1") {
        return Ok(());
    }
    let conf = path("ipv6/conf");
    let failed = |source| BuiltinError::Sysctl {
        path: conf.clone(),
        value: None,
        source,
    };
    for entry in fs::read_dir(&conf).map_err(failed)? {
        let name = entry
            .map_err(failed)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let key = format!("ipv6/conf/{name}/accept_ra");
        if name != "all" && name != "lo" && read(&key)?.as_deref() == Some("1") {
            ensure(&key, "2")?;
        }
    }
    ensure("ipv6/conf/all/forwarding", "1")
}
