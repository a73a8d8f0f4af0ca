//! Address leases: one file per address, named by the address, holding the pod id.
//!
//! ```text
//! <state_dir>/leases/10.88.0.0-16/10.88.0.7     "<pod id>\n"
//! <state_dir>/leases/10.88.0.0-16/last          "10.88.0.7\n", where the search goes on
//! ```
//! Leases survive a killed process, not a power cut: nothing that they belong to does either, so
//! they are not synced, and one without an owner is removed when the directory is opened.
//! Subnets that left the configuration keep their directory until their leases are released.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use crate::{atomic, pod::check_id};

const LAST: &str = "last";
/// A lease holds a pod id of at most 128 bytes.
const MAX_LEASE_BYTES: u64 = 256;

/// Why an address could not be leased or released.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Every address of the family is leased.
    #[error("no free address in {subnets}: all {capacity} are leased")]
    Exhausted {
        /// The subnets of the family.
        subnets: String,
        /// How many addresses pods can have in them.
        capacity: u128,
    },
    /// A lease file could not be read, written or removed.
    #[error("cannot {step} address lease {path}")]
    File {
        /// "read", "create", "write" or "remove".
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// One address held by a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The address with its subnet's prefix.
    pub(crate) address: IpNet,
    pub(crate) gateway: IpAddr,
}

/// The leases of all subnets. Owned by one process; a second one is kept out of each address by
/// the exclusive creation of its file, not out of the directory.
#[derive(Debug)]
pub(crate) struct Ipam {
    pools: Vec<Pool>,
    /// Directories of subnets no longer configured.
    retired: Vec<Pool>,
}

#[derive(Debug)]
struct Pool {
    subnet: IpNet,
    dir: PathBuf,
    last: u128,
    leased: BTreeMap<IpAddr, String>,
}

impl Ipam {
    pub(crate) fn open(state_dir: &Path, subnets: &[IpNet]) -> Result<Ipam, LeaseError> {
        let root = state_dir.join("leases");
        let pools: Vec<_> = subnets
            .iter()
            .map(|subnet| Pool::open(&root, *subnet))
            .collect::<Result<_, _>>()?;
        let failed = |source| LeaseError::File {
            step: "read",
            path: root.clone(),
            source,
        };
        let mut retired = Vec::new();
        for entry in fs::read_dir(&root).map_err(failed)? {
            let name = entry
                .map_err(failed)?
                .file_name()
                .to_string_lossy()
                .replacen('-', "/", 1);
            if let Ok(subnet) = name.parse::<IpNet>()
                && !subnets.contains(&subnet)
            {
                retired.push(Pool::open(&root, subnet)?);
            }
        }
        Ok(Ipam { pools, retired })
    }

    /// Leases one address per family to `owner`; the ones it has already are returned again.
    /// On failure nothing new is leased.
    pub(crate) fn lease(&mut self, owner: &str, ipv6: bool) -> Result<Vec<Lease>, LeaseError> {
        let had = self.held(owner);
        let mut leases = Vec::new();
        for ipv4 in [true, false] {
            let wanted = |pool: &Pool| pool.subnet.addr().is_ipv4() == ipv4;
            if (!ipv4 && !ipv6) || !self.pools.iter().any(wanted) {
                continue;
            }
            match self.lease_family(owner, ipv4) {
                Ok(lease) => leases.push(lease),
                Err(error) => {
                    // The error to report is the first one; a lease that stays is found by owner.
                    if had.is_empty() {
                        let _ = self.release(owner);
                    }
                    return Err(error);
                }
            }
        }
        Ok(leases)
    }

    fn lease_family(&mut self, owner: &str, ipv4: bool) -> Result<Lease, LeaseError> {
        let of_family = |pool: &&mut Pool| pool.subnet.addr().is_ipv4() == ipv4;
        if let Some(held) = self.pools.iter().find_map(|pool| {
            (pool.subnet.addr().is_ipv4() == ipv4)
                .then(|| pool.held(owner))
                .flatten()
        }) {
            return Ok(held);
        }
        for pool in self.pools.iter_mut().filter(of_family) {
            if let Some(lease) = pool.lease(owner)? {
                return Ok(lease);
            }
        }
        let pools: Vec<_> = self
            .pools
            .iter()
            .filter(|pool| pool.subnet.addr().is_ipv4() == ipv4)
            .collect();
        let subnets = pools
            .iter()
            .map(|pool| pool.subnet.to_string())
            .collect::<Vec<_>>();
        let capacity = pools.iter().map(|pool| capacity(pool.subnet)).sum();
        Err(LeaseError::Exhausted {
            subnets: subnets.join(", "),
            capacity,
        })
    }

    /// Releases everything `owner` holds; nothing held is no error.
    pub(crate) fn release(&mut self, owner: &str) -> Result<(), LeaseError> {
        for pool in self.pools.iter_mut().chain(&mut self.retired) {
            pool.release(owner)?;
        }
        Ok(())
    }

    /// The owners of all leases.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &str> {
        let pools = self.pools.iter().chain(&self.retired);
        pools.flat_map(|pool| pool.leased.values().map(String::as_str))
    }

    /// The addresses `owner` holds.
    pub(crate) fn held(&self, owner: &str) -> Vec<Lease> {
        self.pools
            .iter()
            .chain(&self.retired)
            .filter_map(|pool| pool.held(owner))
            .collect()
    }

    /// The bridge's addresses, one per subnet.
    pub(crate) fn gateways(&self) -> Vec<IpNet> {
        self.pools
            .iter()
            .map(|pool| with_prefix(pool.subnet, gateway(pool.subnet)))
            .collect()
    }
}

impl Pool {
    fn open(root: &Path, subnet: IpNet) -> Result<Pool, LeaseError> {
        let dir = root.join(subnet.to_string().replacen('/', "-", 1));
        let failed = |source| LeaseError::File {
            step: "read",
            path: dir.clone(),
            source,
        };
        fs::create_dir_all(&dir).map_err(failed)?;
        let mut leased = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.ends_with(atomic::TEMPORARY) {
                let removed = atomic::remove(&path);
                removed.map_err(|source| LeaseError::File {
                    step: "remove",
                    path,
                    source,
                })?;
            } else if let Ok(address) = name.parse::<IpAddr>() {
                let read = atomic::read(&path, MAX_LEASE_BYTES);
                let owner = read.map_err(|source| LeaseError::File {
                    step: "read",
                    path: path.clone(),
                    source,
                })?;
                let owner = String::from_utf8_lossy(&owner).trim().to_owned();
                if check_id(&owner).is_ok() {
                    leased.insert(address, owner);
                } else {
                    let removed = atomic::remove(&path);
                    removed.map_err(|source| LeaseError::File {
                        step: "remove",
                        path,
                        source,
                    })?;
                }
            }
        }
        let last = fs::read_to_string(dir.join(LAST)).unwrap_or_default();
        let last = last
            .trim()
            .parse()
            .ok()
            .and_then(|address| offset(subnet, address));
        Ok(Pool {
            subnet,
            dir,
            last: last.unwrap_or_default(),
            leased,
        })
    }

    fn held(&self, owner: &str) -> Option<Lease> {
        let (address, _) = self.leased.iter().find(|(_, holder)| *holder == owner)?;
        Some(self.describe(*address))
    }

    fn describe(&self, address: IpAddr) -> Lease {
        Lease {
            address: with_prefix(self.subnet, address),
            gateway: gateway(self.subnet),
        }
    }

    /// Takes the next free address behind the last one given; `None` when all are taken.
    fn lease(&mut self, owner: &str) -> Result<Option<Lease>, LeaseError> {
        // Offsets 0 and 1 are the subnet itself and the gateway.
        let capacity = capacity(self.subnet);
        let mut tries = capacity.min(self.leased.len() as u128 + 1);
        let mut next = self.last;
        while tries > 0 {
            next = if next < 2 || next > capacity {
                2
            } else {
                next + 1
            };
            let address = at(self.subnet, next);
            if self.leased.contains_key(&address) {
                tries -= 1;
                continue;
            }
            let path = self.dir.join(address.to_string());
            match atomic::create(&path, format!("{owner}\n").as_bytes()) {
                Ok(()) => {
                    self.leased.insert(address, owner.to_owned());
                    self.last = next;
                    self.note_last(address);
                    return Ok(Some(self.describe(address)));
                }
                // Another process has it; it stays taken until this one restarts.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.leased.insert(address, String::new());
                }
                Err(source) => {
                    return Err(LeaseError::File {
                        step: "create",
                        path,
                        source,
                    });
                }
            }
        }
        Ok(None)
    }

    /// Where the search goes on after a restart. Losing it only makes an address return sooner.
    fn note_last(&self, address: IpAddr) {
        let _ = fs::write(self.dir.join(LAST), format!("{address}\n"));
    }

    fn release(&mut self, owner: &str) -> Result<(), LeaseError> {
        let held = self.leased.iter().filter(|(_, holder)| *holder == owner);
        for address in held.map(|(address, _)| *address).collect::<Vec<_>>() {
            let path = self.dir.join(address.to_string());
            let removed = atomic::remove(&path);
            removed.map_err(|source| LeaseError::File {
                step: "remove",
                path,
                source,
            })?;
            self.leased.remove(&address);
        }
        Ok(())
    }
}

/// How many addresses pods can have: all but the subnet's own, the gateway and the last, which
/// is the broadcast address of IPv4 (in IPv6 it is merely not used). Offsets go from 2 to one
/// more than this.
fn capacity(subnet: IpNet) -> u128 {
    let bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    size.saturating_sub(3)
}

fn gateway(subnet: IpNet) -> IpAddr {
    at(subnet, 1)
}

fn with_prefix(subnet: IpNet, address: IpAddr) -> IpNet {
    IpNet::new(address, subnet.prefix_len()).expect("the prefix of a subnet of this family")
}

/// The address `offset` behind the first of the subnet.
fn at(subnet: IpNet, offset: u128) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(first) => {
            let offset = u32::try_from(offset).expect("offsets stay inside the subnet");
            Ipv4Addr::from_bits(first.to_bits() + offset).into()
        }
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + offset).into(),
    }
}

fn offset(subnet: IpNet, address: IpAddr) -> Option<u128> {
    match (subnet.network(), address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => address
            .to_bits()
            .checked_sub(first.to_bits())
            .map(u128::from),
        (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits().checked_sub(first.to_bits()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn first(leases: &[Lease]) -> String {
        leases[0].address.to_string()
    }

    #[test]
    fn addresses_go_round_and_run_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), &subnets(&["10.1.0.0/29"])).unwrap();
        assert_eq!(
            ipam.gateways(),
            [IpNet::new([10, 1, 0, 1].into(), 29).unwrap()]
        );
        assert_eq!(first(&ipam.lease("a", true).unwrap()), "10.1.0.2/29");
        assert_eq!(first(&ipam.lease("b", true).unwrap()), "10.1.0.3/29");
        assert_eq!(
            first(&ipam.lease("a", true).unwrap()),
            "10.1.0.2/29",
            "the same again"
        );
        ipam.release("a").unwrap();
        assert_eq!(
            first(&ipam.lease("c", true).unwrap()),
            "10.1.0.4/29",
            "not reused at once"
        );
        for owner in ["d", "e", "f"] {
            ipam.lease(owner, true).unwrap();
        }
        let error = ipam.lease("g", true).unwrap_err().to_string();
        assert_eq!(error, "no free address in 10.1.0.0/29: all 5 are leased");
        ipam.release("f").unwrap();
        ipam.release("f").unwrap();
        assert_eq!(ipam.lease("g", true).unwrap().len(), 1);
    }

    #[test]
    fn leases_survive_and_a_second_family_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = subnets(&["10.1.0.0/24", "fd00::/126"]);
        let mut ipam = Ipam::open(dir.path(), &wanted).unwrap();
        let leases = ipam.lease("a", true).unwrap();
        assert_eq!(leases[1].address.to_string(), "fd00::2/126");
        assert_eq!(ipam.lease("v4", false).unwrap().len(), 1);
        assert!(ipam.lease("b", true).is_err());
        assert_eq!(ipam.held("b"), []);
        let mut again = Ipam::open(dir.path(), &wanted).unwrap();
        assert_eq!(again.held("a"), leases);
        again.release("a").unwrap();
        let next = again.lease("b", true).unwrap();
        assert_eq!(
            first(&next),
            "10.1.0.5/24",
            "goes on where the first process was"
        );
        let changed = Ipam::open(dir.path(), &subnets(&["10.2.0.0/24"])).unwrap();
        assert_eq!(
            changed.held("b").len(),
            2,
            "leases of former subnets are known"
        );
        assert!(changed.owners().any(|owner| owner == "v4"));
        // A power cut leaves a name without content.
        let torn = dir.path().join("leases/10.1.0.0-24/10.1.0.9");
        fs::write(&torn, "").unwrap();
        Ipam::open(dir.path(), &wanted).unwrap();
        assert!(!torn.exists());
    }

    #[test]
    fn every_address_of_a_subnet_is_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: IpNet = "192.168.7.0/27".parse().unwrap();
        let mut ipam = Ipam::open(dir.path(), &[subnet]).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..29 {
            let lease = ipam.lease(&format!("p{number}"), false).unwrap()[0];
            assert!(subnet.contains(&lease.address.addr()) && seen.insert(lease.address.addr()));
        }
        assert!(ipam.lease("more", false).is_err());
        assert!(seen.contains(&"192.168.7.2".parse().unwrap()));
        assert!(seen.contains(&"192.168.7.30".parse().unwrap()));
    }
}
