//! The operator's configuration: one table of keys, the file's form, and its check.
//!
//! The table [`KEYS`] gives the default file (`axild --print-config`) and the check for unknown keys; a
//! test keeps it equal to the structure the file is read into.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::domain::pod::cgroup::{CgroupDriver, CgroupNames};

mod images;
mod policy;
mod runtime;
mod streaming;

pub use images::{ImageConfig, LayerBounds};
pub use policy::{IdentityConfig, PolicyConfig, RuleConfig, SignerConfig};
pub use runtime::{HandlerConfig, RuntimeConfig};
pub use streaming::StreamingConfig;

/// One key of the configuration file.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted name.
    pub name: &'static str,
    /// Default, as TOML.
    pub default: &'static str,
    /// What it means, with unit and range.
    pub help: &'static str,
}

const fn key(name: &'static str, default: &'static str, help: &'static str) -> Key {
    Key {
        name,
        default,
        help,
    }
}

/// Every key, in the order of the file.
pub const KEYS: &[Key] = &[
    key(
        "root",
        "\"/var/lib/axil\"",
        "Directory of images, layers and records; survives a reboot.",
    ),
    key(
        "state",
        "\"/run/axil\"",
        "Directory of run-time files; gone at a reboot.",
    ),
    key(
        "listen",
        "\"unix:///run/axil/axil.sock\"",
        "Socket of the CRI; an absolute unix:// path.",
    ),
    key(
        "metrics.listen",
        "\"127.0.0.1:9630\"",
        "Address of /metrics; empty serves none.",
    ),
    key(
        "streaming.listen",
        "\"127.0.0.1:0\"",
        "Address of exec, attach and port-forward, for the kubelet of this node; port 0 is any.",
    ),
    key(
        "streaming.tls_cert",
        "\"\"",
        "Certificate chain in PEM form; empty serves without TLS.",
    ),
    key(
        "streaming.tls_key",
        "\"\"",
        "Private key of streaming.tls_cert in PEM form.",
    ),
    key(
        "streaming.idle_timeout",
        "\"4h\"",
        "A session in which nothing moves for this long is ended.",
    ),
    key(
        "log.level",
        "\"info\"",
        "error, warn, info, debug or trace; or a filter such as axild=debug.",
    ),
    key("log.format", "\"text\"", "text or json."),
    key(
        "runtime.shim",
        "\"\"",
        "Shim binary; empty is containerd-shim-axil-v1 beside axild.",
    ),
    key(
        "runtime.binary",
        "\"\"",
        "OCI runtime binary; empty is runc-lite beside axild.",
    ),
    key(
        "runtime.allowed_annotations",
        "[]",
        "Annotations of pods and containers that go into config.json: names, or prefixes that end in *.",
    ),
    key(
        "runtime.handlers",
        "{}",
        "Further handlers for RuntimeClasses: a table [runtime.handlers.NAME] each, with binary, allowed_annotations and snapshotter (overlayfs or copy, if not images.snapshotter).",
    ),
    key(
        "cdi.spec_dirs",
        "[\"/etc/cdi\", \"/var/run/cdi\"]",
        "Directories of CDI documents (.json, .yaml), read at each creation; of two that have a device the later directory wins.",
    ),
    key(
        "cgroups.driver",
        "\"cgroupfs\"",
        "cgroupfs or systemd; the kubelet's cgroupDriver must be the same, it asks.",
    ),
    key(
        "cgroups.parent",
        "\"\"",
        "cgroup of pods for which the kubelet names none: a path, or a slice with systemd; empty is /axil or axil.slice.",
    ),
    key(
        "images.hosts_dirs",
        "[\"/etc/axil/certs.d\", \"/etc/containerd/certs.d\"]",
        "Directories with <host>/hosts.toml files; the first that has a host wins.",
    ),
    key(
        "images.max_concurrent_downloads",
        "3",
        "Layers of one image fetched at once, 1 to 32.",
    ),
    key(
        "images.progress_timeout",
        "\"60s\"",
        "A download without 16 KiB more for so long has failed, however large it is.",
    ),
    key(
        "images.abandoned_pull_timeout",
        "\"30s\"",
        "How long a pull goes on after its last caller left; a caller that comes back within that time joins it.",
    ),
    key(
        "images.connect_timeout",
        "\"10s\"",
        "Longest time to reach a registry: name, connection, proxy and TLS; dial_timeout of a hosts.toml goes before.",
    ),
    key(
        "images.document_timeout",
        "\"30s\"",
        "Longest time for one try of a manifest, configuration or token.",
    ),
    key(
        "images.max_retries",
        "4",
        "Further tries of a request to one host, 0 to 20; progress in between starts the count anew.",
    ),
    key(
        "images.retry_backoff",
        "\"250ms\"",
        "First pause between tries; later ones double, up to 10s.",
    ),
    key(
        "images.max_retry_after",
        "\"30s\"",
        "Longest pause a registry may ask for (Retry-After); one that asks for more is told to the kubelet at once.",
    ),
    key(
        "images.max_transfers_per_host",
        "8",
        "Transfers of layers from one registry host at once, 1 to 64, over all pulls.",
    ),
    key(
        "images.ranges_per_layer",
        "4",
        "Parts of a large layer fetched at once, 1 to 16, where the registry serves ranges; 1 fetches layers whole.",
    ),
    key(
        "images.range_size",
        "\"8MiB\"",
        "Size of such a part, 1MiB to 64MiB.",
    ),
    key(
        "images.range_threshold",
        "\"32MiB\"",
        "Layers with less than this to fetch are fetched whole.",
    ),
    key(
        "images.download_buffer",
        "\"64MiB\"",
        "Memory for parts that came before their turn, over all pulls, at most 4GiB.",
    ),
    key(
        "images.max_redirects",
        "10",
        "Redirects followed for one request, 0 to 20.",
    ),
    key(
        "images.max_token_size",
        "\"256KiB\"",
        "Largest answer of a token server, 1KiB to 4MiB.",
    ),
    key(
        "images.max_document_size",
        "\"4MiB\"",
        "Largest manifest, index or configuration, 64KiB to 4MiB.",
    ),
    key(
        "images.max_documents",
        "32",
        "Most documents from a reference to its image, 1 to 1024.",
    ),
    key(
        "images.max_index_depth",
        "4",
        "Deepest chain of indexes and the manifest at its end, 1 to 16.",
    ),
    key(
        "images.max_descriptors",
        "2048",
        "Most entries in all documents of an image, 1 to 65536.",
    ),
    key(
        "images.max_layers",
        "512",
        "Most layers of an image, 1 to 512.",
    ),
    key(
        "images.max_layer_size",
        "\"1TiB\"",
        "Largest compressed layer, and sum of an image's layers, at most 1TiB.",
    ),
    key(
        "images.allow_nondistributable",
        "false",
        "Take layers marked as non-distributable if the registry itself has them; other places are never asked.",
    ),
    key(
        "images.pinned",
        "[]",
        "Images exempt from garbage collection: references, ids, or names with * for any characters; shown to the kubelet.",
    ),
    key(
        "images.snapshotter",
        "\"auto\"",
        "auto, overlayfs or copy; auto is overlayfs where a trial mount works.",
    ),
    key(
        "images.unpack_timeout",
        "\"120s\"",
        "An unpack process without progress for so long is killed.",
    ),
    key(
        "images.layer.unpacked_bytes",
        "\"64GiB\"",
        "Largest layer after inflating.",
    ),
    key(
        "images.layer.entries",
        "2000000",
        "Most entries of a layer's archive.",
    ),
    key(
        "images.layer.path_depth",
        "256",
        "Most components of a path, up to 2048.",
    ),
    key(
        "images.layer.header_bytes",
        "\"1MiB\"",
        "Largest extended header of an entry, and so all its attributes together.",
    ),
    key(
        "images.layer.sparse_segments",
        "65536",
        "Most segments of a sparse file.",
    ),
    key(
        "images.layer.remembered_bytes",
        "\"64MiB\"",
        "Names of directories and links kept in memory until a layer is done, 1MiB to 1GiB.",
    ),
    key(
        "images.layer.skeleton_bytes",
        "\"256MiB\"",
        "Largest skeleton; a layer beyond it cannot be checked deeply or exported.",
    ),
    key(
        "images.layer.zstd_window",
        "\"32MiB\"",
        "Largest window of a zstd layer, 1MiB to 2GiB; as much memory is used.",
    ),
    key(
        "images.policy.default",
        "\"allow\"",
        "allow or deny: images that no rule fits.",
    ),
    key(
        "images.policy.rules",
        "[]",
        "Rules for pulls, imports and use; the first that fits decides. { name = \"no-hub\", images = [\"docker.io\"], namespaces = [\"prod\"], action = \"deny\" }: images are scopes such as docker.io/library, *.example.com or *; without namespaces it is for all; action is allow, deny or signed, with signers = [\"release\"].",
    ),
    key(
        "images.policy.signers",
        "{}",
        "Who signs, for rules with action signed. release = { keys = [\"/etc/axil/release.pub\"] }, or keyless = { trusted_root = \"/etc/axil/trusted_root.json\", identities = [{ issuer = \"https://accounts.example.com\", subject = \"release@example.com\" }] }.",
    ),
    key(
        "cni.conf_dir",
        "\"/etc/cni/net.d\"",
        "Directory of conflists; the first by name serves.",
    ),
    key(
        "cni.bin_dirs",
        "[\"/opt/cni/bin\", \"/usr/lib/cni\"]",
        "Directories of plugins.",
    ),
    key(
        "cni.plugin_timeout",
        "\"60s\"",
        "A plugin that runs longer is killed.",
    ),
    key(
        "network.enabled",
        "true",
        "Serve pods by the built-in network while there is no conflist.",
    ),
    key(
        "network.bridge",
        "\"axil0\"",
        "Bridge of the built-in network, at most 15 characters.",
    ),
    key(
        "network.subnets",
        "[\"10.88.0.0/16\", \"fd00:10:88::/64\"]",
        "Subnets of the built-in network.",
    ),
    key(
        "network.mtu",
        "0",
        "MTU of the built-in network in bytes; 0 is the kernel's default.",
    ),
];

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or a value has the wrong type.
    #[error("configuration {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A key that does not exist.
    #[error("configuration {}: unknown key {key:?}{suggestion}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// "; did you mean …?", or nothing.
        suggestion: String,
    },
    /// A value that cannot be.
    #[error("configuration key {key} = {value:?}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// As [`ConfigError::Value`], of a table whose name the operator chose.
    #[error("configuration key {key} = {value:?}: {reason}")]
    HandlerValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is wrong.
        reason: String,
    },
}

/// The configuration. Every field has its default in [`KEYS`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Durable files.
    pub root: PathBuf,
    /// Run-time files.
    pub state: PathBuf,
    /// CRI socket, `unix:///…`.
    pub listen: String,
    /// Metrics endpoint.
    pub metrics: MetricsConfig,
    /// Exec, attach and port-forward.
    pub streaming: StreamingConfig,
    /// Logs.
    pub log: LogConfig,
    /// Shim and OCI runtime.
    pub runtime: RuntimeConfig,
    /// Devices of CDI.
    pub cdi: CdiConfig,
    /// cgroups.
    pub cgroups: CgroupConfig,
    /// Images.
    pub images: ImageConfig,
    /// CNI.
    pub cni: CniConfig,
    /// Built-in network.
    pub network: NetworkConfig,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address, or empty.
    pub listen: String,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Level or filter.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

/// `[cdi]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdiConfig {
    /// Directories of documents.
    pub spec_dirs: Vec<PathBuf>,
}

impl CdiConfig {
    fn check(&self) -> Result<(), ConfigError> {
        match self.spec_dirs.iter().find(|dir| !dir.is_absolute()) {
            Some(dir) => Err(ConfigError::Value {
                key: "cdi.spec_dirs",
                value: dir.display().to_string(),
                reason: "must be absolute paths".to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// `[cgroups]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupConfig {
    /// Driver.
    pub driver: String,
    /// Own parent, or empty.
    pub parent: String,
}

impl CgroupConfig {
    /// The names of pods' cgroups.
    ///
    /// # Errors
    /// The driver is unknown, or the parent is none of its.
    pub fn names(&self) -> Result<CgroupNames, ConfigError> {
        let wrong = |key, value: &str, reason: &str| ConfigError::Value {
            key,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        let driver = CgroupDriver::named(&self.driver).ok_or_else(|| {
            wrong(
                "cgroups.driver",
                &self.driver,
                "must be cgroupfs or systemd",
            )
        })?;
        CgroupNames::new(driver, &self.parent)
            .map_err(|why| wrong("cgroups.parent", &self.parent, why))
    }
}

/// `[cni]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CniConfig {
    /// Conflists.
    pub conf_dir: PathBuf,
    /// Plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Bound of one plugin run.
    #[serde(deserialize_with = "seconds")]
    pub plugin_timeout: Duration,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Whether it serves without a conflist.
    pub enabled: bool,
    /// Bridge.
    pub bridge: String,
    /// Subnets.
    pub subnets: Vec<String>,
    /// MTU, or 0.
    pub mtu: u32,
}

impl Config {
    /// The defaults, with the file's values over them when there is a file.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or has a key or value that cannot be.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let mut table = defaults();
        if let Some(path) = path {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            let given: toml::Table =
                toml::from_str(&text).map_err(|source| ConfigError::Parse {
                    path: path.to_owned(),
                    source: Box::new(source),
                })?;
            check_keys(path, "", &given)?;
            merge(&mut table, given);
        }
        let config: Self = table.try_into().map_err(|source| ConfigError::Parse {
            path: path.map_or_else(|| PathBuf::from("(defaults)"), Path::to_owned),
            source: Box::new(source),
        })?;
        Ok(config)
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// The key, its value and what is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: String, reason: &str| {
            Err(ConfigError::Value {
                key,
                value,
                reason: reason.to_owned(),
            })
        };
        for (key, path) in [("root", &self.root), ("state", &self.state)] {
            if !path.is_absolute() {
                return wrong(key, path.display().to_string(), "must be an absolute path");
            }
        }
        if self.socket().is_none() {
            return wrong(
                "listen",
                self.listen.clone(),
                "must be unix:// and an absolute path",
            );
        }
        if !self.metrics.listen.is_empty() && self.metrics.listen.parse::<SocketAddr>().is_err() {
            return wrong(
                "metrics.listen",
                self.metrics.listen.clone(),
                "must be ADDRESS:PORT",
            );
        }
        self.streaming.check()?;
        if !matches!(self.log.format.as_str(), "text" | "json") {
            return wrong(
                "log.format",
                self.log.format.clone(),
                "must be text or json",
            );
        }
        self.cgroups.names()?;
        self.cdi.check()?;
        self.runtime.check()?;
        let bridge = &self.network.bridge;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if bridge.is_empty() || bridge.len() > 15 || !bridge.chars().all(plain) {
            let why = "must be 1 to 15 of A-Z a-z 0-9 _ -";
            return wrong("network.bridge", bridge.clone(), why);
        }
        for subnet in &self.network.subnets {
            if subnet.parse::<ipnet::IpNet>().is_err() {
                return wrong("network.subnets", subnet.clone(), "must be ADDRESS/PREFIX");
            }
        }
        let mtu = self.network.mtu;
        if mtu != 0 && !(1280..=65535).contains(&mtu) {
            return wrong("network.mtu", mtu.to_string(), "must be 0 or 1280 to 65535");
        }
        self.images.check()
    }

    /// Path of the CRI socket.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        let path = Path::new(self.listen.strip_prefix("unix://")?);
        path.is_absolute().then(|| path.to_owned())
    }

    /// The socket of the operator's commands.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }
}

/// The default configuration file, each key with its help.
#[must_use]
pub fn default_file() -> String {
    let mut text = String::new();
    let mut section = "";
    for Key {
        name,
        default,
        help,
    } in KEYS
    {
        let (table, last) = name.rsplit_once('.').unwrap_or(("", name));
        if table != section {
            section = table;
            text.push_str(&format!("\n[{table}]\n"));
        }
        // An empty table in the file would forbid the sections of its entries.
        let mark = if *default == "{}" { "# " } else { "" };
        text.push_str(&format!("# {help}\n{mark}{last} = {default}\n"));
    }
    text
}

fn defaults() -> toml::Table {
    toml::from_str(&default_file()).expect("the table of keys is TOML; a test reads it")
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(given)) => merge(inner, given),
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}

fn check_keys(path: &Path, prefix: &str, table: &toml::Table) -> Result<(), ConfigError> {
    for (name, value) in table {
        let full = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        let below = format!("{full}.");
        match value {
            toml::Value::Table(inner) if KEYS.iter().any(|k| k.name.starts_with(&below)) => {
                check_keys(path, &full, inner)?;
            }
            _ if KEYS.iter().any(|k| k.name == full) => {}
            _ => {
                let suggestion = nearest(&full)
                    .map(|k| format!("; did you mean {k:?}?"))
                    .unwrap_or_default();
                return Err(ConfigError::UnknownKey {
                    path: path.to_owned(),
                    key: full,
                    suggestion,
                });
            }
        }
    }
    Ok(())
}

/// The key that differs least, if it differs by at most a third.
fn nearest(name: &str) -> Option<&'static str> {
    let best = KEYS
        .iter()
        .map(|k| (distance(k.name, name), k.name))
        .min()?;
    (best.0 <= name.len().max(best.1.len()).div_ceil(3)).then_some(best.1)
}

/// Levenshtein distance: how many characters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replace.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A duration such as "90s", "5m" or "500ms".
fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(serde::de::Error::custom)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no duration such as 60s"))?;
    let duration = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    };
    let positive = duration.filter(|duration| !duration.is_zero());
    positive.ok_or_else(|| format!("{text:?} is no duration above 0 in ms, s, m or h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file)).and_then(|config| config.check().map(|()| config))
    }

    #[test]
    fn the_table_of_keys_is_the_structure() {
        let config = Config::load(None).unwrap();
        config.check().unwrap();
        assert_eq!(load(&default_file()).unwrap(), config);
    }

    #[test]
    fn the_packaged_configuration_is_the_default_one() {
        assert_eq!(include_str!("../../packaging/config.toml"), default_file());
    }

    #[test]
    fn a_file_overrides_single_keys() {
        let config = load("state = '/s'\n[images]\nprogress_timeout = '2m'").unwrap();
        assert_eq!(config.state, Path::new("/s"));
        assert_eq!(config.images.progress_timeout, Duration::from_secs(120));
        assert_eq!(config.images.max_concurrent_downloads, 3);
    }

    #[test]
    fn a_handler_is_a_table_of_its_own() {
        let config = load("[runtime.handlers.crun]\nbinary = '/usr/bin/crun'").unwrap();
        let crun = HandlerConfig {
            binary: "/usr/bin/crun".into(),
            allowed_annotations: vec![],
            snapshotter: None,
        };
        assert_eq!(config.runtime.handlers["crun"], crun);
        let error = load("[runtime.handlers.crun]\nbinry = '/usr/bin/crun'").unwrap_err();
        let error = crate::domain::failure::chain(&error);
        assert!(error.contains("binry"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_a_suggestion() {
        let error = load("[cni]\nplugin_timeuot = '1s'")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"cni.plugin_timeuot\"; did you mean \"cni.plugin_timeout\"?"),
            "{error}"
        );
        let error = load("colour = 'red'").unwrap_err().to_string();
        assert!(error.contains("unknown key \"colour\""), "{error}");
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, key) in [
            ("root = 'x'", "root"),
            ("listen = 'tcp://1'", "listen"),
            ("[cgroups]\ndriver = 'none'", "cgroups.driver"),
            ("[cgroups]\nparent = '/'", "cgroups.parent"),
            (
                "[cgroups]\ndriver = 'systemd'\nparent = '/axil'",
                "cgroups.parent",
            ),
            (
                "[images]\nmax_concurrent_downloads = 0",
                "max_concurrent_downloads",
            ),
            ("[images]\nmax_retries = 21", "images.max_retries"),
            (
                "[images]\nrange_size = '100KiB'",
                "range_size = \"100KiB\": must be 1MiB",
            ),
            ("[images]\nmax_layers = 513", "images.max_layers"),
            ("[images]\npinned = ['a', 'B']", "images.pinned"),
            (
                "[images.layer]\nzstd_window = '1'",
                "images.layer.zstd_window",
            ),
            ("[images.layer]\npath_depth = 0", "images.layer.path_depth"),
            ("[metrics]\nlisten = 'here'", "metrics.listen"),
            (
                "[runtime]\nallowed_annotations = ['*']",
                "runtime.allowed_annotations = \"*\"",
            ),
            (
                "[runtime.handlers.axil]\nbinary = '/b'",
                "runtime.handlers.axil",
            ),
            (
                "[runtime.handlers.crun]\nbinary = 'crun'",
                "runtime.handlers.crun.binary = \"crun\"",
            ),
            (
                "[runtime.handlers.crun]\nbinary = '/b'\nallowed_annotations = ['a b']",
                "runtime.handlers.crun.allowed_annotations",
            ),
            ("[cdi]\nspec_dirs = ['cdi']", "cdi.spec_dirs = \"cdi\""),
            (
                "[runtime.handlers.kata]\nbinary = '/b'\nsnapshotter = 'zfs'",
                "runtime.handlers.kata.snapshotter = \"zfs\"",
            ),
            ("[streaming]\nlisten = ''", "streaming.listen"),
            ("[streaming]\ntls_cert = '/c'", "streaming.tls_key"),
            ("[network]\nbridge = 'a b'", "network.bridge"),
            ("[network]\nsubnets = ['x']", "network.subnets"),
            ("[network]\nmtu = 1", "network.mtu"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(load("[cni]\nplugin_timeout = '0s'").is_err());
    }
}
