//! Which images may be pulled, imported and used, by registry, repository and Kubernetes namespace, and whose
//! signature they need. Whether a signature is there and good is not decided here.
//!
//! The first rule that fits decides; where none fits, the default does. A rule fits when one of its scopes has
//! the image and one of its namespaces is the pod's; a rule with namespaces never fits where there is no pod, as
//! for what the operator imports.
//!
//! ```text
//! scope = "*" | host *( "/" component )       host = name [ ":" port ] | "*." name [ ":" port ]
//! ```

use std::collections::BTreeSet;
use std::fmt;

use super::reference::{DEFAULT_HOST, Reference};

/// What a rule does with the images it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// They may come and be used.
    Allow,
    /// They may if one of these signers signed them.
    Signed(BTreeSet<String>),
    /// They may not.
    Deny,
}

/// One rule of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What a refusal calls it.
    pub name: String,
    /// The images it is for.
    pub scopes: Vec<Scope>,
    /// The namespaces it is for; empty is all, and no namespace too.
    pub namespaces: BTreeSet<String>,
    /// What it does.
    pub action: Action,
}

/// The operator's rules, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The rules.
    pub rules: Vec<Rule>,
    /// Whether an image no rule fits is allowed.
    pub allows_the_rest: bool,
}

impl Default for Policy {
    /// Everything is allowed.
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            allows_the_rest: true,
        }
    }
}

/// An image that may come or be used, perhaps with a signature only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit<'a> {
    /// The rule that decided.
    pub rule: Option<&'a str>,
    /// One of these has to have signed it; none is no signature needed.
    pub signers: Option<&'a BTreeSet<String>>,
}

/// Why an image is refused; names the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A rule says so.
    #[error(
        "the image policy refuses {image}{place}: rule {rule:?} (images.policy.rules) denies it"
    )]
    Denied {
        /// The image.
        image: String,
        /// ` in namespace "x"`, or nothing.
        place: Place,
        /// The rule's name.
        rule: String,
    },
    /// No rule fits, and what no rule fits is denied.
    #[error(
        "the image policy refuses {image}{place}: no rule fits it and images.policy.default is \"deny\""
    )]
    Unlisted {
        /// The image.
        image: String,
        /// As above.
        place: Place,
    },
}

/// Where an image is wanted, as refusals tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(Option<String>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(namespace) => write!(f, " in namespace {namespace:?}"),
            None => Ok(()),
        }
    }
}

impl Policy {
    /// Whether anything can be refused at all.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.allows_the_rest && self.rules.is_empty()
    }

    /// Decides about an image by its name; `None` is an image without one, which fits rules for everything only.
    ///
    /// # Errors
    /// The image is denied.
    pub fn decide(
        &self,
        image: Option<&Reference>,
        namespace: Option<&str>,
    ) -> Result<Permit<'_>, Refusal> {
        let shown = || match image {
            Some(image) => image.to_string(),
            None => "an image without a name".to_owned(),
        };
        let place = || Place(namespace.map(str::to_owned));
        let fits = |rule: &&Rule| {
            let is_here = rule.namespaces.is_empty()
                || namespace.is_some_and(|namespace| rule.namespaces.contains(namespace));
            is_here && rule.scopes.iter().any(|scope| scope.has(image))
        };
        let Some(rule) = self.rules.iter().find(fits) else {
            return match self.allows_the_rest {
                true => Ok(Permit {
                    rule: None,
                    signers: None,
                }),
                false => Err(Refusal::Unlisted {
                    image: shown(),
                    place: place(),
                }),
            };
        };
        let signers = match &rule.action {
            Action::Deny => {
                return Err(Refusal::Denied {
                    image: shown(),
                    place: place(),
                    rule: rule.name.clone(),
                });
            }
            Action::Allow => None,
            Action::Signed(signers) => Some(signers),
        };
        Ok(Permit {
            rule: Some(&rule.name),
            signers,
        })
    }
}

/// A registry, or a part of one: everything below a repository path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    host: HostPattern,
    /// Components of a path; what is below it, and itself.
    path: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Any,
    Exactly(String),
    /// `.example.com` or `.example.com:5000`: what ends so.
    Below(String),
}

/// A scope that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is no scope such as docker.io/library, registry.example:5000, *.example.com or *: {reason}"
)]
pub struct ParseScopeError {
    value: String,
    reason: String,
}

impl Scope {
    /// Reads a scope.
    ///
    /// # Errors
    /// Names the value and what is wrong.
    pub fn parse(text: &str) -> Result<Self, ParseScopeError> {
        let refuse = |reason: &dyn fmt::Display| ParseScopeError {
            value: text.to_owned(),
            reason: reason.to_string(),
        };
        if text == "*" {
            return Ok(Self {
                host: HostPattern::Any,
                path: Vec::new(),
            });
        }
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let (is_pattern, plain) = match host.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, host),
        };
        let is_host = plain.contains(['.', ':']) || plain == "localhost";
        if !is_host {
            return Err(refuse(&"it names no registry"));
        }
        // The grammar of references is the grammar of scopes; `x` stands for what a scope may leave out.
        let known = match path {
            "" => format!("{plain}/x/x"),
            path => format!("{plain}/{path}/x"),
        };
        let known = Reference::parse(&known).map_err(|error| refuse(&error))?;
        if path.contains([':', '@']) {
            return Err(refuse(&"a scope has neither tag nor digest"));
        }
        let host = match is_pattern {
            true => HostPattern::Below(format!(".{}", plain_host(known.host()))),
            false => HostPattern::Exactly(plain_host(known.host())),
        };
        let path = path.split('/').filter(|component| !component.is_empty());
        Ok(Self {
            host,
            path: path.map(str::to_owned).collect(),
        })
    }

    fn has(&self, image: Option<&Reference>) -> bool {
        let Some(image) = image else {
            return self.host == HostPattern::Any;
        };
        let host = plain_host(image.host());
        let is_host = match &self.host {
            HostPattern::Any => true,
            HostPattern::Exactly(wanted) => host == *wanted,
            HostPattern::Below(end) => host.ends_with(end.as_str()),
        };
        let mut components = image.repository().split('/');
        is_host
            && self
                .path
                .iter()
                .all(|wanted| components.next() == Some(wanted))
    }
}

/// The host as rules compare it: other spellings of the same server must not lead around a rule.
fn plain_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.strip_suffix(":443").unwrap_or(&host) {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST.to_owned(),
        plain => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, scopes: &[&str], namespaces: &[&str], action: Action) -> Rule {
        Rule {
            name: name.to_owned(),
            scopes: scopes
                .iter()
                .map(|text| Scope::parse(text).unwrap())
                .collect(),
            namespaces: namespaces.iter().map(|&name| name.to_owned()).collect(),
            action,
        }
    }

    fn reference(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    #[test]
    fn scopes_have_what_is_below_them_and_nothing_else() {
        let check = |scope: &str, image: &str, expected: bool| {
            let found = Scope::parse(scope).unwrap().has(Some(&reference(image)));
            assert_eq!(found, expected, "{scope} {image}");
        };
        check("*", "nginx", true);
        check("docker.io", "nginx", true);
        check("docker.io/library", "nginx:1", true);
        check("docker.io/library/nginx", "nginx", true);
        check("docker.io/library/ngin", "nginx", false);
        check("docker.io/nginx", "nginx", false);
        check("index.docker.io/library", "nginx", true);
        check("quay.io", "nginx", false);
        check(
            "docker.io/library",
            "registry-1.docker.io/library/nginx",
            true,
        );
        check("docker.io", "docker.io:443/library/nginx", true);
        check("r.example", "R.Example/a", true);
        check("R.EXAMPLE:443", "r.example/a", true);
        check("r.example:5000", "r.example:5000/a/b", true);
        check("r.example:5000", "r.example/a/b", false);
        check("r.example", "r.example:5000/a/b", false);
        check("*.example.com", "a.b.example.com/x", true);
        check("*.example.com", "example.com/x", false);
        check("*.example.com", "badexample.com/x", false);
        check("*.example.com:1/team", "r.example.com:1/team/app", true);
        check("*.example.com:1/team", "r.example.com:1/teams/app", false);
        check("r.example/a/b", "r.example/a", false);
        assert!(Scope::parse("*").unwrap().has(None));
        assert!(!Scope::parse("docker.io").unwrap().has(None));
    }

    #[test]
    fn scopes_that_name_no_registry_are_refused() {
        for bad in [
            "",
            "nginx",
            "library/nginx",
            "docker.io/nginx:1",
            "*.",
            "**",
            "*example.com",
            "a*.example.com",
            "docker.io//x",
            "https://docker.io",
            "docker.io/UPPER",
            "*/x",
            "docker.io/a@sha256:00",
        ] {
            let error = Scope::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_is_named() {
        let signers = BTreeSet::from(["release".to_owned()]);
        let policy = Policy {
            rules: vec![
                rule("only-here", &["docker.io/library"], &["dev"], Action::Allow),
                rule("no-hub", &["docker.io"], &[], Action::Deny),
                rule(
                    "ours",
                    &["r.example"],
                    &["prod"],
                    Action::Signed(signers.clone()),
                ),
                rule("loose", &["r.example"], &[], Action::Allow),
            ],
            allows_the_rest: false,
        };
        let decide = |image: &str, namespace| policy.decide(Some(&reference(image)), namespace);
        assert_eq!(
            decide("nginx", Some("dev")).unwrap().rule,
            Some("only-here")
        );
        for namespace in [None, Some("prod")] {
            let refused = decide("nginx", namespace).unwrap_err().to_string();
            assert!(
                refused.contains("\"no-hub\"")
                    && refused.contains("docker.io/library/nginx:latest")
            );
            assert_eq!(
                refused.contains("\"prod\""),
                namespace.is_some(),
                "{refused}"
            );
        }
        assert_eq!(
            decide("r.example/a", Some("prod")).unwrap().signers,
            Some(&signers)
        );
        assert_eq!(decide("r.example/a", None).unwrap().rule, Some("loose"));
        let refused = decide("quay.io/a", Some("dev")).unwrap_err();
        assert!(
            refused.to_string().contains("default is \"deny\""),
            "{refused}"
        );
        assert!(policy.decide(None, None).is_err());
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        let policy = Policy::default();
        assert!(policy.is_off());
        let permit = policy.decide(None, Some("x")).unwrap();
        assert_eq!((permit.rule, permit.signers), (None, None));
    }
}
