//! A D-Bus connection for a few calls: blocking, one thread, every wait bounded by one deadline.
//!
//! The zbus crate gives the wire format; its connections need an async executor, which a process that
//! clones itself without exec cannot have.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::ser::{Serialize, SerializeStruct, Serializer};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{LE, to_bytes};
use zbus::{DynamicType, Signature, Type, Variant};

use super::SystemdError;
use crate::socket;

/// How long everything that is done over one connection may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Longest message that is read; answers to our calls are some hundred bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Longest line of the authentication.
const MAX_LINE: usize = 4096;
/// Signals kept while an answer is awaited.
const MAX_QUEUED: usize = 1024;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Where a bus listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Path, or name in the abstract namespace.
    path: PathBuf,
    is_abstract: bool,
    /// Whether systemd itself is at the other end, with no bus between.
    is_direct: bool,
}

impl Address {
    /// systemd's own socket.
    #[must_use]
    pub fn direct(path: impl Into<PathBuf>) -> Address {
        Address {
            path: path.into(),
            is_abstract: false,
            is_direct: true,
        }
    }

    /// A bus.
    #[must_use]
    pub fn bus(path: impl Into<PathBuf>) -> Address {
        Address {
            is_direct: false,
            ..Address::direct(path)
        }
    }

    /// The unix sockets of a D-Bus address list; other transports are left out.
    fn parse(list: &str) -> Vec<Address> {
        let entries = list
            .split(';')
            .filter_map(|entry| entry.strip_prefix("unix:"));
        entries
            .flat_map(|entry| entry.split(','))
            .filter_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                Some(Address {
                    is_abstract: match key {
                        "path" => false,
                        "abstract" => true,
                        _ => return None,
                    },
                    ..Address::bus(unescape(value))
                })
            })
            .collect()
    }

    /// Connects to whoever listens there, waiting at most `patience` for room.
    fn connect(&self, patience: Duration) -> io::Result<UnixStream> {
        let address = if self.is_abstract {
            socket::Address::Abstract(self.path.as_os_str().as_encoded_bytes())
        } else {
            socket::Address::Path(&self.path)
        };
        socket::connect(address, patience).map(UnixStream::from)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.is_abstract { "@" } else { "" };
        write!(f, "{mark}{}", self.path.display())
    }
}

/// `%2f` and the like of D-Bus addresses.
fn unescape(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%');
        let code = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where the system's systemd listens, or the user's, best first. What the environment names comes alone.
pub(super) fn addresses(user: bool) -> Vec<Address> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let named = variable(if user {
        "DBUS_SESSION_BUS_ADDRESS"
    } else {
        "DBUS_SYSTEM_BUS_ADDRESS"
    });
    if let Some(named) = named {
        return Address::parse(&named);
    }
    if !user {
        return vec![
            Address::direct("/run/systemd/private"),
            Address::bus("/run/dbus/system_bus_socket"),
        ];
    }
    let Some(runtime) = variable("XDG_RUNTIME_DIR").map(PathBuf::from) else {
        return Vec::new();
    };
    vec![
        Address::direct(runtime.join("systemd/private")),
        Address::bus(runtime.join("bus")),
    ]
}

/// A call: object, interface, method and what to call it in errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) method: &'a str,
    /// With its object, for errors: `StartTransientUnit of x.scope`.
    pub(super) text: &'a str,
}

/// An answer or a signal.
#[derive(Debug)]
pub(super) struct Message {
    kind: u8,
    reply_serial: Option<u32>,
    pub(super) member: String,
    error: String,
    body: Data<'static, 'static>,
}

impl Message {
    /// The body as a `T`.
    pub(super) fn body<'d, T>(&'d self, call: &str) -> Result<T, SystemdError>
    where
        T: serde::Deserialize<'d> + Type,
    {
        let decoded = self.body.deserialize::<T>();
        decoded
            .map(|(body, _)| body)
            .map_err(|e| malformed(call, e.to_string()))
    }
}

fn malformed(call: &str, reason: impl Into<String>) -> SystemdError {
    SystemdError::Malformed {
        call: call.to_owned(),
        reason: reason.into(),
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Bus {
    socket: UnixStream,
    address: Address,
    deadline: Instant,
    patience: Duration,
    serial: u32,
    /// Bytes read and not yet understood.
    inbox: Vec<u8>,
    signals: VecDeque<Message>,
}

impl Bus {
    /// Connects to the first of `addresses` that answers, and makes itself known.
    pub(super) fn connect(addresses: &[Address], patience: Duration) -> Result<Bus, SystemdError> {
        let deadline = Instant::now() + patience;
        let mut tried = Vec::new();
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now());
            // No time at all would mean to wait for ever, see socket(7).
            let socket = match address.connect(left.max(Duration::from_millis(1))) {
                Ok(socket) => socket,
                Err(error) => {
                    tried.push(format!("{address}: {error}"));
                    continue;
                }
            };
            let mut bus = Bus {
                socket,
                address: address.clone(),
                deadline,
                patience,
                serial: 0,
                inbox: Vec::new(),
                signals: VecDeque::new(),
            };
            bus.authenticate()?;
            return Ok(bus);
        }
        if tried.is_empty() {
            tried.push("no address known".to_owned());
        }
        Err(SystemdError::Unreachable {
            tried: tried.join(", "),
        })
    }

    /// Whether no bus is between us and systemd: then there are no names and no subscriptions.
    pub(super) fn is_direct(&self) -> bool {
        self.address.is_direct
    }

    /// EXTERNAL without a name: the other side takes the user from the socket, which also holds where the
    /// user namespaces of both differ.
    fn authenticate(&mut self) -> Result<(), SystemdError> {
        let text = "the authentication";
        self.write(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n", text)?;
        for expected in ["DATA", "OK "] {
            let line = self.line(text)?;
            if !line.starts_with(expected) {
                return Err(SystemdError::Refused {
                    address: self.address.to_string(),
                    answer: line,
                });
            }
        }
        Ok(())
    }

    fn line(&mut self, call: &str) -> Result<String, SystemdError> {
        loop {
            if let Some(end) = self.inbox.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.inbox.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.inbox.len() > MAX_LINE {
                return Err(malformed(call, "a line without an end"));
            }
            self.fill(call)?;
        }
    }

    /// Calls a method and waits for its answer. Signals that come before it are kept.
    pub(super) fn call<B>(&mut self, call: Call<'_>, body: &B) -> Result<Message, SystemdError>
    where
        B: Serialize + DynamicType,
    {
        self.serial += 1;
        let serial = self.serial;
        let bytes = encode(call, serial, body).map_err(|e| malformed(call.text, e.to_string()))?;
        self.write(&bytes, call.text)?;
        loop {
            let message = self.receive(call.text)?;
            match message.kind {
                SIGNAL if self.signals.len() < MAX_QUEUED => self.signals.push_back(message),
                METHOD_RETURN if message.reply_serial == Some(serial) => return Ok(message),
                ERROR if message.reply_serial == Some(serial) => {
                    let text = message.body::<(String,)>(call.text);
                    return Err(SystemdError::Answered {
                        call: call.text.to_owned(),
                        name: message.error,
                        message: text.map(|(text,)| text).unwrap_or_default(),
                    });
                }
                _ => {}
            }
        }
    }

    /// The next signal; `call` is what it is awaited for.
    pub(super) fn signal(&mut self, call: &str) -> Result<Message, SystemdError> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            let message = self.receive(call)?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self, call: &str) -> Result<Message, SystemdError> {
        loop {
            if let Some(length) = message_length(&self.inbox).map_err(|e| malformed(call, e))?
                && self.inbox.len() >= length
            {
                let bytes: Vec<u8> = self.inbox.drain(..length).collect();
                return decode(bytes).map_err(|e| malformed(call, e));
            }
            self.fill(call)?;
        }
    }

    fn write(&mut self, bytes: &[u8], call: &str) -> Result<(), SystemdError> {
        let timeout = self.left(call)?;
        let written = self
            .socket
            .set_write_timeout(Some(timeout))
            .and_then(|()| self.socket.write_all(bytes));
        written.map_err(|e| self.failed(e, call))
    }

    /// Reads what is there, or waits for it.
    fn fill(&mut self, call: &str) -> Result<(), SystemdError> {
        let timeout = self.left(call)?;
        let mut buffer = [0u8; 8192];
        let read = self.socket.set_read_timeout(Some(timeout)).and_then(|()| {
            rustix::io::retry_on_intr(|| {
                self.socket.read(&mut buffer).map_err(|e| {
                    rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO)
                })
            })
            .map_err(io::Error::from)
        });
        match read {
            Ok(0) => {
                let closed = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the connection was closed before {call} was answered"),
                );
                Err(self.failed(closed, call))
            }
            Ok(length) => {
                self.inbox.extend_from_slice(&buffer[..length]);
                Ok(())
            }
            Err(error) => Err(self.failed(error, call)),
        }
    }

    /// What is left of the bound.
    fn left(&self, call: &str) -> Result<Duration, SystemdError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.silent(call));
        }
        Ok(left)
    }

    fn silent(&self, call: &str) -> SystemdError {
        SystemdError::Silent {
            call: call.to_owned(),
            seconds: self.patience.as_secs(),
        }
    }

    fn failed(&self, error: io::Error, call: &str) -> SystemdError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.silent(call),
            _ => SystemdError::Io {
                address: self.address.to_string(),
                source: error,
            },
        }
    }
}

/// A header field's value. [`Variant`] would write the signature of several values with parentheses, which
/// the header has without.
#[derive(Clone, Copy)]
enum Field<'a> {
    Path(&'a str),
    Text(&'a str),
    Signature(&'a str),
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (signature, value) = match self {
            Field::Path(value) => (Signature::ObjectPath, value),
            Field::Text(value) => (Signature::Str, value),
            Field::Signature(value) => (Signature::Signature, value),
        };
        let mut variant = serializer.serialize_struct("Variant", 2)?;
        variant.serialize_field("signature", &signature)?;
        variant.serialize_field("value", value)?;
        variant.end()
    }
}

impl Type for Field<'_> {
    const SIGNATURE: &'static Signature = &Signature::Variant;
}

const PROTOCOL: u8 = 1;
const LITTLE: u8 = b'l';

fn encode<B>(call: Call<'_>, serial: u32, body: &B) -> zbus::Result<Vec<u8>>
where
    B: Serialize + DynamicType,
{
    let signature = body.signature().to_string_no_parens();
    let body = to_bytes(Context::new(LE, 0), body)?;
    let mut fields = vec![
        (1u8, Field::Path(call.path)),
        (2, Field::Text(call.interface)),
        (3, Field::Text(call.method)),
        (6, Field::Text(call.destination)),
    ];
    if !signature.is_empty() {
        fields.push((8, Field::Signature(&signature)));
    }
    let length = u32::try_from(body.bytes().len()).unwrap_or(u32::MAX);
    let header = (LITTLE, METHOD_CALL, 0u8, PROTOCOL, length, serial, fields);
    let mut bytes = to_bytes(Context::new(LE, 0), &header)?.bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend_from_slice(body.bytes());
    Ok(bytes)
}

/// The length of the message that `bytes` begin with; `None` while that cannot be told.
fn message_length(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(head) = bytes.get(..16) else {
        return Ok(None);
    };
    if head[0] != LITTLE || head[3] != PROTOCOL {
        return Err(format!("a message begins with {:?}", &head[..4]));
    }
    let number = |at: usize| {
        let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
        usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
    };
    let (body, fields) = (number(4), number(12));
    if body > MAX_MESSAGE || fields > MAX_MESSAGE {
        return Err(format!("a message of {body} and {fields} bytes"));
    }
    Ok(Some((16 + fields).next_multiple_of(8) + body))
}

fn decode(bytes: Vec<u8>) -> Result<Message, String> {
    type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);
    let data = Data::new(bytes, Context::new(LE, 0));
    let (header, length) = data
        .deserialize::<Header<'_>>()
        .map_err(|e| e.to_string())?;
    let mut message = Message {
        kind: header.1,
        reply_serial: None,
        member: String::new(),
        error: String::new(),
        body: Data::new(Vec::new(), Context::new(LE, 0)),
    };
    for (code, value) in header.6 {
        match (code, value) {
            (3, Variant::Str(member)) => message.member = member.to_string(),
            (4, Variant::Str(error)) => message.error = error.to_string(),
            (5, Variant::U32(serial)) => message.reply_serial = Some(serial),
            _ => {}
        }
    }
    let body = data.bytes().get(length.next_multiple_of(8)..);
    let body = body.unwrap_or_default().to_vec();
    message.body = Data::new(body, Context::new(LE, 0));
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_unix_sockets() {
        let list = "tcp:host=x;unix:path=/run/a%2fb,guid=1;unix:abstract=/tmp/c";
        let found = Address::parse(list);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Address::bus("/run/a/b"));
        assert_eq!(found[1].to_string(), "@/tmp/c");
        assert_eq!(unescape("a%zz%4"), "a%zz%4");
    }

    #[test]
    fn hostile_lengths_are_refused_before_anything_is_read() {
        let mut head = vec![
            LITTLE, SIGNAL, 0, PROTOCOL, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(message_length(&head).unwrap(), Some(16));
        assert_eq!(message_length(&head[..15]).unwrap(), None);
        head[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(message_length(&head).is_err());
        head[4..8].copy_from_slice(&0u32.to_le_bytes());
        head[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(message_length(&head).is_err());
        head[0] = b'B';
        assert!(message_length(&head).is_err());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for body in [&b""[..], b"l\x01\x00\x01", &[0xff; 64]] {
            assert!(decode(body.to_vec()).is_err());
        }
    }

    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        let call = Call {
            destination: "a.b",
            path: "/c",
            interface: "d.e",
            method: "F",
            text: "F",
        };
        let bytes = encode(call, 7, &("x", 5u32)).unwrap();
        // Header, length of the fields, fields padded to eight, then "x\0" with its length and the number.
        assert_eq!(&bytes[..4], [b'l', 1, 0, 1]);
        assert_eq!(&bytes[4..12], [12, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(&bytes[16..26], [1, 1, b'o', 0, 2, 0, 0, 0, b'/', b'c']);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.contains("\u{1}g\0\u{2}su\0"), "{text:?}");
        assert_eq!(bytes.len() % 8, 4);
        assert_eq!(
            &bytes[bytes.len() - 12..],
            [1, 0, 0, 0, b'x', 0, 0, 0, 5, 0, 0, 0]
        );
        assert_eq!(message_length(&bytes).unwrap(), Some(bytes.len()));
    }
}
