//! Where a request goes: an origin (scheme, host, port) and a path. Credentials belong to an
//! origin, so that this module decides what "the same server" means.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::Uri;

/// Longest URL taken from a server or a file, in bytes. Presigned URLs are long.
const MAX_URL_BYTES: usize = 16 << 10;

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A server: scheme, lower-case host (IPv6 in brackets) and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Origin {
    pub(super) scheme: Scheme,
    host: Box<str>,
    port: u16,
}

impl Origin {
    /// Makes the origin of `authority` (`host` or `host:port`, as in a reference).
    pub(super) fn new(scheme: Scheme, authority: &str) -> Result<Self, UrlProblem> {
        Ok(Target::parse(&format!("{}://{authority}/", scheme.as_str()))?.origin)
    }

    /// Returns the host, and the port when it is not the scheme's own.
    pub(super) fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// Tells whether `host` (IPv6 with or without brackets) means this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// An absolute URL without userinfo and fragment. Its `Display` leaves the query out, which may
/// carry a signature.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) origin: Origin,
    /// Starts with `/`; may have a query.
    path_and_query: String,
}

impl Target {
    /// Makes a target from parts that are known to be valid.
    pub(super) fn at(origin: &Origin, path_and_query: String) -> Self {
        Self {
            origin: origin.clone(),
            path_and_query,
        }
    }

    /// Parses an absolute `http` or `https` URL.
    pub(super) fn parse(url: &str) -> Result<Self, UrlProblem> {
        if url.len() > MAX_URL_BYTES {
            return Err(UrlProblem::TooLong);
        }
        let url = url.split('#').next().unwrap_or_default();
        let uri: Uri = url.parse().map_err(|_| UrlProblem::Syntax)?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some(_) => return Err(UrlProblem::Scheme),
            None => return Err(UrlProblem::Relative),
        };
        let authority = uri.authority().ok_or(UrlProblem::Syntax)?;
        if authority.as_str().contains('@') {
            return Err(UrlProblem::Userinfo);
        }
        let host = authority.host().to_ascii_lowercase();
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let valid = match bracketed {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            // Brackets are around an address alone (RFC 3986, section 3.2.2).
            None => !host.is_empty() && !host.contains(['[', ']', ':']),
        };
        // `authority.port_u16()` is also `None` for a port that is no number.
        let port = match authority.as_str().get(authority.host().len()..) {
            Some("") => Some(scheme.default_port()),
            _ => authority.port_u16().filter(|port| *port != 0),
        };
        let (true, Some(port)) = (valid, port) else {
            return Err(UrlProblem::Syntax);
        };
        let path_and_query = uri.path_and_query().map_or("/", |p| p.as_str());
        let slash = if path_and_query.starts_with('/') {
            ""
        } else {
            "/"
        };
        Ok(Self {
            origin: Origin {
                scheme,
                host: host.into(),
                port,
            },
            path_and_query: format!("{slash}{path_and_query}"),
        })
    }

    /// Resolves the value of a `Location` header against this target.
    pub(super) fn join(&self, location: &str) -> Result<Self, UrlProblem> {
        let location = location.split('#').next().unwrap_or_default();
        let absolute = if location.contains("://") && !location.starts_with(['/', '?']) {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{}:{location}", self.origin.scheme.as_str())
        } else {
            let path = self.path();
            let path = match location.as_bytes().first() {
                Some(b'/') => location.to_owned(),
                Some(b'?') => format!("{path}{location}"),
                Some(_) => {
                    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                    format!("{directory}/{location}")
                }
                None => return Err(UrlProblem::Syntax),
            };
            format!("{}{path}", self.origin)
        };
        Self::parse(&absolute)
    }

    /// Adds a parameter to the query; `value` is percent-encoded.
    pub(super) fn push_query(&mut self, name: &str, value: &str) {
        let separator = if self.path_and_query.contains('?') {
            '&'
        } else {
            '?'
        };
        self.path_and_query
            .push_str(&format!("{separator}{name}={}", encoded(value)));
    }

    /// Returns the path without the query.
    pub(super) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or("/")
    }

    /// Returns the URL for the HTTP client.
    pub(super) fn uri(&self) -> Result<Uri, UrlProblem> {
        format!("{}{}", self.origin, self.path_and_query)
            .parse()
            .map_err(|_| UrlProblem::Syntax)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Percent-encodes everything but RFC 3986 unreserved characters.
pub(super) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Why a text is not a usable URL. The text itself is not repeated: it may carry secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// It does not parse.
    #[error("the URL is malformed")]
    Syntax,
    /// It is longer than 16 KiB.
    #[error("the URL is longer than 16384 bytes")]
    TooLong,
    /// It has no scheme.
    #[error("the URL has no scheme")]
    Relative,
    /// Its scheme is neither http nor https.
    #[error("the URL's scheme is neither http nor https")]
    Scheme,
    /// It carries a user name or password.
    #[error("the URL has a user name or password in it")]
    Userinfo,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_normalised() {
        let target = Target::parse("HTTPS://H.x:443/a?b#c").unwrap();
        assert_eq!(target.to_string(), "https://h.x/a");
        assert_eq!(target.uri().unwrap().to_string(), "https://h.x/a?b");
        assert_eq!(target.origin, Origin::new(Scheme::Https, "h.x").unwrap());
        assert_eq!(
            Target::parse("http://[::1]:5000").unwrap().to_string(),
            "http://[::1]:5000/"
        );
        assert_ne!(
            Origin::new(Scheme::Http, "h.x").unwrap(),
            Origin::new(Scheme::Https, "h.x").unwrap()
        );
    }

    #[test]
    fn locations_resolve_against_the_request() {
        let base = Target::parse("https://h.x:444/v2/a/blobs/b?q=1").unwrap();
        let check = |location: &str, expected: &str| {
            let joined = base.join(location).unwrap();
            assert_eq!(joined.uri().unwrap().to_string(), expected, "{location}");
        };
        check("https://cdn.x/b?s=1", "https://cdn.x/b?s=1");
        check("//cdn.x/b", "https://cdn.x/b");
        check("/b?x=https://y/", "https://h.x:444/b?x=https://y/");
        check("c", "https://h.x:444/v2/a/blobs/c");
        check("?z", "https://h.x:444/v2/a/blobs/b?z");
        for bad in [
            "",
            "ftp://x/",
            "https://",
            "https://u:p@h/",
            "http://h:99999/",
            "http://h:0/",
            "http://h:/",
            "http://[x]/",
            "http://a[::1]b:80/",
            "http://[::1]b/",
            "http://a]/",
            "http://a b/",
        ] {
            assert!(base.join(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn loopback_is_decided_without_dns() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil", "128.0.0.1", "[::2]", "127.0.0.1.x"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn query_values_are_encoded() {
        let mut target = Target::parse("https://h.x/t?a=b").unwrap();
        target.push_query("scope", "repository:a/b:pull&x");
        assert_eq!(
            target.uri().unwrap().to_string(),
            "https://h.x/t?a=b&scope=repository%3Aa%2Fb%3Apull%26x"
        );
    }
}
