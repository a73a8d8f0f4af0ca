//! Links, addresses and packet rules of this network namespace, without what is meant to stay.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::children;

/// One line per link and address, except those of bridges, which wait for the next pod.
///
/// # Errors
/// When `ip` fails.
pub fn links() -> Result<Vec<String>> {
    let text = children::read("ip", &["-json", "-details", "address"])?;
    let links: Vec<Value> = serde_json::from_str(&text).context("parse what ip prints")?;
    let mut lines = Vec::new();
    for link in &links {
        if link["linkinfo"]["info_kind"] == "bridge" {
            continue;
        }
        let name = link["ifname"].as_str().unwrap_or_default();
        lines.push(format!("link {name}"));
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let local = address["local"].as_str().unwrap_or_default();
            lines.push(format!("address {local} on {name}"));
        }
    }
    Ok(lines)
}

/// One line per nftables rule and element that belongs to a pod.
///
/// Tables, sets, base chains and rules that name no pod are kept for the next pod by the built-in network
/// and by Debian's portmap alike; elements, and the chains portmap makes for each pod, are not.
///
/// # Errors
/// When `nft` fails.
pub fn rules() -> Result<Vec<String>> {
    let text = children::read("nft", &["--json", "list", "ruleset"])?;
    let parsed: Value = serde_json::from_str(&text).context("parse what nft prints")?;
    let mut lines = Vec::new();
    for item in parsed["nftables"].as_array().into_iter().flatten() {
        for (kind, body) in item.as_object().into_iter().flatten() {
            match kind.as_str() {
                // The subnets pods get addresses from are the node's, not a pod's.
                "set"
                    if body["name"]
                        .as_str()
                        .is_some_and(|name| name.starts_with("subnets")) => {}
                "set" | "map" => {
                    for element in body["elem"].as_array().into_iter().flatten() {
                        lines.push(format!("nft element of {}: {element}", place(body, "name")));
                    }
                }
                "chain" if is_of_pod(body["name"].as_str().unwrap_or_default()) => {
                    lines.push(format!("nft chain {}", place(body, "name")));
                }
                "rule" => {
                    let rule = body["expr"].to_string();
                    let comment = body["comment"].as_str().unwrap_or_default();
                    if comment.contains("id:") || is_of_pod(&rule) {
                        lines.push(format!("nft rule in {}: {rule}", place(body, "chain")));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(lines)
}

fn place(body: &Value, key: &str) -> String {
    let word = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    format!("{} {} {}", word("family"), word("table"), word(key))
}

/// Whether a text names a chain of portmap (`CNI-DN-…`) or of ipMasq (`CNI-` and a hash) of one pod.
fn is_of_pod(text: &str) -> bool {
    text.match_indices("CNI-").any(|(at, _)| {
        let name = text[at + 4..].trim_start_matches("DN-");
        name.len() >= 16 && name.bytes().take(16).all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_chains_of_pods_from_chains_that_stay() {
        assert!(is_of_pod("CNI-DN-0123456789abcdef01234"));
        assert!(is_of_pod("jump CNI-0123456789abcdef01234567"));
        assert!(!is_of_pod("CNI-HOSTPORT-SETMARK"));
        assert!(!is_of_pod("POSTROUTING"));
    }
}
