//! The built-in network: one bridge, a veth pair per pod, leased addresses, one nf_tables table.
//! Synchronous; [`crate::Network`] calls it on worker threads.
//!
//! Steps of `attach` and what takes each back in `detach`, in opposite order:
//!
//! ```text
//!   reserve   host ports in memory, address leases on disk    release
//!   (the caller records the attachment durably)
//!   connect   veth pair, addresses and routes in the pod      disconnect
//!   publish   elements of the port maps                       withdraw
//! ```

pub(crate) mod ipam;
pub(crate) mod link;
pub(crate) mod publisher;
pub(crate) mod ruleset;
pub(crate) mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::{
    error::ErrorClass,
    netlink::{
        conntrack,
        route::{Link, Route, VethPlan},
    },
    netns::{self, NetnsError},
    options::BuiltinOptions,
    pod::{INTERFACE, PortMapping, Protocol},
};
use ipam::{Ipam, Lease, LeaseError};
use link::{await_carrier, configure_pod, connect, disconnect, mac_of, veth_name};
use publisher::Publisher;
use ruleset::Published;

/// Why the built-in network failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuiltinError {
    /// The host port belongs to another pod.
    #[error("host port {port} is taken by pod {owner}")]
    PortTaken {
        /// The port as asked.
        port: String,
        /// The pod that has it.
        owner: String,
    },
    /// No address could be leased, or a lease not released.
    #[error("address lease failed")]
    Lease(#[source] LeaseError),
    /// The kernel refused a change of links, addresses, routes or rules.
    #[error("cannot {step} {object}")]
    Netlink {
        /// What was attempted.
        step: &'static str,
        /// The link, table or address.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A kernel parameter could not be read or set.
    #[error("cannot {} {path}", value.as_ref().map_or("read".into(), |value| format!("write {value:?} to")))]
    Sysctl {
        /// The file below /proc/sys.
        path: PathBuf,
        /// What was to be written.
        value: Option<String>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link of the bridge's name exists and is something else.
    #[error("link {name} exists and is a {kind}, not a bridge")]
    NotABridge {
        /// The name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The pod's namespace is not usable.
    #[error("pod namespace is not usable")]
    Netns(#[source] NetnsError),
    /// The pod's link did not come up in time.
    #[error("link {name} did not come up within {timeout:?}")]
    NoCarrier {
        /// The host end.
        name: String,
        /// The bound.
        timeout: Duration,
    },
    /// Only IPv6 subnets are configured and the kernel has IPv6 turned off.
    #[error("no pod subnet is usable: IPv6 is turned off and there is no IPv4 subnet")]
    NoFamily,
}

impl BuiltinError {
    /// The class of this error.
    pub fn class(&self) -> ErrorClass {
        match self {
            BuiltinError::Lease(LeaseError::Exhausted { .. }) => ErrorClass::Exhausted,
            BuiltinError::PortTaken { .. }
            | BuiltinError::NotABridge { .. }
            | BuiltinError::Netns(_)
            | BuiltinError::NoFamily => ErrorClass::FailedPrecondition,
            BuiltinError::NoCarrier { .. } => ErrorClass::DeadlineExceeded,
            BuiltinError::Lease(_) | BuiltinError::Netlink { .. } | BuiltinError::Sysctl { .. } => {
                ErrorClass::Internal
            }
        }
    }
}

fn refused(step: &'static str, object: &str) -> impl FnOnce(Errno) -> BuiltinError {
    move |code| BuiltinError::Netlink {
        step,
        object: object.to_owned(),
        source: code.into(),
    }
}

fn not_entered(netns: &Path) -> impl FnOnce(io::Error) -> BuiltinError {
    let path = netns.to_owned();
    move |source| {
        BuiltinError::Netns(NetnsError::Step {
            step: "enter",
            path,
            source,
        })
    }
}

/// What one pod will get; pure data, enough to undo it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuiltinPlan {
    pub(crate) pod: String,
    pub(crate) veth: String,
    pub(crate) leases: Vec<Lease>,
    pub(crate) ports: Vec<PortMapping>,
}

impl BuiltinPlan {
    fn addresses(&self) -> Vec<IpAddr> {
        self.leases
            .iter()
            .map(|lease| lease.address.addr())
            .collect()
    }
}

/// The built-in network of one host network namespace.
#[derive(Debug)]
pub(crate) struct Builtin {
    options: BuiltinOptions,
    claims: Mutex<Claims>,
    publisher: Mutex<Publisher>,
}

/// What pods hold before the kernel knows of them.
#[derive(Debug)]
struct Claims {
    ipam: Ipam,
    ports: BTreeMap<String, Vec<PortMapping>>,
}

impl Builtin {
    /// `attached` are the pods of the records, with their ports.
    pub(crate) fn open(
        options: &BuiltinOptions,
        state_dir: &Path,
        attached: BTreeMap<String, Vec<PortMapping>>,
    ) -> Result<Builtin, BuiltinError> {
        let ipam = Ipam::open(state_dir, &options.subnets).map_err(BuiltinError::Lease)?;
        let published = attached.iter().map(|(pod, ports)| {
            let addresses = ipam
                .held(pod)
                .iter()
                .map(|lease| lease.address.addr())
                .collect();
            (
                pod.clone(),
                Published {
                    addresses,
                    ports: ports.clone(),
                },
            )
        });
        let publisher = Publisher::new(options, published.collect());
        Ok(Builtin {
            options: options.clone(),
            publisher: Mutex::new(publisher),
            claims: Mutex::new(Claims {
                ipam,
                ports: attached,
            }),
        })
    }

    /// Claims ports and addresses. On failure nothing is claimed.
    pub(crate) fn reserve(
        &self,
        pod: &str,
        ports: &[PortMapping],
    ) -> Result<BuiltinPlan, BuiltinError> {
        let ipv6 = sysctl::ipv6_usable()?;
        if !ipv6
            && !self
                .options
                .subnets
                .iter()
                .any(|subnet| subnet.addr().is_ipv4())
        {
            return Err(BuiltinError::NoFamily);
        }
        let mut claims = lock(&self.claims);
        for port in ports {
            let taken = |(owner, held): &(&String, &Vec<PortMapping>)| {
                *owner != pod && held.iter().any(|other| other.collides(port))
            };
            if let Some((owner, _)) = claims.ports.iter().find(taken) {
                let (port, owner) = (port.to_string(), owner.clone());
                return Err(BuiltinError::PortTaken { port, owner });
            }
        }
        let leases = claims.ipam.lease(pod, ipv6).map_err(BuiltinError::Lease)?;
        claims.ports.insert(pod.to_owned(), ports.to_vec());
        Ok(BuiltinPlan {
            pod: pod.into(),
            veth: veth_name(pod),
            leases,
            ports: ports.to_vec(),
        })
    }

    /// Does what `plan` says in the kernel and returns a CNI result. On failure the caller
    /// calls [`Builtin::detach`].
    pub(crate) fn attach(
        &self,
        plan: &BuiltinPlan,
        netns_path: &Path,
        timings: &mut Vec<(String, Duration)>,
    ) -> Result<Value, BuiltinError> {
        let mut timed = Timed {
            timings,
            began: Instant::now(),
        };
        let mut route = Route::open().map_err(refused("open", "rtnetlink"))?;
        let bridge = self.ensure(&mut route)?;
        timed.lap("bridge");
        let netns = netns::open(netns_path).map_err(BuiltinError::Netns)?;
        let mac = mac_of(plan.leases[0].address.addr());
        let veth = VethPlan {
            host_name: &plan.veth,
            peer_name: INTERFACE,
            peer_mac: mac,
            netns: netns.as_fd(),
            bridge: bridge.index,
            mtu: self.options.mtu,
        };
        connect(&mut route, &veth, &plan.pod)?;
        timed.lap("veth");
        let inside = || configure_pod(&plan.leases);
        netns::run_in(netns.as_fd(), inside).map_err(not_entered(netns_path))??;
        timed.lap("addresses");
        if !plan.ports.is_empty() {
            let published = Published {
                addresses: plan.addresses(),
                ports: plan.ports.clone(),
            };
            lock(&self.publisher).publish(&plan.pod, published)?;
            forget_udp(&plan.ports)?;
            timed.lap("ports");
        }
        await_carrier(&mut route, &plan.veth)?;
        timed.lap("carrier");
        Ok(self.result(plan, &bridge, mac, netns_path))
    }

    /// Takes everything of a pod back, past errors; a pod that has nothing is no error.
    pub(crate) fn detach(&self, pod: &str) -> Vec<BuiltinError> {
        let mut errors = Vec::new();
        let (ports, leases) = {
            let claims = lock(&self.claims);
            (claims.ports.get(pod).cloned(), claims.ipam.held(pod))
        };
        let withdrawn = match &ports {
            None if leases.is_empty() => Ok(()),
            // Its record is lost, so its ports are whatever nobody else has.
            None => lock(&self.publisher).sweep(),
            Some(_) => lock(&self.publisher).withdraw(pod),
        };
        let disconnected = disconnect(&veth_name(pod));
        let forgotten = forget_udp(&ports.unwrap_or_default());
        errors.extend(
            [withdrawn, disconnected, forgotten]
                .into_iter()
                .filter_map(Result::err),
        );
        // Order: address and ports are free only when nothing in the kernel leads to the pod.
        if errors.is_empty() {
            errors.extend(self.release(pod).err());
        }
        errors
    }

    /// Gives the claims of [`Builtin::reserve`] back.
    pub(crate) fn release(&self, pod: &str) -> Result<(), BuiltinError> {
        let mut claims = lock(&self.claims);
        claims.ipam.release(pod).map_err(BuiltinError::Lease)?;
        claims.ports.remove(pod);
        Ok(())
    }

    /// Looks at the pod's link and addresses; `Some` says what is off.
    pub(crate) fn check(
        &self,
        pod: &str,
        netns_path: &Path,
    ) -> Result<Option<String>, BuiltinError> {
        let mut route = Route::open().map_err(refused("open", "rtnetlink"))?;
        let veth = veth_name(pod);
        let link = route.link(&veth).map_err(refused("read", &veth))?;
        if !link.is_some_and(|link| link.up && link.master.is_some()) {
            return Ok(Some(format!(
                "link {veth} is missing, down or off the bridge"
            )));
        }
        let inside = || -> rustix::io::Result<Vec<IpNet>> {
            let mut route = Route::open()?;
            match route.link(INTERFACE)? {
                Some(link) => route.addresses(link.index),
                None => Ok(Vec::new()),
            }
        };
        let netns = netns::open(netns_path).map_err(BuiltinError::Netns)?;
        let found = netns::run_in(netns.as_fd(), inside).map_err(not_entered(netns_path))?;
        let found = found.map_err(refused("read addresses of", INTERFACE))?;
        let held = lock(&self.claims).ipam.held(pod);
        let lost = held.iter().find(|lease| !found.contains(&lease.address));
        Ok(lost.map(|lease| format!("{INTERFACE} has lost {}", lease.address)))
    }

    /// Pods that hold leases, or have a port on the bridge.
    pub(crate) fn owners(&self) -> Result<BTreeSet<String>, BuiltinError> {
        let mut owners: BTreeSet<_> = lock(&self.claims)
            .ipam
            .owners()
            .filter(|owner| !owner.is_empty())
            .map(str::to_owned)
            .collect();
        let mut route = Route::open().map_err(refused("open", "rtnetlink"))?;
        let bridge = self.options.bridge.as_str();
        if let Some(bridge) = route.link(bridge).map_err(refused("read", bridge))? {
            let ports = route
                .ports(bridge.index)
                .map_err(refused("list ports of", &bridge.name))?;
            let ours = ports
                .into_iter()
                .filter(|port| port.name == veth_name(&port.alias));
            owners.extend(ours.map(|port| port.alias));
        }
        Ok(owners)
    }

    /// Whether bridge and table could be made; nothing is made before the first pod, so that a
    /// node that waits for its conflist stays untouched.
    pub(crate) fn ready(&self) -> Result<(), BuiltinError> {
        let mut route = Route::open().map_err(refused("open", "rtnetlink"))?;
        let bridge = self.options.bridge.as_str();
        if let Some(link) = route.link(bridge).map_err(refused("read", bridge))? {
            of_kind_bridge(&link)?;
        }
        lock(&self.publisher).probe()
    }

    /// Compares bridge, rules and elements with what they should be and repairs them;
    /// returns whether something was repaired.
    pub(crate) fn restore(&self) -> Result<bool, BuiltinError> {
        let mut route = Route::open().map_err(refused("open", "rtnetlink"))?;
        let bridge = self.options.bridge.as_str();
        let link = route.link(bridge).map_err(refused("read", bridge))?;
        let addresses = match &link {
            Some(link) => route
                .addresses(link.index)
                .map_err(refused("read addresses of", bridge))?,
            None => Vec::new(),
        };
        let ipv6 = sysctl::ipv6_usable()?;
        let gateways = lock(&self.claims).ipam.gateways();
        let whole = link.as_ref().is_some_and(|link| link.up)
            && gateways
                .iter()
                .all(|own| addresses.contains(own) || (own.addr().is_ipv6() && !ipv6));
        let link = if whole {
            link.expect("whole")
        } else {
            self.make_bridge(&mut route)?
        };
        let mut repaired = !whole;
        let ports = route
            .ports(link.index)
            .map_err(refused("list ports of", bridge))?;
        repaired |= self.reconnect(&mut route, &link, &ports)?;
        repaired |= lock(&self.publisher).restore()?;
        Ok(repaired)
    }

    /// Puts pods' links back on a bridge that was deleted and made again.
    fn reconnect(
        &self,
        route: &mut Route,
        bridge: &Link,
        ports: &[Link],
    ) -> Result<bool, BuiltinError> {
        let pods: Vec<_> = lock(&self.claims).ports.keys().cloned().collect();
        let mut moved = false;
        for veth in pods.iter().map(|pod| veth_name(pod)) {
            if ports.iter().any(|port| port.name == veth) {
                continue;
            }
            let link = route.link(&veth).map_err(refused("read", &veth))?;
            // A pod added since the listing is on the bridge already.
            if let Some(link) = link.filter(|link| link.master != Some(bridge.index)) {
                route
                    .set_master(link.index, bridge.index)
                    .map_err(refused("enslave", &veth))?;
                route
                    .set_up(link.index)
                    .map_err(refused("bring up", &veth))?;
                moved = true;
            }
        }
        Ok(moved)
    }

    fn ensure(&self, route: &mut Route) -> Result<Link, BuiltinError> {
        // Order: the table's guard before the bridge's route_localnet.
        let fresh = lock(&self.publisher).ensure()?;
        let bridge = self.options.bridge.as_str();
        match route.link(bridge).map_err(refused("read", bridge))? {
            Some(link) if link.up && !fresh => Ok(link),
            _ => self.make_bridge(route),
        }
    }

    /// Creates the bridge, or completes one that is there.
    fn make_bridge(&self, route: &mut Route) -> Result<Link, BuiltinError> {
        let name = self.options.bridge.as_str();
        let ipv6 = sysctl::ipv6_usable()?;
        let gateways = lock(&self.claims).ipam.gateways();
        match route.create_bridge(name, mac_of(gateways[0].addr()), self.options.mtu) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(code) => return Err(refused("create bridge", name)(code)),
        }
        let link = route.link(name).and_then(|link| link.ok_or(Errno::NODEV));
        let link = link.map_err(refused("read", name))?;
        of_kind_bridge(&link)?;
        if ipv6 {
            // Pods must not configure the host by router advertisements (CVE-2020-10749).
            for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")] {
                sysctl::ensure(&format!("ipv6/conf/{name}/{key}"), value)?;
            }
        }
        // Answers to 127.0.0.1:port come in here; the table's guard chain keeps the rest out.
        sysctl::ensure(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
        for gateway in gateways
            .iter()
            .filter(|gateway| ipv6 || gateway.addr().is_ipv4())
        {
            let added = route.add_address(link.index, *gateway);
            added.map_err(refused("add address to", name))?;
        }
        route
            .set_up(link.index)
            .map_err(refused("bring up", name))?;
        let ipv4 = gateways.iter().any(|gateway| gateway.addr().is_ipv4());
        let ipv6 = ipv6 && gateways.iter().any(|gateway| gateway.addr().is_ipv6());
        sysctl::enable_forwarding(ipv4, ipv6)?;
        Ok(link)
    }

    /// The attachment as a CNI 1.1 result.
    fn result(&self, plan: &BuiltinPlan, bridge: &Link, mac: [u8; 6], netns: &Path) -> Value {
        let text = |mac: &[u8]| {
            mac.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(":")
        };
        let ips = plan.leases.iter().map(
            |lease| json!({"address": lease.address, "gateway": lease.gateway, "interface": 2}),
        );
        let routes = plan.leases.iter().map(|lease| {
            let any = if lease.gateway.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            json!({"dst": any, "gw": lease.gateway})
        });
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": self.options.bridge, "mac": text(&bridge.mac)},
                {"name": plan.veth},
                {"name": INTERFACE, "mac": text(&mac), "sandbox": netns},
            ],
            "ips": ips.collect::<Vec<_>>(),
            "routes": routes.collect::<Vec<_>>(),
            "dns": {},
        })
    }
}

fn of_kind_bridge(link: &Link) -> Result<(), BuiltinError> {
    if link.kind == "bridge" {
        return Ok(());
    }
    Err(BuiltinError::NotABridge {
        name: link.name.clone(),
        kind: link.kind.clone(),
    })
}

fn forget_udp(ports: &[PortMapping]) -> Result<(), BuiltinError> {
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
    let ports: BTreeSet<_> = udp.map(|port| port.host_port).collect();
    conntrack::forget_udp(&ports)
        .map_err(refused("delete", "tracked UDP connections"))
        .map(drop)
}

/// Laps of one attachment.
struct Timed<'a> {
    timings: &'a mut Vec<(String, Duration)>,
    began: Instant,
}

impl Timed<'_> {
    fn lap(&mut self, step: &str) {
        self.timings.push((step.to_owned(), self.began.elapsed()));
        self.began = Instant::now();
    }
}

/// Every guarded value is whole between statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
