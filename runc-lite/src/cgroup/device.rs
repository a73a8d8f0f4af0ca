//! Device access: the rule list of the document with what every container may use, the later rule winning.
//! Below are the two forms it is given to the kernel in.

mod exceptions;
mod program;

use std::fmt;

use crate::config::DeviceRule;

pub(super) use exceptions::Exceptions;

/// Access bits as the kernel's device cgroup numbers them.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;

/// A device type; the numbers are `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block = 1,
    Character = 2,
}

/// Type and numbers; `None` is a wildcard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl Device {
    /// Whether every device of `other` is one of these.
    fn covers(self, other: Device) -> bool {
        let wide = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && wide(self.major, other.major) && wide(self.minor, other.minor)
    }

    /// Whether some device is one of both.
    fn overlaps(self, other: Device) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

/// As the files of cgroup v1 have it: `c 1:*`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = if self.kind == Kind::Block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

/// One rule for some devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    device: Device,
    access: u8,
    allow: bool,
}

/// What a rule list comes to: a default and the rules that follow it, the last match deciding, bit by bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSet {
    allow_by_default: bool,
    rules: Vec<Rule>,
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
    /// `rules` in order upon "nothing is allowed", then the accesses every container has.
    ///
    /// A rule for every type ("a", or none) replaces all before it whatever its access says, as in the
    /// kernel. Without such a rule the list adds to nothing: naming devices never opens the others
    /// (GHSA-g54h-m393-cpwq).
    #[must_use]
    pub fn of_rules(rules: &[DeviceRule]) -> DeviceSet {
        let mut set = DeviceSet {
            allow_by_default: false,
            rules: Vec::new(),
        };
        let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
        for rule in rules {
            let kind = match rule.kind.as_str() {
                "b" => Kind::Block,
                "c" | "u" => Kind::Character,
                "" | "a" => {
                    set.allow_by_default = rule.allow;
                    set.rules.clear();
                    continue;
                }
                // Refused by `spec`; never a reason to allow more.
                _ => continue,
            };
            set.rules.push(Rule {
                device: Device {
                    kind,
                    major: number(rule.major),
                    minor: number(rule.minor),
                },
                access: access_bits(&rule.access),
                allow: rule.allow,
            });
        }
        // With everything allowed and nothing taken back these would change nothing.
        if !set.allows_everything() {
            set.rules
                .extend(ALWAYS.map(|(kind, major, minor, access)| Rule {
                    device: Device { kind, major, minor },
                    access,
                    allow: true,
                }));
        }
        set
    }

    /// Whether there is nothing to forbid.
    pub(super) fn allows_everything(&self) -> bool {
        self.allow_by_default && self.rules.iter().all(|rule| rule.allow)
    }
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

pub(super) fn access_text(bits: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, letter)| letter)
        .collect()
}

#[cfg(test)]
mod tests;
