//! What a code request is besides its body: whose it is, and how long the caller waits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;

use super::editor::Editor;
use crate::duo::client::{self, Version};
use crate::duo::error::DuoError;
use crate::duo::identity::Caller;
use crate::server::RequestId;

/// An editor that calls without GitLab in between gives up after this.
const DIRECT: Duration = Duration::from_secs(5);
/// GitLab's end-to-end probe gives up after this.
const PROBE: Duration = Duration::from_secs(3);
/// GitLab's proxy gives up when nothing came for this long.
const PROXY: Duration = Duration::from_secs(55);

#[derive(Clone, Debug)]
pub struct Call {
    pub id: Arc<str>,
    caller: Caller,
    /// Feature flags that GitLab pushed.
    pub flags: Vec<String>,
    pub language_server: Version,
}

impl Call {
    pub fn of(request: &Request) -> Self {
        let extensions = request.extensions();
        let id = extensions.get::<RequestId>().expect("bug: a request without its id").0.clone();
        let caller = extensions.get::<Caller>().expect("bug: a request came past the guard").clone();
        let flags = client::feature_flags(request.headers()).unwrap_or_default();
        Self { id, caller, flags, language_server: Version::language_server(request.headers()) }
    }

    /// Refuses a caller that has no right to completions; `direct`: editors have their own token for this route.
    pub fn completes(&self, direct: bool, refusal: &'static str) -> Result<(), DuoError> {
        match direct {
            true => self.caller.require_completion(refusal),
            false => self.caller.require(&["complete_code"], refusal),
        }
    }

    /// Refuses a caller that has no right to generations.
    pub fn generates(&self, refusal: &'static str) -> Result<(), DuoError> {
        self.caller.require(&["generate_code"], refusal)
    }

    /// How long the caller waits.
    pub fn patience(&self, editor: &Editor) -> Duration {
        match (self.caller.direct(), editor.probe()) {
            (_, true) => PROBE,
            (true, false) => DIRECT,
            (false, false) => PROXY,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::duo::body::Object;
    use crate::duo::identity::Issuer;

    fn patience(issuer: Issuer, name: &str, above: &str) -> u64 {
        let caller = Caller { issuer, ..Caller::debug("") };
        let call = Call { id: "".into(), caller, flags: Vec::new(), language_server: Version::default() };
        let file = json!({"file_name": name, "content_above_cursor": above, "content_below_cursor": ""});
        let editor = Editor::read(&Object::new(file.as_object().unwrap().clone())).unwrap();
        call.patience(&editor).as_secs()
    }

    #[test]
    fn each_caller_waits_its_own_time() {
        assert_eq!(patience(Issuer::GitLab, "test.rb", "def hello_world"), 3);
        assert_eq!(patience(Issuer::GitLab, "test.rb", "def hello"), 55);
        assert_eq!(patience(Issuer::Gateway, "a.rb", "def hello_world"), 5);
    }
}
