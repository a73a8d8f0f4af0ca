//! A real registry: Debian's docker-registry on a free loopback port, over HTTP or HTTPS, with or
//! without authentication.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::children::{self, Running};
use crate::eventually::poll;
use crate::images::Image;
use crate::token::TokenServer;

/// The account of a registry with authentication.
pub const USER: &str = "puller";
/// Its password.
pub const PASSWORD: &str = "correct horse";

/// Whom a registry serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Everybody.
    #[default]
    Anonymous,
    /// [`USER`] by HTTP basic authentication.
    Basic,
    /// The bearer of a token that [`USER`] got from a token server.
    Token,
}

/// How to serve.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegistryOptions {
    /// Whom to serve.
    pub access: Access,
    /// HTTPS with a certificate of [`Registry::authority`].
    pub tls: bool,
}

/// A running registry; killed when dropped. Its files are below the directory it was given.
#[derive(Debug)]
pub struct Registry {
    address: String,
    options: RegistryOptions,
    certificate: PathBuf,
    layouts: PathBuf,
    _process: Running,
    _tokens: Option<TokenServer>,
}

impl Registry {
    /// Starts a registry that keeps everything below `dir`.
    ///
    /// # Errors
    /// When a needed program is missing or the registry does not answer within ten seconds.
    pub fn start(dir: &Path, options: RegistryOptions) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let certificate = dir.join("tls.crt");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
            dir.join("storage").display()
        );
        let tls_key = dir.join("tls.key");
        if options.tls {
            make_certificate(&certificate, &tls_key)?;
            config.push_str(&format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                certificate.display(),
                tls_key.display()
            ));
        }
        let mut tokens = None;
        match options.access {
            Access::Anonymous => {}
            Access::Basic => {
                let file = dir.join("htpasswd");
                let line = children::read("htpasswd", &["-Bbn", USER, PASSWORD])?;
                fs::write(&file, line).with_context(|| format!("write {}", file.display()))?;
                config.push_str(&format!(
                    "auth:\n  htpasswd:\n    realm: axil\n    path: {}\n",
                    file.display()
                ));
            }
            Access::Token => {
                let (cert, key) = (dir.join("token.crt"), dir.join("token.key"));
                make_certificate(&cert, &key)?;
                let tls = options.tls.then_some((&*certificate, &*tls_key));
                let server = TokenServer::start(&cert, &key, tls)?;
                config.push_str(&format!(
                    "auth:\n  token:\n    realm: {}\n    service: axil-registry\n    \
                     issuer: axil-tokens\n    rootcertbundle: {}\n",
                    server.realm(),
                    authority_of(&cert).display()
                ));
                tokens = Some(server);
            }
        }
        let file = dir.join("config.yml");
        fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
        let log = dir.join("registry.log");
        let output = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut process = Running::start(
            Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(output.try_clone().context("share the registry's log")?)
                .stderr(output),
        )?;
        wait_for(&address, &mut process, &log)?;
        let layouts = dir.join("layouts");
        Ok(Self {
            address,
            options,
            certificate,
            layouts,
            _process: process,
            _tokens: tokens,
        })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `http://…` or `https://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!(
            "http{}://{}",
            if self.options.tls { "s" } else { "" },
            self.address
        )
    }

    /// The certificate of the authority that vouches for a registry with TLS.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        authority_of(&self.certificate)
    }

    /// Pushes an image with skopeo and answers its reference.
    ///
    /// # Errors
    /// When skopeo fails; the message has its standard error.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<String> {
        let layout = self.layouts.join(repository).join(tag);
        image.write_layout(&layout, tag)?;
        let reference = format!("{}/{repository}:{tag}", self.address);
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]);
        if self.options.access != Access::Anonymous {
            skopeo.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        skopeo
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{reference}"));
        let done = children::output(&mut skopeo, &[])?;
        if !done.status.success() {
            bail!("push {reference} with skopeo: {}", done.text());
        }
        Ok(reference)
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}

fn wait_for(address: &str, process: &mut Running, log: &Path) -> Result<()> {
    let said = || fs::read_to_string(log).unwrap_or_default();
    let up = poll(Duration::from_secs(10), || match process.try_wait() {
        Some(status) => Some(Err(status)),
        None => std::net::TcpStream::connect(address).ok().map(|_| Ok(())),
    });
    match up {
        Some(Ok(())) => Ok(()),
        Some(Err(status)) => bail!("docker-registry ended at once ({status}): {}", said()),
        None => bail!("docker-registry does not answer at {address}: {}", said()),
    }
}

/// Makes a key and a certificate for loopback, signed by an authority of its own (`<certificate>.ca`).
fn make_certificate(certificate: &Path, key: &Path) -> Result<()> {
    let authority = authority_of(certificate);
    let (authority_key, request) = (key.with_extension("ca-key"), key.with_extension("csr"));
    let extensions = key.with_extension("ext");
    let text = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=critical,CA:FALSE\n";
    fs::write(&extensions, text).with_context(|| format!("write {}", extensions.display()))?;
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let new_key = ["-newkey", "rsa:2048", "-nodes", "-sha256"];
    let mut sign_authority = vec![
        "req",
        "-x509",
        "-days",
        "2",
        "-subj",
        "/CN=axil test authority",
    ];
    sign_authority.extend(new_key);
    let (a, ak) = (path(&authority), path(&authority_key));
    sign_authority.extend(["-keyout", &ak, "-out", &a]);
    children::read("openssl", &sign_authority)?;
    let (k, r, c, e) = (
        path(key),
        path(&request),
        path(certificate),
        path(&extensions),
    );
    let mut ask = vec![
        "req",
        "-new",
        "-subj",
        "/CN=axil test registry",
        "-keyout",
        &k,
        "-out",
        &r,
    ];
    ask.extend(new_key);
    children::read("openssl", &ask)?;
    let sign = [
        "x509",
        "-req",
        "-in",
        &r,
        "-CA",
        &a,
        "-CAkey",
        &ak,
        "-CAcreateserial",
        "-days",
        "2",
        "-sha256",
        "-extfile",
        &e,
        "-out",
        &c,
    ];
    children::read("openssl", &sign)?;
    Ok(())
}

fn authority_of(certificate: &Path) -> PathBuf {
    certificate.with_extension("ca")
}
