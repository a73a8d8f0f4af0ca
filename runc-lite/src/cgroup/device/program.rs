//! Device rules as cgroup v2 has them: an eBPF program.

use super::DeviceSet;

impl DeviceSet {
    /// The program: returns 1 to allow, 0 to deny.
    ///
    /// The rules are gone through from the last to the first. A rule that matches settles the bits it
    /// names: a denial of one asked for ends it, an allowance takes its bits off what is still asked for,
    /// and ends it when nothing is left. What no rule settles has the default.
    pub(in crate::cgroup) fn program(&self) -> Vec<u64> {
        // r2 type, r3 access still asked for, r4 major, r5 minor; r1 is scratch after the loads.
        let mut program = vec![
            instruction(0x61, 2, 1, 0, 0),
            instruction(0x54, 2, 0, 0, 0xffff),
            instruction(0x61, 3, 1, 0, 0),
            instruction(0x74, 3, 0, 0, 16),
            instruction(0x61, 4, 1, 4, 0),
            instruction(0x61, 5, 1, 8, 0),
        ];
        for rule in self.rules.iter().rev() {
            let mut tests: Vec<(u8, u32)> = vec![(2, rule.device.kind as u32)];
            tests.extend(rule.device.major.map(|major| (4, major)));
            tests.extend(rule.device.minor.map(|minor| (5, minor)));
            let bits = u32::from(rule.access);
            let verdict = if rule.allow {
                vec![
                    instruction(0x54, 3, 0, 0, !bits & 0xffff),
                    instruction(0x55, 3, 0, 2, 0),
                    instruction(0xb7, 0, 0, 0, 1),
                    instruction(0x95, 0, 0, 0, 0),
                ]
            } else {
                vec![
                    instruction(0xbc, 1, 3, 0, 0),
                    instruction(0x54, 1, 0, 0, bits),
                    instruction(0x15, 1, 0, 2, 0),
                    instruction(0xb7, 0, 0, 0, 0),
                    instruction(0x95, 0, 0, 0, 0),
                ]
            };
            let mut left = tests.len() + verdict.len();
            for (register, value) in tests {
                left -= 1;
                program.push(instruction(0x55, register, 0, left, value));
            }
            program.extend(verdict);
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
