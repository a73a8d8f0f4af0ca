//! What this machine's apt is configured with: sources of Debian packages, proxies, and the newest kernel.
//!
//! Where packages come from is the machine's business. It is asked each time; nothing is written here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::children;

/// The package that always depends on the newest kernel of its suite.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Debian as apt is configured here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Code name of the release the guest gets.
    pub suite: String,
    /// Lines of a sources list.
    pub lines: Vec<String>,
    /// Lines of an apt configuration: how to reach the sources.
    pub options: Vec<String>,
}

impl Sources {
    /// Asks apt.
    ///
    /// # Errors
    /// When apt fails or has no source of Debian's.
    pub fn of_this_machine() -> Result<Self> {
        let format = "$(CREATED_BY)|$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
        let targets = children::read("apt-get", &["indextargets", "--format", format])?;
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let (suite, lines) = parse_targets(&targets, code_name(&release)).context(
            "apt has no source of Debian packages here (origin Debian): the guest is made of them",
        )?;
        let options = children::read("apt-config", &["dump"])?;
        Ok(Self {
            suite,
            lines,
            options: parse_options(&options),
        })
    }
}

/// `VERSION_CODENAME` of an os-release file.
fn code_name(release: &str) -> Option<&str> {
    let line = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"'))
}

/// The suite and the lines of a sources list, from one line per index of apt. Prefers the release the machine
/// itself runs; its updates, security fixes and backports belong to it.
fn parse_targets(targets: &str, own: Option<&str>) -> Option<(String, Vec<String>)> {
    let indexes: Vec<[&str; 4]> = targets
        .lines()
        .filter_map(|line| line.strip_prefix("Packages|Debian|"))
        .filter_map(|line| line.split('|').collect::<Vec<_>>().try_into().ok())
        .collect();
    let mut names = indexes.iter().map(|[name, ..]| *name);
    let suite = own
        .filter(|own| names.clone().any(|name| name == *own))
        .or_else(|| names.find(|name| !name.contains('-')))?;
    let belongs = |name: &str| {
        let rest = name.strip_prefix(suite);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let mut lines: Vec<String> = indexes
        .iter()
        .filter(|[name, ..]| belongs(name))
        .map(|[_, uri, release, component]| format!("deb {uri} {release} {component}"))
        .collect();
    lines.sort();
    lines.dedup();
    Some((suite.to_owned(), lines))
}

/// The options that say how to reach a source: proxies, certificates, retries.
fn parse_options(dump: &str) -> Vec<String> {
    let wanted = ["Acquire::http", "Acquire::https", "Acquire::Retries"];
    let lines = dump
        .lines()
        .filter(|line| wanted.iter().any(|key| line.starts_with(key)) && !line.ends_with(" \"\";"));
    lines.map(str::to_owned).collect()
}

/// A kernel package that apt can fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPackage {
    /// Name with the kernel's own version in it.
    pub name: String,
    /// Version of the package.
    pub version: String,
}

impl KernelPackage {
    /// The newest one of all configured sources, backports too.
    ///
    /// # Errors
    /// When apt knows none.
    pub fn newest() -> Result<Self> {
        let mut list = madison()?;
        if list.is_empty() && nix::unistd::geteuid().is_root() {
            // A fresh machine has no lists of packages yet.
            let _ = children::read("apt-get", &["update", "-q"])?;
            list = madison()?;
        }
        ensure!(
            !list.is_empty(),
            "apt knows no package {KERNEL}; run apt-get update"
        );
        let mut newest = list[0].clone();
        for version in &list[1..] {
            let args = [
                "--compare-versions",
                version.as_str(),
                "gt",
                newest.as_str(),
            ];
            if children::run("dpkg", &args)?.status.success() {
                newest.clone_from(version);
            }
        }
        let show = children::read(
            "apt-cache",
            &["show", "--no-all-versions", &format!("{KERNEL}={newest}")],
        )?;
        parse_dependency(&show)
            .with_context(|| format!("{KERNEL} {newest} depends on no kernel:\n{show}"))
    }

    /// Fetches it into `dir` and answers nothing; the file is the only one there that ends with `.deb`.
    ///
    /// # Errors
    /// When apt fails.
    pub fn download(&self, dir: &Path) -> Result<()> {
        let mut command = Command::new("apt-get");
        let package = format!("{}={}", self.name, self.version);
        command.args(["download", "-q", &package]).current_dir(dir);
        let done = children::output(&mut command, &[])?;
        ensure!(
            done.status.success(),
            "apt-get download {package}: {}",
            done.text()
        );
        Ok(())
    }
}

fn madison() -> Result<Vec<String>> {
    let table = children::read("apt-cache", &["madison", KERNEL])?;
    let versions = table.lines().filter_map(|line| line.split('|').nth(1));
    Ok(versions.map(|version| version.trim().to_owned()).collect())
}

/// `Depends: linux-image-6.1.0-1-cloud-amd64 (= 6.1.2-3)`.
fn parse_dependency(show: &str) -> Option<KernelPackage> {
    let depends = show
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))?;
    let package = depends
        .split(", ")
        .find(|name| name.starts_with("linux-image-"))?;
    let (name, version) = package.split_once(" (= ")?;
    Some(KernelPackage {
        name: name.to_owned(),
        version: version.trim_end_matches(')').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "Packages|Debian|bookworm|http://mirror/debian/|bookworm|main
Translations|Debian|bookworm|http://mirror/debian/|bookworm|main
Packages|Debian|bookworm-security|http://mirror/security/|bookworm-security|main
Packages|Debian Backports|bookworm-backports|http://mirror/debian/|bookworm-backports|main
Packages|Debian|trixie|http://mirror/debian/|testing|main
Packages|Somebody|nodistro|http://other/|nodistro|main
";

    #[test]
    fn the_machine_s_own_release_is_taken_with_its_updates() {
        let (suite, lines) = parse_targets(TARGETS, Some("bookworm")).unwrap();
        assert_eq!(suite, "bookworm");
        assert_eq!(
            lines,
            [
                "deb http://mirror/debian/ bookworm main",
                "deb http://mirror/security/ bookworm-security main",
            ]
        );
        // On a derivative with Debian sources, the first release that is one.
        assert_eq!(parse_targets(TARGETS, Some("noble")).unwrap().0, "bookworm");
        assert_eq!(parse_targets("Packages|Somebody|x|u|x|main", None), None);
    }

    #[test]
    fn proxies_are_passed_on_and_the_rest_is_not() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://proxy:3128\";\nAcquire::https \"\";\nAPT::Get \"1\";\n";
        assert_eq!(
            parse_options(dump),
            ["Acquire::http::Proxy \"http://proxy:3128\";"]
        );
    }

    #[test]
    fn the_kernel_is_what_the_metapackage_depends_on() {
        let show = "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-1-cloud-amd64 (= 6.1.2-3)\n";
        let package = parse_dependency(show).unwrap();
        assert_eq!(package.name, "linux-image-6.1.0-1-cloud-amd64");
        assert_eq!(package.version, "6.1.2-3");
        assert_eq!(parse_dependency("Depends: libc6\n"), None);
        assert_eq!(code_name("A=b\nVERSION_CODENAME=trixie\n"), Some("trixie"));
    }
}
