//! Describes an exec: checks its document and adds it to the task. `start` runs it.

use axil_proto::ids::ExecId;
use axil_proto::shim::events::TaskExecAdded;
use prost_types::Any;
use serde_json::Value;

use crate::error::VerbError;
use crate::pod::Pod;
use crate::stdio::IoSpec;
use crate::task::phase::Phase;
use crate::task::process::Process;

/// Largest process document, in bytes.
const DOCUMENT_LIMIT: usize = 4 << 20;

impl Pod {
    /// Adds an exec to a container.
    ///
    /// # Errors
    /// The container is not there or not running, the id is taken, or the document is wrong.
    pub fn add_exec(
        &self,
        id: &str,
        exec_id: &str,
        io: IoSpec,
        document: Option<&Any>,
    ) -> Result<(), VerbError> {
        let task = self.tasks.get(id)?;
        let exec_id: ExecId = exec_id.parse().map_err(|error| VerbError::Field {
            field: "exec_id",
            reason: format!("{error}"),
            value: exec_id.to_owned(),
        })?;
        if task.init.phase() != Phase::Running {
            return Err(VerbError::Precondition {
                id: task.id.clone(),
                reason: "an exec needs a running container",
            });
        }
        let document = prepare_document(document, io.terminal)?;
        let process = Process::new(exec_id.to_string(), io, document, Phase::Created);
        task.add_exec(process)?;
        self.events.publish(&TaskExecAdded {
            container_id: task.id.clone(),
            exec_id: exec_id.to_string(),
        });
        Ok(())
    }
}

/// The OCI process document, with the request's word on the terminal.
fn prepare_document(document: Option<&Any>, terminal: bool) -> Result<Vec<u8>, VerbError> {
    let error = |reason: String, value: &str| VerbError::Field {
        field: "spec",
        reason,
        value: value.to_owned(),
    };
    let Some(document) = document else {
        return Err(error("must hold an OCI process".into(), ""));
    };
    if document.value.len() > DOCUMENT_LIMIT {
        let length = document.value.len().to_string();
        return Err(error(
            format!("is larger than {DOCUMENT_LIMIT} bytes"),
            &length,
        ));
    }
    let mut value: Value = serde_json::from_slice(&document.value)
        .map_err(|e| error(format!("is not JSON: {e}"), &document.type_url))?;
    let Some(process) = value.as_object_mut() else {
        return Err(error("must be a JSON object".into(), &document.type_url));
    };
    process.insert("terminal".to_owned(), Value::Bool(terminal));
    serde_json::to_vec(&value).map_err(|e| error(e.to_string(), &document.type_url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(text: &str) -> Any {
        Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: text.as_bytes().to_vec(),
        }
    }

    #[test]
    fn the_request_decides_on_the_terminal() {
        let document = any(r#"{"terminal":true,"args":["a"],"cwd":"/"}"#);
        let text = String::from_utf8(prepare_document(Some(&document), false).unwrap()).unwrap();
        assert!(text.contains(r#""terminal":false"#), "{text}");
        assert!(text.contains(r#""args":["a"]"#), "{text}");
    }

    #[test]
    fn refuses_what_is_no_process() {
        for document in [None, Some(any("")), Some(any("[]")), Some(any("{"))] {
            let error = prepare_document(document.as_ref(), false).unwrap_err();
            assert!(error.to_string().contains("field spec"), "{error}");
        }
    }
}
