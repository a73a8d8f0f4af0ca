//! Traffic of network namespaces. A thread of its own enters one after the other and ends with the last: the
//! kernel shows `/proc/thread-self/net` of the namespace a thread is in, and a pool's threads must stay at home.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use crate::domain::failure::{Class, Failure};
use crate::domain::usage::{InterfaceUsage, NetworkUsage, Traffic};
use crate::ports::{Answer, unix_nanos};

/// Most bytes of a namespace's table: some five hundred interfaces.
const LARGEST: u64 = 64 << 10;

/// Reads the interfaces of every pinned namespace; none where the pin is gone.
pub(super) fn read(pins: Vec<PathBuf>) -> Answer<Vec<Option<NetworkUsage>>> {
    let thread = std::thread::Builder::new().name("networks".to_owned());
    let work = thread.spawn(move || pins.iter().map(|pin| read_one(pin)).collect());
    let work = work.map_err(|error| Failure::io("start a thread", &error))?;
    let panicked = |_| Failure::new(Class::Internal, "the thread that reads interfaces panicked");
    work.join().map_err(panicked)
}

fn read_one(pin: &Path) -> Option<NetworkUsage> {
    let namespace = File::open(pin).ok()?;
    // A pin that is no namespace (any more) is an error here, and this thread stays where it was.
    setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
    let mut text = String::new();
    let table = File::open("/proc/thread-self/net/dev").ok()?;
    table.take(LARGEST).read_to_string(&mut text).ok()?;
    Some(NetworkUsage {
        read_at: unix_nanos(),
        interfaces: interfaces(&text),
    })
}

/// Interfaces of `/proc/net/dev` but loopback: two lines of headings, then a name, eight counters of what came
/// in and eight of what went out (net/core/net-procfs.c).
fn interfaces(table: &str) -> Vec<InterfaceUsage> {
    let parse = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let name = name.trim();
        let counters: Vec<u64> = counters
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let traffic = |from: usize| {
            Some(Traffic {
                bytes: *counters.get(from)?,
                packets: *counters.get(from + 1)?,
                errors: *counters.get(from + 2)?,
                dropped: *counters.get(from + 3)?,
            })
        };
        let (received, sent) = (traffic(0)?, traffic(8)?);
        (name != "lo").then(|| InterfaceUsage {
            name: name.to_owned(),
            received,
            sent,
        })
    };
    table.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     840      10    0    0    0     0          0         0      840      10    0    0    0     0       0          0\n  \
            eth0: 18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
            cut: 1 2 3\n";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "eth0");
        let received = Traffic {
            bytes: u64::MAX,
            packets: 2,
            errors: 3,
            dropped: 4,
        };
        let sent = Traffic {
            bytes: 9,
            packets: 10,
            errors: 11,
            dropped: 12,
        };
        assert_eq!((found[0].received, found[0].sent), (received, sent));
    }

    #[test]
    fn a_pin_that_is_gone_or_no_namespace_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("net");
        std::fs::write(&file, "").unwrap();
        let read = read(vec![dir.path().join("missing"), file]).unwrap();
        assert_eq!(read, [None, None]);
    }
}
