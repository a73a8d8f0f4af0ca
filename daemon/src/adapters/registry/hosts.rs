//! Which servers stand for a registry host: containerd's `certs.d/<host>/hosts.toml`, read anew for
//! every pull, so that an edit needs no restart.
//!
//! ```text
//! server = "https://registry.example"       # last; default: https://<host>
//! [host."https://mirror.example"]           # tried first, in the order of the file
//!   capabilities = ["pull", "resolve"]
//! ```
//!
//! A table for the server itself, as many files have one to name its authority, is about the server wherever
//! the file's root says nothing else of it; where such a table is the last one, the server is asked once.
//!
//! A directory without `hosts.toml` is read as docker's: `*.crt` are authorities, `*.cert` with
//! `*.key` client certificates.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::origin::{Origin, Scheme, Target, UrlProblem, is_loopback};

/// Largest hosts.toml, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most mirrors of one host.
const MAX_HOSTS: usize = 64;
/// Longest dial timeout that may be configured.
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(600);

/// One server to ask.
#[derive(Debug, Clone)]
pub(super) struct HostConfig {
    pub(super) origin: Origin,
    /// The prefix of all paths, e.g. `/v2`, without a slash at its end.
    pub(super) path: String,
    /// The value of the `ns` parameter that tells a mirror whose content is meant.
    pub(super) namespace: Option<String>,
    /// Content by digest may be fetched here.
    pub(super) pull: bool,
    /// Tags may be resolved here.
    pub(super) resolve: bool,
    /// Credentials of the pull may be sent here: it is the registry itself, not a mirror.
    pub(super) trusted: bool,
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
    pub(super) tls: TlsFiles,
}

/// Files that decide about TLS with one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    /// PEM files of authorities, in addition to the machine's.
    pub(super) authorities: Vec<PathBuf>,
    /// PEM files of client certificates with the file of their key.
    pub(super) clients: Vec<(PathBuf, PathBuf)>,
    /// The server's certificate is not verified.
    pub(super) skip_verify: bool,
}

/// Returns the servers for `reference_host` in the order to ask them; the last one is the registry
/// itself. Blocking: reads files.
pub(super) fn load(roots: &[PathBuf], reference_host: &str) -> Result<Vec<HostConfig>, HostsError> {
    let Some(directory) = find_directory(roots, reference_host)? else {
        return Ok(vec![upstream(reference_host, RawHost::default(), None)?]);
    };
    let file = directory.join("hosts.toml");
    match read(&file) {
        Ok(text) => parse(&text, &file, reference_host),
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            let mut host = upstream(reference_host, RawHost::default(), None)?;
            host.tls = docker_files(&directory)?;
            // Certificates say that the operator means TLS, also on this machine.
            if host.tls != TlsFiles::default() {
                host.origin = Origin::new(Scheme::Https, upstream_authority(reference_host))
                    .map_err(|problem| HostsError::url(&directory, reference_host, problem))?;
            }
            Ok(vec![host])
        }
        Err(source) => Err(HostsError::Read { path: file, source }),
    }
}

/// Finds the directory of a host: `host_port_`, then `host:port`, then `_default`, per root.
fn find_directory(roots: &[PathBuf], host: &str) -> Result<Option<PathBuf>, HostsError> {
    // The grammar of references has no `/`, `_` or `..` in a host: the name stays below the root.
    let underscored = host
        .rsplit_once(':')
        .filter(|_| !host.ends_with(']'))
        .map(|(name, port)| format!("{name}_{port}_"));
    for root in roots {
        let names = underscored.iter().map(String::as_str);
        for name in names.chain([host, "_default"]) {
            let path = root.join(name);
            match path.metadata() {
                Ok(found) if found.is_dir() => return Ok(Some(path)),
                Ok(_) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(HostsError::Read { path, source }),
            }
        }
    }
    Ok(None)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "longer than 1 MiB",
        ));
    }
    Ok(text)
}

/// The fields of the file's root and of each `[host]` table.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawHost {
    capabilities: Option<Vec<Capability>>,
    ca: Option<OneOrMany>,
    client: Option<RawClient>,
    skip_verify: bool,
    header: toml::map::Map<String, toml::Value>,
    override_path: bool,
    dial_timeout: Option<String>,
}

impl RawHost {
    /// Nothing is said of the host.
    fn is_bare(&self) -> bool {
        let Self {
            capabilities: None,
            ca: None,
            client: None,
            skip_verify: false,
            header,
            override_path: _,
            dial_timeout: None,
        } = self
        else {
            return false;
        };
        header.is_empty()
    }
}

#[derive(Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Capability {
    Pull,
    Resolve,
    /// Accepted and without meaning here.
    Push,
    /// Accepted and without meaning here.
    Referrers,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawClient {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<(String, String)>),
}

pub(super) fn parse(
    text: &str,
    file: &Path,
    reference_host: &str,
) -> Result<Vec<HostConfig>, HostsError> {
    let refuse = |key: &str, source: toml::de::Error| HostsError::Parse {
        path: file.to_owned(),
        key: key.to_owned(),
        // The error's own text quotes the file, which may hold header values.
        reason: source.message().to_owned(),
    };
    let mut table: toml::Table = toml::from_str(text).map_err(|source| refuse("", source))?;
    let server = table.remove("server");
    let tables = table.remove("host");
    let root =
        RawHost::deserialize(toml::Value::Table(table)).map_err(|source| refuse("", source))?;
    let server = match server {
        None => None,
        Some(toml::Value::String(server)) => Some(server),
        Some(_) => return Err(HostsError::invalid(file, "server", "is not a string")),
    };
    let tables = match tables {
        None => toml::Table::new(),
        Some(toml::Value::Table(tables)) => tables,
        Some(_) => return Err(HostsError::invalid(file, "host", "is not a table")),
    };
    if tables.len() > MAX_HOSTS {
        return Err(HostsError::invalid(
            file,
            "host",
            "has more than 64 entries",
        ));
    }
    let is_bare = root.is_bare();
    let mut last = upstream(reference_host, root, Some((file, server.as_deref())))?;
    let mut hosts = Vec::with_capacity(tables.len() + 1);
    for (url, value) in tables {
        let key = format!("host.\"{}\"", url_for_error(&url));
        let raw = RawHost::deserialize(value).map_err(|source| refuse(&key, source))?;
        hosts.push(resolve(raw, &url, &key, file, reference_host)?);
    }
    for host in &mut hosts {
        host.trusted = host.origin == last.origin;
    }
    let is_own = |host: &HostConfig| host.origin == last.origin && host.path == last.path;
    if is_bare && let Some(own) = hosts.iter().rposition(is_own) {
        last = HostConfig {
            pull: true,
            resolve: true,
            ..hosts[own].clone()
        };
        if own + 1 == hosts.len() {
            hosts.pop();
        }
    }
    hosts.push(last);
    Ok(hosts)
}

/// Removes what may be secret from a URL of the file.
fn url_for_error(url: &str) -> String {
    super::redact::scrubbed(url, &[])
}

/// Returns the registry itself: `server`, or what the reference's host means by default.
fn upstream(
    reference_host: &str,
    raw: RawHost,
    file: Option<(&Path, Option<&str>)>,
) -> Result<HostConfig, HostsError> {
    let (path, server) = match file {
        Some((path, server)) => (path, server),
        None => (Path::new("reference"), None),
    };
    let url = match server {
        Some(server) => server.to_owned(),
        None => {
            let authority = upstream_authority(reference_host);
            format!("{}://{authority}", default_scheme(reference_host).as_str())
        }
    };
    let mut host = resolve(raw, &url, "server", path, reference_host)?;
    host.trusted = true;
    Ok(host)
}

fn upstream_authority(reference_host: &str) -> &str {
    match reference_host {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// Plain HTTP is the default only for this machine, and not for the port of HTTPS.
fn default_scheme(reference_host: &str) -> Scheme {
    let (name, port) = match reference_host.rsplit_once(':') {
        Some((name, port)) if !reference_host.ends_with(']') => (name, port),
        _ => (reference_host, ""),
    };
    if is_loopback(name) && port != "443" {
        Scheme::Http
    } else {
        Scheme::Https
    }
}

fn resolve(
    raw: RawHost,
    url: &str,
    key: &str,
    file: &Path,
    reference_host: &str,
) -> Result<HostConfig, HostsError> {
    let absolute = if url.contains("://") {
        url.to_owned()
    } else {
        format!("https://{url}")
    };
    let target = Target::parse(&absolute).map_err(|problem| HostsError::url(file, key, problem))?;
    let mut path = target.path().trim_end_matches('/').to_owned();
    if !raw.override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    let has = |wanted| {
        raw.capabilities
            .as_ref()
            .is_none_or(|listed| listed.contains(&wanted))
    };
    let is_registry = [reference_host, upstream_authority(reference_host)]
        .iter()
        .any(|host| Origin::new(target.origin.scheme, host).is_ok_and(|o| o == target.origin));
    let dial_timeout = match raw.dial_timeout.as_deref() {
        None => None,
        Some(text) => Some(parse_duration(text).ok_or_else(|| {
            let reason = "is not a duration such as \"500ms\" or \"5s\", above 0, at most 10m";
            HostsError::invalid(file, &format!("{key}.dial_timeout"), reason)
        })?),
    };
    Ok(HostConfig {
        namespace: (!is_registry).then(|| reference_host.to_owned()),
        pull: has(Capability::Pull),
        resolve: has(Capability::Resolve),
        trusted: false,
        headers: headers(raw.header, key, file)?,
        dial_timeout,
        tls: tls_files(raw.ca, raw.client, raw.skip_verify, file),
        origin: target.origin,
        path,
    })
}

fn tls_files(
    ca: Option<OneOrMany>,
    client: Option<RawClient>,
    skip_verify: bool,
    file: &Path,
) -> TlsFiles {
    let directory = file.parent().unwrap_or(file);
    let place = |name: String| directory.join(name);
    // One file alone holds both the certificate and the key.
    let same = |name: String| (place(name.clone()), place(name));
    let clients = match client {
        None => Vec::new(),
        Some(RawClient::One(one)) => vec![same(one)],
        Some(RawClient::Many(many)) => many.into_iter().map(same).collect(),
        Some(RawClient::Pairs(pairs)) => pairs
            .into_iter()
            .map(|(cert, key)| match key.as_str() {
                "" => same(cert),
                _ => (place(cert), place(key)),
            })
            .collect(),
    };
    let authorities = ca.map(OneOrMany::into_vec).unwrap_or_default();
    TlsFiles {
        authorities: authorities.into_iter().map(place).collect(),
        clients,
        skip_verify,
    }
}

fn headers(
    raw: toml::map::Map<String, toml::Value>,
    key: &str,
    file: &Path,
) -> Result<HeaderMap, HostsError> {
    let mut headers = HeaderMap::new();
    for (name, value) in raw {
        let field = format!("{key}.header.{name}");
        let refuse = |reason| HostsError::invalid(file, &field, reason);
        let values = OneOrMany::deserialize(value)
            .map_err(|_| refuse("is not a string or a list of strings"))?;
        let header: HeaderName = name.parse().map_err(|_| refuse("is not a header name"))?;
        for value in values.into_vec() {
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| refuse("has a value that no header may have"))?;
            value.set_sensitive(true);
            headers.append(header.clone(), value);
        }
    }
    Ok(headers)
}

/// Parses Go's notation of durations: numbers with `h`, `m`, `s`, `ms`, one after another.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match rest.get(..end)? {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = rest.get(end..)?;
    }
    (total > Duration::ZERO && total <= MAX_DIAL_TIMEOUT).then_some(total)
}

/// Reads docker's layout: `*.crt` authorities, `*.cert` and `*.key` of the same name.
fn docker_files(directory: &Path) -> Result<TlsFiles, HostsError> {
    let refuse = |source| HostsError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut files = TlsFiles::default();
    for entry in std::fs::read_dir(directory).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => files.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                files.clients.push((path, key));
            }
            _ => {}
        }
    }
    files.authorities.sort();
    files.clients.sort();
    Ok(files)
}

/// Why the configuration of a host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("{}: {key}{}{reason}", .path.display(), if .key.is_empty() { "" } else { ": " })]
    Parse {
        /// The file.
        path: PathBuf,
        /// The table, empty for the root.
        key: String,
        /// The parser's words, which name the key.
        reason: String,
    },
    /// A value cannot be used.
    #[error("{}: {key} {reason}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with its value.
        reason: &'static str,
    },
    /// A URL cannot be used.
    #[error("{}: {key}: {source}", .path.display())]
    Url {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with the URL.
        source: UrlProblem,
    },
    /// A certificate or key cannot be used.
    #[error("{}: {reason}", .path.display())]
    Certificate {
        /// The PEM file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl HostsError {
    fn invalid(path: &Path, key: &str, reason: &'static str) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            key: key.to_owned(),
            reason,
        }
    }

    fn url(path: &Path, key: &str, source: UrlProblem) -> Self {
        Self::Url {
            path: path.to_owned(),
            key: key.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
