//! What a list of rules comes to in each of its forms.

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

fn writes(rules: &[DeviceRule]) -> Vec<(&'static str, String)> {
    DeviceSet::of_rules(rules).exceptions().unwrap().writes()
}

#[test]
fn deny_all_leaves_the_default_devices() {
    let writes = writes(&[rule(false, "a", None, None, "rwm")]);
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
fn ghsa_g54h_m393_cpwq_rules_for_some_devices_open_no_others() {
    let set = DeviceSet::of_rules(&[
        rule(true, "c", Some(10), Some(229), "rwm"),
        rule(false, "b", Some(8), Some(0), "rwm"),
    ]);
    assert!(!allowed(&set, Kind::Character, READ, 1, 11));
    assert!(!allowed(&set, Kind::Block, READ, 8, 1));
    assert!(allowed(&set, Kind::Character, READ, 10, 229));
    assert_eq!(set.exceptions().unwrap().writes()[0].0, "devices.deny");
}

#[test]
fn later_rules_add_and_take_back() {
    let writes = writes(&[
        rule(true, "b", Some(8), Some(0), "rw"),
        rule(false, "b", Some(8), Some(0), "w"),
        rule(true, "c", Some(10), Some(-1), "r"),
    ]);
    assert!(writes.contains(&("devices.allow", "b 8:0 r".to_owned())));
    assert!(writes.contains(&("devices.allow", "c 10:* r".to_owned())));
}

#[test]
fn a_wider_denial_takes_back_narrower_allowances() {
    let exceptions = DeviceSet::of_rules(&[
        rule(true, "b", Some(8), Some(0), "rw"),
        rule(true, "b", Some(8), Some(1), "r"),
        rule(false, "b", Some(8), None, "rwm"),
    ])
    .exceptions()
    .unwrap();
    let majors: Vec<_> = exceptions.entries.keys().map(|d| d.major).collect();
    assert!(!majors.contains(&Some(8)), "{exceptions:?}");
}

#[test]
fn a_hole_is_refused_for_v1_and_made_on_v2() {
    let set = DeviceSet::of_rules(&[
        rule(true, "c", Some(10), None, "rw"),
        rule(false, "c", Some(10), Some(229), "w"),
    ]);
    let error = set.exceptions().unwrap_err().to_string();
    assert!(
        error.contains("\"c 10:229 w\"") && error.contains("\"c 10:* rw\""),
        "{error}"
    );
    assert!(allowed(&set, Kind::Character, READ | WRITE, 10, 200));
    assert!(allowed(&set, Kind::Character, READ, 10, 229));
    assert!(!allowed(&set, Kind::Character, READ | WRITE, 10, 229));
    assert!(!allowed(&set, Kind::Character, WRITE, 10, 229));
}

#[test]
fn everything_but_one_device_can_be_had_on_both() {
    let set = DeviceSet::of_rules(&[
        rule(true, "a", None, None, ""),
        rule(false, "c", Some(10), Some(229), "w"),
    ]);
    let writes = set.exceptions().unwrap().writes();
    assert_eq!(writes[0], ("devices.allow", "a".to_owned()));
    assert_eq!(writes[1], ("devices.deny", "c 10:229 w".to_owned()));
    assert_eq!(writes.len(), 2);
    assert!(allowed(&set, Kind::Character, READ, 10, 229));
    assert!(!allowed(&set, Kind::Character, READ | WRITE, 10, 229));
    assert!(allowed(&set, Kind::Block, READ | WRITE, 8, 0));
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
            0x95 => return registers[0] == 1,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

#[test]
fn the_program_settles_access_bit_by_bit() {
    let set = DeviceSet::of_rules(&[
        rule(true, "b", Some(8), None, "r"),
        rule(true, "b", None, Some(5), "w"),
    ]);
    assert!(allowed(&set, Kind::Character, READ | WRITE, 1, 3));
    assert!(allowed(&set, Kind::Block, READ, 8, 5));
    // Read by the first rule, write by the second.
    assert!(allowed(&set, Kind::Block, READ | WRITE, 8, 5));
    assert!(!allowed(&set, Kind::Block, READ | WRITE, 8, 6));
    assert!(!allowed(&set, Kind::Block, READ, 9, 5));
    assert!(allowed(&set, Kind::Block, MKNOD, 9, 0));
    assert!(!allowed(&set, Kind::Character, READ, 10, 229));
}

#[test]
fn an_update_denies_nothing_that_stays_allowed() {
    let of = |rules: &[DeviceRule]| DeviceSet::of_rules(rules).exceptions().unwrap();
    let list: String = of(&[rule(true, "b", Some(8), Some(0), "rw")])
        .entries
        .iter()
        .map(|(device, bits)| format!("{device} {}\n", access_text(*bits)))
        .collect();
    let now = Exceptions::parse(&list).unwrap();
    let wanted = of(&[
        rule(true, "b", Some(8), Some(0), "r"),
        rule(true, "c", Some(10), Some(229), "rw"),
    ]);
    assert_eq!(
        wanted.writes_from(Some(&now)),
        [
            ("devices.allow", "c 10:229 rw".to_owned()),
            ("devices.deny", "b 8:0 w".to_owned())
        ]
    );
    assert_eq!(wanted.writes_from(None), wanted.writes());
    assert_eq!(Exceptions::parse("a *:* rwm"), None);
}
