//! A pod's link: the veth pair, its names and hardware address, and what is set inside the pod.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{BuiltinError, ipam::Lease, refused, sysctl};
use crate::{
    netlink::route::{Route, VethPlan},
    pod::INTERFACE,
};

/// How long a new link may take until packets flow.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes the pair; the peer is in the pod, the host end on the bridge and up.
pub(crate) fn connect(
    route: &mut Route,
    veth: &VethPlan<'_>,
    pod: &str,
) -> Result<(), BuiltinError> {
    let name = veth.host_name;
    let mut created = route.create_veth(veth);
    if created == Err(Errno::EXIST) {
        // Left by an attempt that was killed: the name is this pod's alone.
        disconnect(name)?;
        created = route.create_veth(veth);
    }
    created.map_err(refused("create veth pair", name))?;
    route
        .set_alias(name, pod)
        .map_err(refused("set alias of", name))?;
    // With br_netfilter, packets that are redirected while being bridged may have to leave
    // where they came in.
    if sysctl::read("bridge/bridge-nf-call-iptables")?.as_deref() == Some("1") {
        let link = route.link(name).and_then(|link| link.ok_or(Errno::NODEV));
        let index = link.map_err(refused("read", name))?.index;
        route
            .set_hairpin(index)
            .map_err(refused("set hairpin mode of", name))?;
    }
    Ok(())
}

/// Deletes the pair and waits for the kernel; none is no error.
pub(crate) fn disconnect(veth: &str) -> Result<(), BuiltinError> {
    let mut route = Route::open().map_err(refused("open", "rtnetlink"))?;
    let Some(link) = route.link(veth).map_err(refused("read", veth))? else {
        return Ok(());
    };
    match route.delete_link(link.index) {
        // The namespace died in between and took it along.
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(code) => Err(refused("delete", veth)(code)),
    }
}

/// Runs inside the pod's namespace.
pub(crate) fn configure_pod(leases: &[Lease]) -> Result<(), BuiltinError> {
    let mut route = Route::open().map_err(refused("open", "rtnetlink in the pod"))?;
    let link = route
        .link(INTERFACE)
        .and_then(|link| link.ok_or(Errno::NODEV));
    let index = link.map_err(refused("read", INTERFACE))?.index;
    if leases.iter().any(|lease| lease.address.addr().is_ipv6()) {
        // Other pods must not redirect this one (CVE-2020-10749); addresses are leased, so there
        // is nothing to detect and no second to wait.
        for (key, value) in [
            ("disable_ipv6", "0"),
            ("accept_ra", "0"),
            ("accept_dad", "0"),
        ] {
            sysctl::ensure(&format!("ipv6/conf/{INTERFACE}/{key}"), value)?;
        }
    }
    route
        .set_up(index)
        .map_err(refused("bring up", INTERFACE))?;
    for lease in leases {
        let object = lease.address.to_string();
        route
            .add_address(index, lease.address)
            .map_err(refused("add address", &object))?;
        let object = format!("default route via {}", lease.gateway);
        route
            .add_default_route(lease.gateway, index)
            .map_err(refused("add", &object))?;
    }
    Ok(())
}

/// The bridge forwards to a port only when the kernel's link watcher has seen it come up.
pub(crate) fn await_carrier(route: &mut Route, veth: &str) -> Result<(), BuiltinError> {
    let began = Instant::now();
    loop {
        let link = route.link(veth).and_then(|link| link.ok_or(Errno::NODEV));
        if link.map_err(refused("read", veth))?.operational {
            return Ok(());
        }
        if began.elapsed() > CARRIER_TIMEOUT {
            return Err(BuiltinError::NoCarrier {
                name: veth.into(),
                timeout: CARRIER_TIMEOUT,
            });
        }
        let pause = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 500_000,
        };
        // An interrupted pause only looks again sooner.
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
}

/// The host end's name: always the same for a pod, so that it is found without a record.
pub(crate) fn veth_name(pod: &str) -> String {
    // FNV-1a; 44 bits of it fill the 15 bytes of an interface name.
    let hash = pod.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("axil{:011x}", hash & 0xfff_ffff_ffff)
}

/// A locally administered address that goes with the IP address, so that a neighbour's cache
/// stays right when the address moves to the next pod.
pub(crate) fn mac_of(address: IpAddr) -> [u8; 6] {
    let tail: [u8; 4] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let one = veth_name("a");
        assert_eq!(one.len(), 15);
        assert_ne!(one, veth_name("b"));
        assert_eq!(one, veth_name("a"));
    }
}
