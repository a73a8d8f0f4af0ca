//! How a session ended, as clients read it on the error stream: a `metav1.Status` as JSON.

use bytes::Bytes;
use serde_json::json;

use crate::domain::failure::Failure;

/// How a session ended.
pub(super) type Ended = Result<i32, Failure>;

/// The status of a session. A process that ends with another code than 0 is a failure whose details hold the
/// code; one without a code is 0 (attach).
pub(super) fn json(ended: &Ended) -> Bytes {
    let value = match ended {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit code {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(failure) => json!({
            "metadata": {},
            "status": "Failure",
            "message": failure.to_string(),
            "reason": "InternalError",
            "code": 500,
        }),
    };
    Bytes::from(value.to_string())
}

/// The same for protocols before version 4: nothing, or a sentence.
pub(super) fn text(ended: &Ended) -> Bytes {
    match ended {
        Ok(0) => Bytes::new(),
        Ok(code) => Bytes::from(format!(
            "error executing command in container: exit code {code}"
        )),
        Err(failure) => Bytes::from(failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_where_clients_look_for_it() {
        let value: serde_json::Value = serde_json::from_slice(&json(&Ok(3))).unwrap();
        assert_eq!(value["reason"], "NonZeroExitCode");
        assert_eq!(value["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(value["details"]["causes"][0]["message"], "3");
        let value: serde_json::Value = serde_json::from_slice(&json(&Ok(0))).unwrap();
        assert_eq!(value["status"], "Success");
        let failure = Failure::not_found("no \"such\" thing");
        let value: serde_json::Value = serde_json::from_slice(&json(&Err(failure))).unwrap();
        assert_eq!(value["message"], "no \"such\" thing");
        assert_eq!(text(&Ok(0)), "");
        assert!(text(&Ok(7)).ends_with(b"exit code 7"));
    }
}
