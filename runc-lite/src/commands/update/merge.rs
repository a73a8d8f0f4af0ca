//! One resources document upon another: fields replace fields, lists of devices are joined by device.

use serde_json::{Map, Value};

/// What makes two entries of a list speak of the same thing.
const KEYS: [&[&str]; 3] = [&["major", "minor"], &["pageSize"], &["name"]];

/// `patch` upon `before`. Device rules are an order of their own and replaced as a whole.
pub(super) fn merge(before: Value, patch: Value) -> Value {
    match (before, patch) {
        (Value::Object(before), Value::Object(patch)) => Value::Object(merge_fields(before, patch)),
        (Value::Array(mut list), Value::Array(entries)) => {
            for entry in entries {
                match list.iter_mut().rev().find(|known| same(known, &entry)) {
                    Some(known) => *known = merge(std::mem::take(known), entry),
                    None => list.push(entry),
                }
            }
            Value::Array(list)
        }
        (before, Value::Null) => before,
        (_, patch) => patch,
    }
}

fn merge_fields(mut before: Map<String, Value>, patch: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in patch {
        let merged = match before.remove(&name) {
            Some(_) if name == "devices" => value,
            Some(known) => merge(known, value),
            None => value,
        };
        before.insert(name, merged);
    }
    before
}

fn same(one: &Value, other: &Value) -> bool {
    KEYS.iter().any(|key| {
        key.iter()
            .all(|name| one.get(name).is_some() && one.get(name) == other.get(name))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_update_changes_what_it_names() {
        let before = json!({
            "devices": [{"allow": false}, {"allow": true, "type": "c"}],
            "memory": {"limit": 1, "swap": 2},
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1},
                                                  {"major": 8, "minor": 1, "rate": 2}]},
            "unified": {"memory.high": "5"}
        });
        let patch = json!({
            "devices": [{"allow": true}],
            "memory": {"limit": 3, "reservation": null},
            "cpu": {"shares": 9},
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 7},
                                                  {"major": 8, "minor": 2, "rate": 8}]},
            "unified": {"pids.max": "6"}
        });
        let merged = merge(before.clone(), patch);
        assert_eq!(merged["devices"], json!([{"allow": true}]));
        assert_eq!(merged["memory"]["limit"], 3);
        assert_eq!(merged["memory"]["swap"], 2);
        assert_eq!(merged["cpu"], json!({"shares": 9}));
        let throttles = &merged["blockIO"]["throttleReadBpsDevice"];
        assert_eq!(throttles.as_array().unwrap().len(), 3);
        assert_eq!(throttles[1]["rate"], 7);
        assert_eq!(
            merged["unified"],
            json!({"memory.high": "5", "pids.max": "6"})
        );
        assert_eq!(merge(before.clone(), json!({})), before);
        assert_eq!(merge(Value::Null, json!({"cpu": {}})), json!({"cpu": {}}));
    }
}
