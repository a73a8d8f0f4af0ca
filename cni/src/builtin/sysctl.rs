//! Reads and sets kernel parameters below /proc/sys/net of the calling thread's namespace.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

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

/// Turns routing on. A host that has its default route from router advertisements keeps it: the
/// kernel ignores advertisements on forwarding interfaces unless `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst).
pub(crate) fn enable_forwarding(ipv4: bool, ipv6: bool) -> Result<(), BuiltinError> {
    if ipv4 {
        ensure("ipv4/ip_forward", "1")?;
    }
    if !ipv6 || read("ipv6/conf/all/forwarding")?.as_deref() == Some("1") {
        return Ok(());
    }
    // Not /proc/net: that is the namespace of the process, this the one of the thread.
    let path = PathBuf::from("/proc/thread-self/net/ipv6_route");
    let routes = fs::read_to_string(&path).map_err(|source| BuiltinError::Sysctl {
        path,
        value: None,
        source,
    })?;
    for link in advertised_default_links(&routes) {
        let key = format!("ipv6/conf/{link}/accept_ra");
        if read(&key)?.as_deref() == Some("1") {
            ensure(&key, "2")?;
        }
    }
    ensure("ipv6/conf/all/forwarding", "1")
}

/// The links with a default route learnt from advertisements, of the kernel's route table:
/// ten columns, flags in the ninth, the link in the tenth.
fn advertised_default_links(routes: &str) -> BTreeSet<&str> {
    /// `RTF_DEFAULT | RTF_ADDRCONF` of linux/ipv6_route.h.
    const LEARNT: u32 = 0x0005_0000;
    let of_line = |line| {
        let mut columns = str::split_whitespace(line).skip(8);
        let flags = u32::from_str_radix(columns.next()?, 16).ok()?;
        let link = columns.next()?;
        (flags & LEARNT == LEARNT).then_some(link)
    };
    routes.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_learnt_default_routes_count() {
        let zero = "0".repeat(32);
        let line = |flags: &str, link: &str| {
            format!("{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 {flags} {link}\n")
        };
        let table =
            line("00450003", "eth0") + &line("00000003", "eth1") + &line("00450003", "eth0");
        assert_eq!(advertised_default_links(&table), BTreeSet::from(["eth0"]));
        assert_eq!(advertised_default_links("odd\n"), BTreeSet::new());
    }
}
