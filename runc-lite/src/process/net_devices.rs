//! Interfaces of the host that become the container's, and their way back when create fails.
//!
//! The runtime moves them before init goes on, through one socket in each of the two network namespaces.
//! They belong to the container's namespace from then on and are never taken back from a container that was
//! created: the specification leaves their end to the owner of the namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::{Address, Link, Routing};
use crate::plan::NetDevicePlan;

/// Why an interface cannot become the container's.
#[derive(Debug, thiserror::Error)]
pub enum NetDeviceError {
    /// The host has no such interface.
    #[error("config.json: linux.netDevices[{name:?}]: the host has no such interface")]
    Missing {
        /// On the host.
        name: String,
    },
    /// The kernel refused a step.
    #[error("config.json: linux.netDevices[{name:?}]: cannot {step}: {source}{hint}")]
    Step {
        /// On the host.
        name: String,
        /// What was tried.
        step: String,
        /// Errno.
        source: std::io::Error,
        /// The likely cause, in parentheses, or nothing.
        hint: &'static str,
    },
}

fn failed(device: &NetDevicePlan, step: impl Into<String>, errno: Errno) -> NetDeviceError {
    NetDeviceError::Step {
        name: device.name.clone(),
        step: step.into(),
        source: errno.into(),
        hint: match errno {
            Errno::PERM => " (it needs CAP_NET_ADMIN in both network namespaces)",
            Errno::EXIST => " (an interface of this name is there already)",
            Errno::INVAL => " (is it bound to its network namespace, as lo and bridges are?)",
            _ => "",
        },
    }
}

/// Makes sure, before anything is done, that every interface is there.
///
/// # Errors
/// [`NetDeviceError`].
pub(super) fn check(devices: &[NetDevicePlan]) -> Result<(), NetDeviceError> {
    let Some(first) = devices.first() else {
        return Ok(());
    };
    let host = Routing::open().map_err(|e| failed(first, "open a netlink socket", e))?;
    devices
        .iter()
        .try_for_each(|device| match host.link(&device.name) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(NetDeviceError::Missing {
                name: device.name.clone(),
            }),
            Err(errno) => Err(failed(device, "find it", errno)),
        })
}

/// Interfaces on their way; dropping it gives back what was moved, [`MovedDevices::keep`] does not.
#[derive(Debug)]
pub(super) struct MovedDevices {
    host_namespace: OwnedFd,
    host: Routing,
    container: Routing,
    moved: Vec<Moved>,
}

#[derive(Debug)]
struct Moved {
    /// On the host.
    name: String,
    /// In the container.
    index: u32,
    was_up: bool,
    addresses: Vec<Address>,
}

/// Moves every interface into the network namespace that was opened as `joined`, or else into that of
/// process `init`.
///
/// # Errors
/// [`NetDeviceError`]; what was moved before is given back.
pub(super) fn move_all(
    devices: &[NetDevicePlan],
    joined: Option<BorrowedFd<'_>>,
    init: i32,
) -> Result<Option<MovedDevices>, NetDeviceError> {
    let Some(first) = devices.first() else {
        return Ok(None);
    };
    let open = |path: String| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, &path, flags, Mode::empty())
            .map_err(|e| failed(first, format!("open {path}"), e))
    };
    let host_namespace = open("/proc/self/ns/net".to_owned())?;
    let own;
    let namespace = match joined {
        Some(namespace) => namespace,
        None => {
            own = open(format!("/proc/{init}/ns/net"))?;
            own.as_fd()
        }
    };
    let host = Routing::open().map_err(|e| failed(first, "open a netlink socket", e))?;
    let container = routing_inside(namespace, host_namespace.as_fd())
        .map_err(|e| failed(first, "open a netlink socket in the container", e))?;
    let mut devices_moved = MovedDevices {
        host_namespace,
        host,
        container,
        moved: Vec::with_capacity(devices.len()),
    };
    for device in devices {
        devices_moved.move_one(device, namespace)?;
    }
    Ok(Some(devices_moved))
}

/// Opens a socket in `namespace`: this process goes there and comes back.
fn routing_inside(namespace: BorrowedFd<'_>, home: BorrowedFd<'_>) -> rustix::io::Result<Routing> {
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace, network)?;
    let routing = Routing::open();
    move_into_link_name_space(home, network)?;
    routing
}

impl MovedDevices {
    fn move_one(
        &mut self,
        device: &NetDevicePlan,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetDeviceError> {
        let fail = |step: &str, errno| failed(device, step, errno);
        let found = self
            .host
            .link(&device.name)
            .map_err(|e| fail("find it", e))?;
        let link = found.ok_or_else(|| NetDeviceError::Missing {
            name: device.name.clone(),
        })?;
        // Order: read before it goes down, which costs an interface its IPv6 addresses.
        let mut addresses = self
            .host
            .addresses(link.index)
            .map_err(|e| fail("read its addresses", e))?;
        addresses.retain(Address::is_lasting);
        let known = self
            .container
            .links()
            .map_err(|e| fail("read the container's interfaces", e))?;
        if known.iter().any(|other| other.name == device.new_name) {
            let step = format!("call it {:?} in the container", device.new_name);
            return Err(failed(device, step, Errno::EXIST));
        }
        // Nobody on the host shall use it while it goes.
        self.host
            .set_up(link.index, false)
            .map_err(|e| fail("set it down", e))?;
        let went = self.host.move_to(link.index, namespace, &device.new_name);
        let arrived = self.container.links().map(|links| {
            let is_new = |now: &Link| !known.iter().any(|before| before.index == now.index);
            // After a failure too: the kernel moves first and renames then.
            let names = [device.new_name.as_str(), device.name.as_str()];
            let is_it =
                |now: &Link| device.new_name.contains('%') || names.contains(&now.name.as_str());
            links.into_iter().find(|now| is_new(now) && is_it(now))
        });
        let arrived = arrived.map_err(|e| fail("find it in the container", e))?;
        let Some(Link { index, .. }) = arrived else {
            if link.is_up {
                // Ignored: the error that led here is the one to tell.
                let _ = self.host.set_up(link.index, true);
                for address in &addresses {
                    let _ = self.host.add_address(link.index, address);
                }
            }
            let step = format!("move it to the container as {:?}", device.new_name);
            return Err(failed(device, step, went.err().unwrap_or(Errno::NODEV)));
        };
        self.moved.push(Moved {
            name: device.name.clone(),
            index,
            was_up: link.is_up,
            addresses,
        });
        went.map_err(|e| {
            failed(
                device,
                format!("call it {:?} in the container", device.new_name),
                e,
            )
        })?;
        let moved = &self.moved[self.moved.len() - 1];
        for address in &moved.addresses {
            self.container
                .add_address(index, address)
                .map_err(|e| fail("give it its addresses again", e))?;
        }
        self.container
            .set_up(index, true)
            .map_err(|e| fail("set it up in the container", e))
    }

    /// The container is made: they are its own.
    pub(super) fn keep(mut self) {
        self.moved.clear();
    }

    fn give_back(&self, moved: &Moved) -> rustix::io::Result<()> {
        self.container.set_up(moved.index, false)?;
        self.container
            .move_to(moved.index, self.host_namespace.as_fd(), &moved.name)?;
        let link = self.host.link(&moved.name)?.ok_or(Errno::NODEV)?;
        for address in &moved.addresses {
            self.host.add_address(link.index, address)?;
        }
        self.host.set_up(link.index, moved.was_up)
    }
}

impl Drop for MovedDevices {
    fn drop(&mut self) {
        while let Some(moved) = self.moved.pop() {
            // Ignored: the others are still to be given back, and create tells why it failed.
            let _ = self.give_back(&moved);
        }
    }
}
