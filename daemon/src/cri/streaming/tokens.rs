//! The bounded table of URLs that were given out and not yet used.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Asked;
use crate::domain::failure::{Class, Failure};

/// How long a URL may be used (the kubelet's streaming library: one minute).
const LIFETIME: Duration = Duration::from_secs(60);

/// Most URLs that wait to be used (the same library: 1000).
const MOST: usize = 1000;

/// What each token stands for, until it is used or too old.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<String, Ticket>>);

#[derive(Debug)]
struct Ticket {
    asked: Asked,
    until: Instant,
}

impl Tokens {
    /// Keeps `asked` under a new token of 256 random bits.
    ///
    /// # Errors
    /// `Exhausted` when too many wait.
    pub(super) fn issue(&self, asked: Asked, now: Instant) -> Result<String, Failure> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).map_err(|error| {
            Failure::new(Class::Internal, format!("read random bytes: {error}"))
        })?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut tickets = crate::engine::lock(&self.0);
        tickets.retain(|_, ticket| ticket.until > now);
        if tickets.len() >= MOST {
            return Err(Failure::new(
                Class::Exhausted,
                format!("{MOST} streaming URLs wait to be used; try again"),
            ));
        }
        let until = now + LIFETIME;
        tickets.insert(token.clone(), Ticket { asked, until });
        Ok(token)
    }

    /// What a token stands for, once.
    pub(super) fn redeem(&self, token: &str, now: Instant) -> Option<Asked> {
        let ticket = crate::engine::lock(&self.0).remove(token)?;
        (ticket.until > now).then_some(ticket.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::port_forward::PortForwardOptions;

    fn asked() -> Asked {
        Asked::PortForward(PortForwardOptions {
            pod: "p".to_owned(),
            ports: Vec::new(),
        })
    }

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let token = tokens.issue(asked(), now).unwrap();
        assert_eq!(token.len(), 64);
        assert!(tokens.redeem(&token, now).is_some());
        assert!(tokens.redeem(&token, now).is_none());
        let token = tokens.issue(asked(), now).unwrap();
        assert!(tokens.redeem(&token, now + LIFETIME).is_none());
        assert!(tokens.redeem("", now).is_none());
    }

    #[test]
    fn a_thousand_tokens_may_wait_and_old_ones_make_room() {
        let tokens = Tokens::default();
        let now = Instant::now();
        for _ in 0..MOST {
            tokens.issue(asked(), now).unwrap();
        }
        let refused = tokens.issue(asked(), now).unwrap_err();
        assert_eq!(refused.class, Class::Exhausted);
        tokens.issue(asked(), now + LIFETIME).unwrap();
    }
}
