//! The driver against a bus of ours: real bytes over a unix socket, each answer scripted.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde_json::json;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{LE, to_bytes};
use zbus::{DynamicType, ObjectPath, Variant};

use super::bus::{Bus, Call};
use super::*;
use crate::cgroup::CgroupDirectory;

const GREETING: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";

type Properties = Vec<(String, String)>;

/// What the driver asked, as the server read it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    method: String,
    unit: String,
    properties: Properties,
}

/// What the server does about a request.
enum Answer {
    /// An empty answer.
    Done,
    /// A string in a variant.
    Property(&'static str),
    /// A job, and beside it the signals of jobs that end: path and result. `true`: before the answer.
    Job(&'static str, Vec<(&'static str, &'static str)>, bool),
    Error(&'static str, &'static str),
    Raw(Vec<u8>),
    Silence,
    Close,
}

struct Server {
    directory: tempfile::TempDir,
    requests: Receiver<Request>,
}

impl Server {
    /// Serves one connection after another until the script is used up.
    fn start(mut script: Vec<(&'static str, Answer)>) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("bus")).unwrap();
        let (sender, requests) = channel();
        script.reverse();
        std::thread::spawn(move || {
            while !script.is_empty() {
                let Ok((stream, _)) = listener.accept() else {
                    return;
                };
                serve(stream, &mut script, &sender);
            }
        });
        Server {
            directory,
            requests,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("bus")
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.try_iter().collect()
    }
}

fn serve(mut stream: UnixStream, script: &mut Vec<(&str, Answer)>, sender: &Sender<Request>) {
    let mut greeting = vec![0; GREETING.len()];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, GREETING);
    stream
        .write_all(b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\n")
        .unwrap();
    let mut serial = 100;
    while let Some((number, request)) = read_request(&mut stream) {
        let method = request.method.clone();
        sender.send(request).unwrap();
        let (expected, answer) = script.pop().unwrap_or(("nothing", Answer::Close));
        assert_eq!(method, expected);
        let mut reply = |kind: u8, fields: Vec<(u8, Variant<'static>)>, body: Vec<u8>| {
            serial += 1;
            stream
                .write_all(&message(kind, serial, fields, &body))
                .is_ok()
        };
        let to = (5u8, Variant::from(number));
        match answer {
            Answer::Done => {
                reply(2, vec![to], Vec::new());
            }
            Answer::Property(text) => {
                let body = bytes(&(Variant::from(text),));
                reply(2, vec![to], body);
            }
            Answer::Error(name, text) => {
                let error = (4u8, Variant::from(name));
                reply(3, vec![error, to], bytes(&(text,)));
            }
            Answer::Job(job, ends, early) => {
                let job = bytes(&(ObjectPath::try_from(job).unwrap(),));
                let mut answer = Some((vec![to], job));
                if !early {
                    let (fields, body) = answer.take().unwrap();
                    reply(2, fields, body);
                }
                for (path, result) in ends {
                    let path = ObjectPath::try_from(path).unwrap();
                    let body = bytes(&(7u32, path, "some.unit", result));
                    let member = (3u8, Variant::from("JobRemoved"));
                    reply(4, vec![member], body);
                }
                if let Some((fields, body)) = answer {
                    reply(2, fields, body);
                }
            }
            Answer::Raw(raw) => stream.write_all(&raw).unwrap(),
            Answer::Silence => {}
            Answer::Close => return,
        }
    }
}

fn bytes<T: serde::Serialize + DynamicType>(value: &T) -> Vec<u8> {
    to_bytes(Context::new(LE, 0), value)
        .unwrap()
        .bytes()
        .to_vec()
}

fn message(kind: u8, serial: u32, fields: Vec<(u8, Variant<'_>)>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let mut message = bytes(&(b'l', kind, 0u8, 1u8, length, serial, fields));
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend_from_slice(body);
    message
}

/// Reads one call; `None` when the other side is gone.
fn read_request(stream: &mut UnixStream) -> Option<(u32, Request)> {
    type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);
    let mut all = vec![0; 16];
    stream.read_exact(&mut all).ok()?;
    let number = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().unwrap());
    let (body, serial, fields) = (number(4), number(8), number(12));
    let fields = usize::try_from(fields).unwrap();
    let start = (16 + fields).next_multiple_of(8);
    all.resize(start + usize::try_from(body).unwrap(), 0);
    stream.read_exact(&mut all[16..]).unwrap();
    let header = Data::new(all.clone(), Context::new(LE, 0));
    let (header, _): (Header<'_>, usize) = header.deserialize().unwrap();
    let field = |code: u8| {
        let found = header.6.iter().find(|(known, _)| *known == code);
        match found.map(|(_, value)| value) {
            Some(Variant::Str(text)) => text.to_string(),
            Some(Variant::Signature(signature)) => signature.to_string_no_parens(),
            _ => String::new(),
        }
    };
    let body = Data::new(all[start..].to_vec(), Context::new(LE, 0));
    let texts = |list: Vec<(String, Variant<'_>)>| -> Properties {
        list.iter()
            .map(|(name, value)| (name.clone(), format!("{value}")))
            .collect()
    };
    let (unit, properties) = match field(8).as_str() {
        "ssa(sv)a(sa(sv))" => {
            type Body<'a> = (
                String,
                String,
                Vec<(String, Variant<'a>)>,
                Vec<(String, Vec<(String, Variant<'a>)>)>,
            );
            let ((unit, mode, list, _), _): (Body<'_>, usize) = body.deserialize().unwrap();
            assert_eq!(mode, "replace");
            (unit, texts(list))
        }
        "sba(sv)" => {
            type Body<'a> = (String, bool, Vec<(String, Variant<'a>)>);
            let ((unit, runtime, list), _): (Body<'_>, usize) = body.deserialize().unwrap();
            assert!(runtime);
            (unit, texts(list))
        }
        "ss" => body
            .deserialize::<(String, String)>()
            .unwrap()
            .0
            .pipe_unit(),
        "s" => (body.deserialize::<(String,)>().unwrap().0.0, Vec::new()),
        "ssau" => {
            let ((unit, below, pids), _): ((String, String, Vec<u32>), usize) =
                body.deserialize().unwrap();
            (unit, vec![(below, format!("{pids:?}"))])
        }
        "" => (String::new(), Vec::new()),
        other => panic!("signature {other:?}"),
    };
    let request = Request {
        method: field(3),
        unit,
        properties,
    };
    Some((serial, request))
}

trait PipeUnit {
    fn pipe_unit(self) -> (String, Properties);
}

impl PipeUnit for (String, String) {
    fn pipe_unit(self) -> (String, Properties) {
        (self.0, vec![(self.1, String::new())])
    }
}

/// A directory that looks like the scope's cgroup on v2, and the driver for it.
fn scope(files: &[&str], path: &Path) -> (tempfile::TempDir, SystemdCgroup) {
    let mount = tempfile::tempdir().unwrap();
    let unit = Unit {
        name: "axil-x.scope".to_owned(),
        slice: "system.slice".to_owned(),
        user: false,
        control_group: "/axil-x.scope".to_owned(),
        properties: BTreeMap::from([("TimeoutStopSec".to_owned(), "5".to_owned())]),
    };
    let directory = mount.path().join("axil-x.scope");
    if !files.is_empty() {
        std::fs::create_dir(&directory).unwrap();
        for file in files {
            std::fs::write(directory.join(file), "").unwrap();
        }
    }
    let record = CgroupRecord {
        version: 2,
        directories: vec![CgroupDirectory {
            controllers: Vec::new(),
            path: directory,
            mount_point: mount.path().to_owned(),
        }],
        unit: None,
    };
    let driver = SystemdCgroup {
        unit,
        direct: crate::cgroup::open(record),
        addresses: vec![
            Address::direct("/nonexistent/private"),
            Address::direct(path),
        ],
        owner: Cell::new(None),
    };
    (mount, driver)
}

fn resources(limits: serde_json::Value) -> Resources {
    let mut document = json!({"devices": [{"allow": true, "access": "rwm"}]});
    for (name, value) in limits.as_object().unwrap() {
        document[name] = value.clone();
    }
    serde_json::from_value(document).unwrap()
}

const JOB: &str = "/org/freedesktop/systemd1/job/7";
const OTHER: &str = "/org/freedesktop/systemd1/job/6";

fn version() -> (&'static str, Answer) {
    ("Get", Answer::Property("252.39-1~deb12u1"))
}

#[test]
fn a_scope_is_started_with_init_in_it_and_the_rest_is_written_to_its_directory() {
    let server = Server::start(vec![
        version(),
        (
            "StartTransientUnit",
            // Another job ends first, and ours before its own answer.
            Answer::Job(JOB, vec![(OTHER, "failed"), (JOB, "done")], true),
        ),
    ]);
    let files = ["cgroup.procs", "pids.max", "memory.max", "memory.low"];
    let (mount, driver) = scope(&files, &server.path());
    let asked = resources(json!({"pids": {"limit": 5}, "memory": {"limit": 4096}}));
    let mut warnings = Vec::new();
    driver.prepare(&asked, &mut warnings).unwrap();
    assert!(driver.birthplace().unwrap().is_none());
    driver.admit(4711, false, &asked, &mut warnings).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].unit, "axil-x.scope");
    let property = |name: &str| {
        let mut found = requests[1]
            .properties
            .iter()
            .filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.clone());
        assert!(found.next().is_none(), "{name} twice");
        value.unwrap_or_default()
    };
    for (name, word) in [
        ("PIDs", "4711"),
        ("Slice", "system.slice"),
        ("Delegate", "true"),
        ("DefaultDependencies", "false"),
        ("TasksMax", "5"),
        ("MemoryMax", "4096"),
        ("TimeoutStopUSec", "5000000"),
        ("DevicePolicy", "auto"),
        ("IOAccounting", "true"),
    ] {
        assert!(
            property(name).contains(word),
            "{name}: {:?}",
            property(name)
        );
    }
    let read = |file: &str| std::fs::read_to_string(mount.path().join("axil-x.scope").join(file));
    assert_eq!(read("pids.max").unwrap(), "5");
    assert_eq!(read("memory.max").unwrap(), "4096");
    assert_eq!(read("cgroup.procs").unwrap(), "4711");
}

#[test]
fn a_failed_unit_of_the_same_name_is_reset_once() {
    let exists = || {
        let name = "org.freedesktop.systemd1.UnitExists";
        ("StartTransientUnit", Answer::Error(name, "already loaded"))
    };
    let server = Server::start(vec![
        version(),
        exists(),
        ("ResetFailedUnit", Answer::Done),
        (
            "StartTransientUnit",
            Answer::Job(JOB, vec![(JOB, "done")], false),
        ),
    ]);
    let (_mount, driver) = scope(&["cgroup.procs"], &server.path());
    let none = resources(json!({}));
    driver.admit(1, false, &none, &mut Vec::new()).unwrap();
    assert_eq!(server.requests().len(), 4);

    let server = Server::start(vec![
        version(),
        exists(),
        (
            "ResetFailedUnit",
            Answer::Error("x.NoSuchUnit", "not loaded"),
        ),
        exists(),
    ]);
    let (_mount, driver) = scope(&["cgroup.procs"], &server.path());
    let error = driver.admit(1, false, &none, &mut Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "systemd refused StartTransientUnit of axil-x.scope: org.freedesktop.systemd1.UnitExists: already loaded"
    );
}

#[test]
fn a_job_that_fails_is_an_error_and_leaves_no_failed_unit() {
    let server = Server::start(vec![
        version(),
        (
            "StartTransientUnit",
            Answer::Job(JOB, vec![(JOB, "canceled")], false),
        ),
        ("ResetFailedUnit", Answer::Done),
    ]);
    let (mount, driver) = scope(&["cgroup.procs"], &server.path());
    let error = driver
        .admit(1, false, &resources(json!({})), &mut Vec::new())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "systemd could not start axil-x.scope: the job ended as \"canceled\""
    );
    assert_eq!(server.requests().last().unwrap().method, "ResetFailedUnit");
    let procs = mount.path().join("axil-x.scope/cgroup.procs");
    assert_eq!(std::fs::read_to_string(procs).unwrap(), "");
}

#[test]
fn an_update_tells_systemd_first_and_what_it_knows_beside_it() {
    let server = Server::start(vec![version(), ("SetUnitProperties", Answer::Done)]);
    let (mount, driver) = scope(
        &["cpu.max", "memory.swap.max", "memory.max"],
        &server.path(),
    );
    let only = |limits| -> Resources { serde_json::from_value(limits).unwrap() };
    let asked = only(json!({"cpu": {"period": 900_000}, "memory": {"limit": 100}}));
    let before = only(json!({"cpu": {"quota": 450_000}, "memory": {"limit": 50, "swap": 300}}));
    let known = only(json!({"cpu": {"quota": 450_000, "period": 900_000},
                            "memory": {"limit": 100, "swap": 300}}));
    let change = Change {
        asked: &asked,
        known: &known,
        before: &before,
    };
    driver.update(change, &mut Vec::new()).unwrap();
    let requests = server.requests();
    assert_eq!(requests[1].unit, "axil-x.scope");
    for (name, word) in [
        ("CPUQuotaPerSecUSec", "500000"),
        ("CPUQuotaPeriodUSec", "900000"),
        ("MemoryMax", "100"),
        ("MemorySwapMax", "200"),
    ] {
        let found = requests[1]
            .properties
            .iter()
            .find(|(known, _)| known == name);
        assert!(found.unwrap().1.contains(word), "{name}: {found:?}");
    }
    let read = |file: &str| std::fs::read_to_string(mount.path().join("axil-x.scope").join(file));
    assert_eq!(read("memory.swap.max").unwrap(), "200");
    assert_eq!(read("cpu.max").unwrap(), "450000 900000");

    // Refused by systemd: nothing is written.
    let refusal = Answer::Error("org.freedesktop.DBus.Error.InvalidArgs", "out of range");
    let server = Server::start(vec![version(), ("SetUnitProperties", refusal)]);
    let (mount, driver) = scope(
        &["cpu.max", "memory.swap.max", "memory.max"],
        &server.path(),
    );
    let error = driver.update(change, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("out of range"), "{error}");
    let file = mount.path().join("axil-x.scope/memory.max");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "");
}

#[test]
fn what_the_kernel_refuses_systemd_forgets() {
    let server = Server::start(vec![
        version(),
        ("SetUnitProperties", Answer::Done),
        ("SetUnitProperties", Answer::Done),
    ]);
    // There is no pids.max: the limit cannot be written.
    let (_mount, driver) = scope(&["memory.max"], &server.path());
    let only = |limits| -> Resources { serde_json::from_value(limits).unwrap() };
    let asked = only(json!({"memory": {"limit": 100}, "pids": {"limit": 5}}));
    let before = only(json!({"memory": {"limit": 50}}));
    let change = Change {
        asked: &asked,
        known: &asked,
        before: &before,
    };
    let error = driver.update(change, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("pids"), "{error}");
    let last = server.requests().pop().unwrap().properties;
    let value = |name: &str| {
        last.iter()
            .find(|(known, _)| known == name)
            .unwrap()
            .1
            .clone()
    };
    assert!(value("MemoryMax").contains("50"), "{last:?}");
    assert!(
        value("TasksMax").contains(&u64::MAX.to_string()),
        "{last:?}"
    );
}

#[test]
fn removal_stops_the_unit_and_one_that_is_gone_is_no_error() {
    let server = Server::start(vec![
        ("StopUnit", Answer::Job(JOB, vec![(JOB, "done")], false)),
        ("ResetFailedUnit", Answer::Done),
    ]);
    let (_mount, driver) = scope(&[], &server.path());
    driver.remove().unwrap();
    assert_eq!(server.requests().len(), 2);

    let gone = || Answer::Error("org.freedesktop.systemd1.NoSuchUnit", "not loaded");
    let server = Server::start(vec![("StopUnit", gone()), ("ResetFailedUnit", gone())]);
    let (_mount, driver) = scope(&[], &server.path());
    driver.remove().unwrap();

    // Without systemd the directories are all there is.
    let (mount, driver) = scope(&[], Path::new("/nonexistent/bus"));
    std::fs::create_dir_all(mount.path().join("axil-x.scope/below")).unwrap();
    driver.remove().unwrap();
    assert!(!mount.path().join("axil-x.scope").exists());
    let error = driver.connect().unwrap_err().to_string();
    assert!(
        error.contains("/nonexistent/private") && error.contains("is it running?"),
        "{error}"
    );
}

#[test]
fn an_exec_of_an_ordinary_user_is_moved_by_systemd() {
    let server = Server::start(vec![("AttachProcessesToUnit", Answer::Done)]);
    let (_mount, mut driver) = scope(&["cgroup.procs"], &server.path());
    driver.unit.user = true;
    driver.join(4711, None).unwrap();
    let requests = server.requests();
    assert_eq!(
        requests[0].properties,
        [("/".to_owned(), "[4711]".to_owned())]
    );
}

#[test]
fn over_a_bus_we_say_hello_and_subscribe_before_the_job() {
    let server = Server::start(vec![
        ("Hello", Answer::Done),
        version(),
        ("AddMatch", Answer::Done),
        ("Subscribe", Answer::Done),
        (
            "StartTransientUnit",
            Answer::Job(JOB, vec![(JOB, "done")], false),
        ),
    ]);
    let (_mount, mut driver) = scope(&["cgroup.procs"], &server.path());
    driver.addresses = vec![Address::bus(server.path())];
    driver
        .admit(1, false, &resources(json!({})), &mut Vec::new())
        .unwrap();
    let requests = server.requests();
    assert!(
        requests[2].unit.contains("member='JobRemoved'"),
        "{requests:?}"
    );
}

fn ask(script: Vec<(&'static str, Answer)>) -> SystemdError {
    let server = Server::start(script);
    let addresses = [Address::direct(server.path())];
    let mut bus = Bus::connect(&addresses, Duration::from_millis(300)).unwrap();
    let call = Call {
        destination: "a.b",
        path: "/c",
        interface: "d.e",
        method: "Ask",
        text: "Ask",
    };
    bus.call(call, &()).unwrap_err()
}

#[test]
fn a_peer_that_is_silent_gone_or_mad_ends_the_wait() {
    let silent = ask(vec![("Ask", Answer::Silence)]);
    assert!(matches!(silent, SystemdError::Silent { .. }), "{silent}");
    assert!(silent.to_string().contains("Ask"), "{silent}");
    let gone = ask(vec![("Ask", Answer::Close)]);
    assert!(matches!(gone, SystemdError::Io { .. }), "{gone}");
    let huge = [
        b'l', 2, 0, 1, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0, 0, 0, 0, 0,
    ];
    for raw in [vec![0xff; 64], huge.to_vec()] {
        let mad = ask(vec![("Ask", Answer::Raw(raw))]);
        assert!(matches!(mad, SystemdError::Malformed { .. }), "{mad}");
    }
    // An answer to something else, then nothing.
    let stray = message(2, 9, vec![(5, Variant::from(999u32))], &[]);
    let stray = ask(vec![("Ask", Answer::Raw(stray))]);
    assert!(matches!(stray, SystemdError::Silent { .. }), "{stray}");
}

#[test]
fn a_bus_that_does_not_know_us_is_told_with_its_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
    });
    let error = Bus::connect(&[Address::bus(&path)], Duration::from_secs(5)).unwrap_err();
    assert!(error.to_string().contains("REJECTED EXTERNAL"), "{error}");
    server.join().unwrap();
}
