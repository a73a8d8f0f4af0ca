//! Device access: the rule list reduced to a default with exceptions, and the v2 program for it.

use std::collections::BTreeMap;

use crate::config::DeviceRule;

/// Access bits as the kernel's device cgroup numbers them.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;

/// A device type; the numbers are `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// Type and numbers; `None` is a wildcard.
type Device = (Kind, Option<u32>, Option<u32>);

/// What a rule list comes to: a default and the accesses for which the opposite holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSet {
    allow_by_default: bool,
    exceptions: BTreeMap<Device, u8>,
}

/// Devices every container may use whatever the rules say, as runc grants them: making any node, and
/// using the default devices, terminals and pseudo-terminals.
const ALWAYS: [(Kind, Option<u32>, Option<u32>, u8); 11] = [
    (Kind::Character, None, None, MKNOD),
    (Kind::Block, None, None, MKNOD),
    (Kind::Character, Some(1), Some(3), READ | WRITE | MKNOD),
    (Kind::Character, Some(1), Some(5), READ | WRITE | MKNOD),
    (Kind::Character, Some(1), Some(7), READ | WRITE | MKNOD),
    (Kind::Character, Some(1), Some(8), READ | WRITE | MKNOD),
    (Kind::Character, Some(1), Some(9), READ | WRITE | MKNOD),
    (Kind::Character, Some(5), Some(0), READ | WRITE | MKNOD),
    (Kind::Character, Some(5), Some(1), READ | WRITE | MKNOD),
    (Kind::Character, Some(5), Some(2), READ | WRITE | MKNOD),
    (Kind::Character, Some(136), None, READ | WRITE | MKNOD),
];

impl DeviceSet {
    /// Applies `rules` in order to "nothing is allowed", then the accesses every container has.
    #[must_use]
    pub fn of_rules(rules: &[DeviceRule]) -> DeviceSet {
        let mut set = DeviceSet {
            allow_by_default: false,
            exceptions: BTreeMap::new(),
        };
        for rule in rules {
            let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
            let access = access_bits(&rule.access);
            match rule.kind.as_str() {
                "b" => set.apply(
                    (Kind::Block, number(rule.major), number(rule.minor)),
                    access,
                    rule.allow,
                ),
                "c" => set.apply(
                    (Kind::Character, number(rule.major), number(rule.minor)),
                    access,
                    rule.allow,
                ),
                _ => {
                    set = DeviceSet {
                        allow_by_default: rule.allow,
                        exceptions: BTreeMap::new(),
                    }
                }
            }
        }
        for (kind, major, minor, access) in ALWAYS {
            set.apply((kind, major, minor), access, true);
        }
        set
    }

    fn apply(&mut self, device: Device, access: u8, allow: bool) {
        if allow == self.allow_by_default {
            // Takes exceptions back.
            if let Some(bits) = self.exceptions.get_mut(&device) {
                *bits &= !access;
                if *bits == 0 {
                    self.exceptions.remove(&device);
                }
            }
        } else {
            *self.exceptions.entry(device).or_default() |= access;
        }
    }

    /// Whether there is nothing to forbid.
    pub(super) fn allows_everything(&self) -> bool {
        self.allow_by_default && self.exceptions.is_empty()
    }

    /// The writes of cgroup v1: file and value, in order.
    pub(super) fn v1_writes(&self) -> Vec<(&'static str, String)> {
        let (reset, except) = if self.allow_by_default {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let mut writes = vec![(reset, "a".to_owned())];
        for (&(kind, major, minor), &bits) in &self.exceptions {
            let kind = if kind == Kind::Block { 'b' } else { 'c' };
            let access = access_text(bits);
            writes.push((
                except,
                format!("{kind} {}:{} {access}", number(major), number(minor)),
            ));
        }
        writes
    }

    /// The eBPF program of cgroup v2: returns 1 to allow, 0 to deny.
    pub(super) fn program(&self) -> Vec<u64> {
        // r2 type, r3 requested access, r4 major, r5 minor; r1 is scratch after the loads.
        let mut program = vec![
            instruction(0x61, 2, 1, 0, 0),
            instruction(0x54, 2, 0, 0, 0xffff),
            instruction(0x61, 3, 1, 0, 0),
            instruction(0x74, 3, 0, 0, 16),
            instruction(0x61, 4, 1, 4, 0),
            instruction(0x61, 5, 1, 8, 0),
        ];
        for (&(kind, major, minor), &bits) in &self.exceptions {
            let mut test: Vec<(u8, u8, u32)> = vec![(0x55, 2, kind as u32)];
            test.extend(major.map(|major| (0x55, 4, major)));
            test.extend(minor.map(|minor| (0x55, 5, minor)));
            // mov r1, r3; and r1, mask; jump; mov r0; exit
            let tail = 5;
            let mut left = test.len() + tail;
            for (code, register, value) in test {
                left -= 1;
                program.push(instruction(code, register, 0, left, value));
            }
            program.push(instruction(0xbc, 1, 3, 0, 0));
            if self.allow_by_default {
                // Any forbidden bit asked for: deny.
                program.push(instruction(0x54, 1, 0, 0, u32::from(bits)));
                program.push(instruction(0x15, 1, 0, 2, 0));
            } else {
                // Every bit asked for is granted: allow.
                program.push(instruction(0x54, 1, 0, 0, u32::from(bits)));
                program.push(instruction(0x5d, 1, 3, 2, 0));
            }
            program.push(instruction(
                0xb7,
                0,
                0,
                0,
                u32::from(!self.allow_by_default),
            ));
            program.push(instruction(0x95, 0, 0, 0, 0));
        }
        program.push(instruction(0xb7, 0, 0, 0, u32::from(self.allow_by_default)));
        program.push(instruction(0x95, 0, 0, 0, 0));
        program
    }
}

/// One eBPF instruction as the kernel lays it out in a little-endian word.
fn instruction(code: u8, destination: u8, source: u8, offset: usize, immediate: u32) -> u64 {
    let offset = u16::try_from(offset).unwrap_or_default();
    u64::from(code)
        | u64::from(destination | source << 4) << 8
        | u64::from(offset) << 16
        | u64::from(immediate) << 32
}

fn access_bits(text: &str) -> u8 {
    // An empty access means all of it, as runc takes it.
    if text.is_empty() {
        return READ | WRITE | MKNOD;
    }
    text.chars().fold(0, |bits, c| {
        bits | match c {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        }
    })
}

fn access_text(bits: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, letter)| letter)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        kind: &str,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind: kind.into(),
            major,
            minor,
            access: access.into(),
        }
    }

    #[test]
    fn deny_all_leaves_the_default_devices() {
        let set = DeviceSet::of_rules(&[rule(false, "a", None, None, "rwm")]);
        let writes = set.v1_writes();
        assert_eq!(writes[0], ("devices.deny", "a".to_owned()));
        assert!(writes.contains(&("devices.allow", "c 1:3 rwm".to_owned())));
        assert!(writes.contains(&("devices.allow", "c *:* m".to_owned())));
        assert!(writes.contains(&("devices.allow", "c 136:* rwm".to_owned())));
        assert_eq!(writes.len(), 12);
    }

    #[test]
    fn allow_all_is_recognised() {
        assert!(DeviceSet::of_rules(&[rule(true, "a", None, None, "rwm")]).allows_everything());
        assert!(!DeviceSet::of_rules(&[]).allows_everything());
    }

    #[test]
    fn later_rules_add_and_take_back() {
        let set = DeviceSet::of_rules(&[
            rule(true, "b", Some(8), Some(0), "rw"),
            rule(false, "b", Some(8), Some(0), "w"),
            rule(true, "c", Some(10), Some(-1), "r"),
        ]);
        let writes = set.v1_writes();
        assert!(writes.contains(&("devices.allow", "b 8:0 r".to_owned())));
        assert!(writes.contains(&("devices.allow", "c 10:* r".to_owned())));
    }

    /// Runs the few instructions that [`DeviceSet::program`] emits.
    fn allowed(set: &DeviceSet, kind: Kind, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | kind as u32, major, minor];
        let mut registers = [0u32; 6];
        let program = set.program();
        let mut at = 0;
        loop {
            let [code, nibbles, low, high, i0, i1, i2, i3] = program[at].to_le_bytes();
            let (to, from) = (usize::from(nibbles & 15), usize::from(nibbles >> 4));
            let offset = usize::from(u16::from_le_bytes([low, high]));
            let value = u32::from_le_bytes([i0, i1, i2, i3]);
            at += 1;
            match code {
                0x61 => registers[to] = context[offset / 4],
                0x54 => registers[to] &= value,
                0x74 => registers[to] >>= value,
                0xbc => registers[to] = registers[from],
                0xb7 => registers[to] = value,
                0x55 => at += if registers[to] == value { 0 } else { offset },
                0x15 => at += if registers[to] == value { offset } else { 0 },
                0x5d => {
                    at += if registers[to] == registers[from] {
                        0
                    } else {
                        offset
                    }
                }
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        let closed = DeviceSet::of_rules(&[rule(true, "b", Some(8), None, "r")]);
        assert!(allowed(&closed, Kind::Character, READ | WRITE, 1, 3));
        assert!(allowed(&closed, Kind::Block, READ, 8, 5));
        assert!(!allowed(&closed, Kind::Block, READ | WRITE, 8, 5));
        assert!(allowed(&closed, Kind::Block, MKNOD, 9, 0));
        assert!(!allowed(&closed, Kind::Character, READ, 10, 229));
        let open = DeviceSet::of_rules(&[
            rule(true, "a", None, None, ""),
            rule(false, "c", Some(10), Some(229), "w"),
        ]);
        assert!(allowed(&open, Kind::Character, READ, 10, 229));
        assert!(!allowed(&open, Kind::Character, READ | WRITE, 10, 229));
        assert!(allowed(&open, Kind::Block, READ | WRITE, 8, 0));
    }
}
