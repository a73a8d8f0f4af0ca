//! Profiles of operators: taken whole or refused with the field.

use super::*;
use crate::domain::container::seccomp::default_profile;

fn refusal(text: &str) -> String {
    let error = parse_localhost(text.as_bytes(), Arch::X86_64).unwrap_err();
    match &error {
        SeccompProfileError::Malformed { source } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

#[test]
fn the_runtime_specs_form_is_taken_as_it_is() {
    let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],
        "flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
        {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
    let profile = parse_localhost(text.as_bytes(), Arch::X86_64).unwrap();
    assert_eq!(profile.default_errno_ret, Some(38));
    assert_eq!(profile.syscalls[1].args[0].value, 0x7e02_0000);
    let again = serde_json::to_vec(&profile).unwrap();
    assert_eq!(parse_localhost(&again, Arch::X86_64).unwrap(), profile);
}

#[test]
fn the_default_profile_survives_its_own_reading() {
    let profile = default_profile(&Default::default(), Arch::Aarch64);
    let bytes = serde_json::to_vec(&profile).unwrap();
    assert_eq!(parse_localhost(&bytes, Arch::Aarch64).unwrap(), profile);
}

#[test]
fn dockers_form_is_taken_where_it_holds_for_every_container() {
    let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[
        {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]},
        {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
        "syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW","args":null,"comment":"needed",
                     "includes":{},"excludes":{"caps":[]}}]}"#;
    let profile = parse_localhost(text.as_bytes(), Arch::X86_64).unwrap();
    assert_eq!(profile.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    assert_eq!(profile.syscalls[0].names, ["read"]);
}

#[test]
fn cve_2023_2431_what_cannot_be_honoured_is_refused() {
    assert_eq!(refusal(""), "seccomp profile is empty");
    assert_eq!(refusal(" \n"), "seccomp profile is empty");
    assert!(refusal(&" ".repeat(MAX_PROFILE_BYTES + 1)).contains("larger than 1048576"));
    for (text, expect) in [
        ("{}", "missing field `defaultAction`"),
        ("null", "malformed"),
        (
            "{\"defaultAction\":\"SCMP_ACT_ALLOWED\"}",
            "SCMP_ACT_ALLOWED",
        ),
        ("{\"defaultAction\":\"SCMP_ACT_NOTIFY\"}", "SCMP_ACT_NOTIFY"),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","listenerPath":"/run/x.sock"}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","architectures":["x86"]}"#,
            "architectures",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","flags":["LOG"]}"#,
            "flags",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW",
                "includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#,
            "syscalls[0].includes",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW",
                "excludes":{"minKernel":"4.8"}}]}"#,
            "syscalls[0].excludes",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#,
            "[0].names",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["a b"],"action":"SCMP_ACT_ALLOW"}]}"#,
            "[0].names",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "argument 6 does not exist",
        ),
    ] {
        assert!(refusal(text).contains(expect), "{text}: {}", refusal(text));
    }
}
