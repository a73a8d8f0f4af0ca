//! Tables of users: what is asked, what the image says, who it is.

use super::*;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    # a comment\n\
    \n\
    +::::::\n\
    daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    www-data:x:33:33::/var/www:/bin/sh\r\n\
    4294967296:x:0:0::/:/bin/sh\n\
    1000:x:0:0::/:/bin/sh\n\
    app:x:1000:1001:App,,,:/home/app:/bin/sh\n\
    big:x:4294967296:1::/:/bin/sh\n\
    signed:x:+0:0::/:/bin/sh\n\
    nul\0:x:7:7::/:/bin/sh\n\
    bare:x:8:8\n\
    evil:x:9:9::/home/e\x07vil:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\nbin:x:1:root,daemon\nwww-data:x:33:\nstaff:x:50:app , nobody\n\
    video:x:44:application,app\napp:x:1001:\n+0:x:0:\nhuge:x:2147483648:app\ngarbage\n";

fn resolve(request: &UserRequest, image_user: &str) -> Result<ResolvedUser, ResolveUserError> {
    resolve_user(
        request,
        image_user,
        Some(PASSWD),
        Some(GROUP),
        &[],
        GroupsPolicy::Merge,
    )
}

fn ids(user: &ResolvedUser) -> (u32, u32, Vec<u32>) {
    (user.uid, user.gid, user.additional_gids.clone())
}

#[test]
fn image_users_are_read_as_docker_reads_them() {
    for (text, uid, gid, gids) in [
        ("", 0, 0, vec![0, 1]),
        ("0", 0, 0, vec![0, 1]),
        ("00", 0, 0, vec![0, 1]),
        ("root", 0, 0, vec![0, 1]),
        ("33", 33, 33, vec![33]),
        ("www-data", 33, 33, vec![33]),
        ("app", 1000, 1001, vec![44, 50, 1001]),
        ("1000", 1000, 1001, vec![44, 50, 1001]),
        ("1000:7", 1000, 7, vec![7, 44, 50]),
        ("app:staff", 1000, 50, vec![44, 50]),
        ("4711", 4711, 0, vec![0]),
        ("4711:video", 4711, 44, vec![44]),
        ("4711:", 4711, 0, vec![0]),
        (":5", 0, 5, vec![1, 5]),
        (
            "2147483647:2147483647",
            2_147_483_647,
            2_147_483_647,
            vec![2_147_483_647],
        ),
    ] {
        let user = resolve(&UserRequest::Image, text).unwrap();
        assert_eq!(ids(&user), (uid, gid, gids), "{text:?}");
    }
}

#[test]
fn cve_2024_40635_and_2026_46680_ids_out_of_range_are_errors_and_never_names() {
    for text in [
        "2147483648",
        "4294967295",
        "4294967296",
        "99999999999999999999",
        "0:4294967296",
        "app:2147483648",
        "-1",
        "+0",
        " 0",
        "0 ",
        "0\n",
        "1:1:1",
        "a b",
        "app\0",
    ] {
        let error = resolve(&UserRequest::Image, text).unwrap_err();
        assert!(
            matches!(error, ResolveUserError::Malformed { .. }),
            "{text:?}: {error}"
        );
    }
    let error = resolve(&UserRequest::Image, "2147483648").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("invalid user \"2147483648\": a number"),
        "{error}"
    );
    for text in ["0x0", "\u{660}", "big", "signed", "nul", "garbage"] {
        let error = resolve(&UserRequest::Image, text).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("unable to find user {text}: no matching entry in passwd file")
        );
    }
    let error = resolve(&UserRequest::Image, &"9".repeat(1 << 20)).unwrap_err();
    assert!(error.to_string().len() < 200, "the message is bounded");
}

#[test]
fn requests_win_over_the_image() {
    let cases = [
        (
            UserRequest::Id {
                uid: 1000,
                gid: None,
            },
            (1000, 1001, vec![44, 50, 1001]),
        ),
        (
            UserRequest::Id {
                uid: 1000,
                gid: Some(5),
            },
            (1000, 5, vec![5, 44, 50]),
        ),
        (
            UserRequest::Id {
                uid: 4711,
                gid: None,
            },
            (4711, 0, vec![0]),
        ),
        (
            UserRequest::Name {
                name: "app".into(),
                gid: Some(6),
            },
            (1000, 6, vec![6, 44, 50]),
        ),
        (
            UserRequest::Name {
                name: "1000".into(),
                gid: None,
            },
            (1000, 1001, vec![44, 50, 1001]),
        ),
    ];
    for (request, expect) in cases {
        assert_eq!(
            ids(&resolve(&request, "daemon").unwrap()),
            expect,
            "{request:?}"
        );
    }
    for request in [
        UserRequest::Id {
            uid: MAX_ID + 1,
            gid: None,
        },
        UserRequest::Id {
            uid: 0,
            gid: Some(u32::MAX),
        },
    ] {
        let error = resolve(&request, "").unwrap_err();
        assert!(
            matches!(error, ResolveUserError::OutOfRange { .. }),
            "{request:?}: {error}"
        );
    }
    for name in ["", ":", "app:1", "app:", ":1", "4294967296", "-1"] {
        let request = UserRequest::Name {
            name: name.into(),
            gid: None,
        };
        let error = resolve(&request, "daemon").unwrap_err();
        assert!(
            matches!(error, ResolveUserError::Malformed { .. }),
            "{name:?}: {error}"
        );
    }
}

#[test]
fn cve_2023_25173_groups_by_policy_always_hold_the_primary_one() {
    let request = UserRequest::Image;
    for (policy, supplemental, expect) in [
        (GroupsPolicy::Merge, vec![], vec![44, 50, 1001]),
        (GroupsPolicy::Merge, vec![7, 44, 7], vec![7, 44, 50, 1001]),
        (GroupsPolicy::Strict, vec![], vec![1001]),
        (GroupsPolicy::Strict, vec![7, 7, 3], vec![3, 7, 1001]),
    ] {
        let user = resolve_user(
            &request,
            "app",
            Some(PASSWD),
            Some(GROUP),
            &supplemental,
            policy,
        )
        .unwrap();
        assert_eq!(user.additional_gids, expect, "{policy:?} {supplemental:?}");
    }
    let error = resolve_user(
        &request,
        "app",
        Some(PASSWD),
        None,
        &[MAX_ID + 1],
        GroupsPolicy::Strict,
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("supplemental group 2147483648")
    );
}

#[test]
fn images_without_files_have_numbers_only() {
    let none = |text| {
        resolve_user(
            &UserRequest::Image,
            text,
            None,
            None,
            &[],
            GroupsPolicy::Merge,
        )
    };
    assert_eq!(ids(&none("5:6").unwrap()), (5, 6, vec![6]));
    assert_eq!(none("").unwrap().home, None);
    assert_eq!(
        none("app").unwrap_err().to_string(),
        "unable to find user app: the image has no passwd file"
    );
    assert_eq!(
        none("5:app").unwrap_err().to_string(),
        "unable to find group app: the image has no group file"
    );
}

#[test]
fn home_and_name_come_from_passwd_and_are_clean() {
    let user = resolve(&UserRequest::Image, "app").unwrap();
    assert_eq!(
        (user.home.as_deref(), user.name.as_deref()),
        (Some("/home/app"), Some("app"))
    );
    assert_eq!(resolve(&UserRequest::Image, "evil").unwrap().home, None);
    assert_eq!(resolve(&UserRequest::Image, "bare").unwrap().home, None);
    assert_eq!(resolve(&UserRequest::Image, "4711").unwrap().name, None);
}

#[test]
fn cve_2026_47262_hostile_files_are_passed_over() {
    let mut passwd = vec![b'a'; MAX_LINE_BYTES + 1];
    passwd.extend_from_slice(b":x:0:0::/:\n\xff\xfe:x:3:3\n:::::::\nok:x:4:5::/:\n");
    let resolve = |text: &str| {
        resolve_user(
            &UserRequest::Image,
            text,
            Some(&passwd),
            None,
            &[],
            GroupsPolicy::Merge,
        )
    };
    assert_eq!(ids(&resolve("ok").unwrap()), (4, 5, vec![5]));
    assert_eq!(
        resolve("3").unwrap().name,
        None,
        "a name that is no text is not reported"
    );
}
