//! A test bed: a private "host" (the mount and network namespace of the test's thread), pods in
//! namespaces of their own, an outside world behind a link, and echo servers. All of it ends
//! with the thread and the bed.
#![expect(dead_code, reason = "each test binary uses its own part")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]
#![expect(unreachable_pub, reason = "shared by test binaries as a module")]

use std::{
    fs::{self, File},
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use axil_cni::{BuiltinOptions, Network, NetworkOptions, PodNetwork, PortMapping, Protocol, netns};
use nix::sched::{CloneFlags, unshare};

static COUNTER: AtomicU32 = AtomicU32::new(0);
pub const PLUGIN_DIR: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether a privileged test can run; when not, it says why, or fails if the tests must run.
pub fn privileged(needs: &[&str]) -> bool {
    let missing = needs.iter().find(|path| !Path::new(path).exists());
    let reason = match missing {
        _ if !nix_is_root() => "it needs root".to_owned(),
        Some(path) => format!("it needs {path}"),
        None => return true,
    };
    assert!(
        std::env::var_os("AXIL_TEST_REQUIRE").is_none_or(|v| v != "1"),
        "{reason}"
    );
    eprintln!("skipped: {reason}");
    false
}

fn nix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a test on a thread with namespaces of its own, so that `cargo test` may run several.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(Bed) -> F + Send + 'static) {
    let thread = thread::spawn(move || {
        let bed = Bed::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(bed));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program that must succeed, and returns its output.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{line}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

pub struct Bed {
    pub dir: tempfile::TempDir,
    pub options: NetworkOptions,
    pinned: Vec<PathBuf>,
}

impl Bed {
    fn new() -> Bed {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        run("mount --make-rprivate /");
        run("ip link set lo up");
        let dir = tempfile::tempdir().unwrap();
        for sub in ["net.d", "netns", "ipam"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let options = NetworkOptions {
            conf_dir: dir.path().join("net.d"),
            bin_dirs: vec![dir.path().join("bin"), PLUGIN_DIR.into()],
            cache_dir: dir.path().join("cache"),
            state_dir: dir.path().join("state"),
            plugin_timeout: Duration::from_secs(30),
            builtin: BuiltinOptions::default(),
        };
        Bed {
            dir,
            options,
            pinned: Vec::new(),
        }
    }

    pub fn network(&self) -> Network {
        Network::new(self.options.clone()).unwrap()
    }

    /// Writes a configuration file.
    pub fn conf(&self, name: &str, text: &str) {
        fs::write(self.options.conf_dir.join(name), text).unwrap();
    }

    /// Writes an executable plugin.
    pub fn plugin(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join("bin").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A pinned namespace and the pod that will live in it.
    pub fn pod(&mut self, ports: &[PortMapping]) -> PodNetwork {
        let id = format!(
            "pod-{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        PodNetwork {
            netns: self.namespace(&id),
            name: id.clone(),
            namespace: "default".into(),
            uid: format!("uid-{id}"),
            id,
            port_mappings: ports.to_vec(),
            ..PodNetwork::default()
        }
    }

    pub fn namespace(&mut self, name: &str) -> PathBuf {
        let path = self.dir.path().join("netns").join(name);
        netns::create(&path).unwrap();
        self.pinned.push(path.clone());
        path
    }

    /// A namespace behind a veth: 192.0.2.1 and 2001:db8::1 here, .2 and ::2 there, which has no
    /// route to pods. Returns its path.
    pub fn outside(&mut self) -> PathBuf {
        let path = self.namespace("outside");
        let name = path.display();
        run(&format!(
            "ip link add up0 type veth peer name up1 netns {name}"
        ));
        run("ip addr add 192.0.2.1/24 dev up0");
        run("ip addr add 2001:db8::1/64 dev up0 nodad");
        run("ip link set up0 up");
        inside(&path, || {
            run("ip link set lo up");
            run("ip addr add 192.0.2.2/24 dev up1");
            run("ip addr add 2001:db8::2/64 dev up1 nodad");
            run("ip link set up1 up");
        });
        path
    }

    /// The files below a directory of the bed.
    pub fn files(&self, dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                found.extend(self.files(&entry.path()));
            } else {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        found.sort();
        found
    }

    /// The leased addresses of the built-in network.
    pub fn leases(&self) -> Vec<String> {
        let mut files = self.files(&self.options.state_dir);
        files.retain(|name| name != "last");
        files
    }

    /// Nothing of any pod is left on the host.
    pub fn assert_clean(&self, network: &Network) {
        assert_eq!(network.attached(), Vec::<String>::new());
        assert_eq!(self.leases(), Vec::<String>::new());
        let links = run("ip -o link show type veth");
        let links: Vec<_> = links.lines().filter(|line| !line.contains("up0")).collect();
        assert_eq!(links, Vec::<&str>::new());
        let table = Command::new("nft")
            .args(["list", "table", "inet", "axil"])
            .output()
            .unwrap();
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        assert!(
            !table.contains("tcp .") && !table.contains("udp ."),
            "{table}"
        );
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for path in &self.pinned {
            let _ = netns::remove(path);
        }
    }
}

pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(path).unwrap();
    netns::run_in(file.as_fd(), work).unwrap()
}

pub fn tcp(host_ip: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = host_ip.map(|text| text.parse().unwrap());
    PortMapping {
        host_ip,
        host_port,
        container_port,
        protocol: Protocol::Tcp,
    }
}

/// Serves on a port of every address of a namespace: answers each connection with the peer's
/// address. Ends with the process.
pub fn serve_tcp(netns: &Path, port: u16) {
    let listener = inside(netns, || TcpListener::bind(format!("[::]:{port}")).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream: TcpStream = stream;
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
}

/// The same over UDP.
pub fn serve_udp(netns: &Path, port: u16, answer: &'static str) {
    let socket = inside(netns, || UdpSocket::bind(format!("[::]:{port}")).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(answer.as_bytes(), peer);
        }
    });
}

/// What the server at the address saw as peer, asked from this namespace.
pub fn ask(address: &str) -> Result<String, std::io::Error> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The same from inside a namespace.
pub fn ask_from(netns: &Path, address: &str) -> Result<String, std::io::Error> {
    inside(netns, || ask(address))
}

pub fn refused(answer: Result<String, std::io::Error>) {
    assert!(answer.is_err(), "answered {answer:?}");
}

pub fn ask_udp(socket: &UdpSocket, address: &str) -> Option<String> {
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let _ = socket.send_to(b"?", address);
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub fn at(ip: &IpAddr, port: u16) -> String {
    SocketAddr::new(*ip, port).to_string()
}
