//! A gateway whose models answer what the test says.
//!
//! `ember` reads and writes with ember's own tokenizer: it has fill-in-the-middle and a chat template. `plain` has
//! neither.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hearth::access::{Access, FirstKey, Quotas};
use hearth::config::Origin;
use hearth::config::state::Secret;
use hearth::duo::Gateway;
use hearth::duo::choice::Defaults;
use hearth::duo::identity::own::{OwnKey, OwnKeys};
use hearth::duo::identity::{Bypass, Identity, Rules};
use hearth::duo::search::Docs;
use hearth::engine::clock::Manual;
use hearth::engine::executor::Capacity;
use hearth::engine::handle::{Config, Engine};
use hearth::engine::replicas::Replicas;
use hearth::engine::scripted::{Controls, Scripted};
use hearth::served::family::Family;
use hearth::served::{Models, Served};
use hearth::server::{self, Health, Limits, Metrics, Server, Shared};
use hearth::text::{Text, TextFiles};
use serde_json::Value;
use tokio::sync::oneshot;

use super::client::{Line, Reply, request};
use super::gitlab::{self, GitLab};

pub const KEY: &str = "hearth_test_key_0123456789";
/// Which of the test's keys the gateway signs editors' tokens with.
pub const OWN: usize = 9;
/// One that nobody published.
const STRANGER: usize = 8;
/// Tokens of prompt and answer.
pub const CONTEXT: u32 = 8192;

/// What a model says to the next requests.
#[derive(Clone, Debug, Default)]
struct Script {
    answer: Vec<u32>,
    /// Tokens of the answer that the gateway itself has begun.
    begun: usize,
    /// What a model was given last, and what it said so far.
    given: Vec<u32>,
}

pub struct Site {
    pub address: SocketAddr,
    pub metrics: SocketAddr,
    pub controls: Controls,
    pub engine: Replicas,
    pub text: Arc<Text>,
    gitlab: Option<GitLab>,
    script: Arc<Mutex<Script>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model(name: &str, files: &Path, vocab: u32, script: Arc<Mutex<Script>>) -> (Served, Controls) {
    let capacity = Capacity {
        blocks: 2048,
        block_size: 16,
        rows: 256,
        logits: 64,
        context: CONTEXT,
        vocab,
        strict: false,
    };
    let text = Arc::new(Text::new(&TextFiles::read(files).unwrap(), vocab, CONTEXT, &[]).unwrap());
    let end = text.tokenizer.eos().unwrap();
    let middle = text.tokenizer.marker("<|fim_middle|>");
    let turn = text.tokenizer.marker("<|im_start|>");
    let header = text.tokenizer.encode("assistant\n").unwrap().len();
    // The answer begins after the gap's marker, or after the header of the assistant's turn and what is begun.
    let says = move |tokens: &[u32]| {
        let mut script = script.lock().unwrap();
        script.given = tokens.to_vec();
        let after = tokens.iter().rposition(|t| Some(*t) == middle || Some(*t) == turn);
        let skip = match after {
            Some(i) if Some(tokens[i]) == turn => i + 1 + header + script.begun,
            Some(i) => i + 1,
            None => 0,
        };
        *script.answer.get(tokens.len().saturating_sub(skip)).unwrap_or(&end)
    };
    let executor = Scripted::new(capacity).says(says).firm();
    let controls = executor.controls();
    let engine = Engine::start(Box::new(executor), Config::default()).unwrap();
    let served = Served {
        name: name.into(),
        aliases: Vec::new(),
        family: Family::General,
        text,
        engine: engine.into(),
        created: 1_700_000_000,
        notice: None,
        papers: Default::default(),
    };
    (served, controls)
}

fn first() -> FirstKey {
    FirstKey::chosen(Secret::checked(KEY, &Origin::Default).unwrap())
}

impl Site {
    /// A gateway that lets everybody in.
    pub fn open() -> Self {
        Self::ruled(Rules { bypass: Bypass::All, ..Rules::default() })
    }

    /// A gateway that knows no GitLab: every token is refused.
    pub fn closed() -> Self {
        Self::ruled(Rules::default())
    }

    /// A gateway of a GitLab of its own, [`Site::gitlab`].
    pub fn start() -> Self {
        let gitlab = GitLab::start();
        let mut site = Self::of(&gitlab, Rules::default());
        gitlab.gateway(&format!("http://{}", site.address));
        site.gitlab = Some(gitlab);
        site
    }

    /// A gateway of that GitLab.
    pub fn of(gitlab: &GitLab, rules: Rules) -> Self {
        Self::ruled(Rules { gitlab: Some(gitlab.url().parse().unwrap()), ..rules })
    }

    pub fn ruled(rules: Rules) -> Self {
        Self::shaped(rules, |gateway| gateway)
    }

    /// A gateway with other models, defaults or documentation.
    pub fn shaped(rules: Rules, shape: impl FnOnce(Gateway) -> Gateway) -> Self {
        let own = OwnKeys::new(OwnKey::read(&gitlab::pem(OWN)).unwrap(), None);
        Self::built(Identity::new(rules, Some(own)).unwrap(), shape)
    }

    pub fn with(identity: Identity) -> Self {
        Self::built(identity, |gateway| gateway)
    }

    /// A gateway of that GitLab with limits for its users, by a clock that stands still.
    pub fn limited(gitlab: &GitLab, directory: &Path, quotas: Quotas, clock: Manual) -> Self {
        let rules = Rules { gitlab: Some(gitlab.url().parse().unwrap()), ..Rules::default() };
        let own = OwnKeys::new(OwnKey::read(&gitlab::pem(OWN)).unwrap(), None);
        let clock = Arc::new(clock);
        let access = Access::clocked(first(), directory, quotas, clock.clone(), clock).unwrap();
        Self::admitting(Identity::new(rules, Some(own)).unwrap(), access, |gateway| gateway)
    }

    fn built(identity: Identity, shape: impl FnOnce(Gateway) -> Gateway) -> Self {
        Self::admitting(identity, Access::single(first()), shape)
    }

    fn admitting(identity: Identity, access: Access, shape: impl FnOnce(Gateway) -> Gateway) -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let (ember, controls) = model("ember", &root().join("models/ember"), 4096, script.clone());
        let plain = root().join("tests/golden/tokenizers/llama-3");
        let (plain, _) = model("plain", &plain, 2006, script.clone());
        let (engine, text) = (ember.engine.clone(), ember.text.clone());
        let models = Models::new(vec![ember, plain]);
        let metrics = Metrics::default();
        let gateway = shape(Gateway {
            identity,
            models,
            defaults: Defaults::default(),
            docs: Docs::default(),
            figures: metrics.duo.clone(),
            streaming: true,
            patience: Duration::from_secs(60),
        });
        let shared = Shared {
            models: gateway.models.clone(),
            duo: Arc::new(gateway),
            access: Arc::new(access),
            health: Arc::new(Health::default()),
            metrics,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::spawn(shared.duo.identity.keep());
                let figures = server::metrics::serve("127.0.0.1:0".parse().unwrap(), &shared, true);
                let figures = figures.await.unwrap();
                let server =
                    Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default(), shared).await.unwrap();
                bound.send((server.address().unwrap(), figures)).unwrap();
                server
                    .serve(async {
                        let _ = stopped.await;
                    })
                    .await;
            });
        });
        let (address, metrics) = address.recv().unwrap();
        let (gitlab, stop, thread) = (None, Some(stop), Some(thread));
        Self { address, metrics, controls, engine, text, gitlab, script, stop, thread }
    }

    /// The GitLab whose tokens this gateway takes.
    pub fn gitlab(&self) -> &GitLab {
        self.gitlab.as_ref().expect("this site was not started with a GitLab of its own")
    }

    /// A request as GitLab sends it: its headers, and a token with every scope.
    pub fn as_rails(&self, path: &str, body: &Value) -> Reply {
        let headers = self.gitlab().rails();
        self.post_with(path, &gitlab::pairs(&headers), body)
    }

    /// The headers of GitLab with a token of these scopes.
    pub fn rails(&self, scopes: &[String]) -> Vec<(String, String)> {
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        self.gitlab().with(&self.gitlab().token().scopes(&scopes).sign(), "19.3.0")
    }

    /// The same with a token that somebody else signed.
    pub fn forged(&self, scopes: &[String]) -> Vec<(String, String)> {
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        self.gitlab().with(&self.gitlab().token().scopes(&scopes).sign_with(STRANGER), "19.3.0")
    }

    /// The headers of an editor, with a token that the gateway gave to GitLab for it.
    pub fn editor(&self) -> Vec<(String, String)> {
        let headers = self.gitlab().rails();
        let reply =
            self.open_with("POST", "/v1/code/user_access_token", &gitlab::pairs(&headers), "").reply();
        assert_eq!(reply.status, 200, "{}", reply.body);
        self.gitlab().with(reply.json()["token"].as_str().unwrap(), "19.3.0")
    }

    /// What the models say from now on.
    pub fn answers(&self, answer: &str) -> &Self {
        self.answers_after("", answer)
    }

    /// The same, where the gateway begins the assistant's message itself.
    pub fn answers_after(&self, begun: &str, answer: &str) -> &Self {
        let tokens = |text: &str| self.text.tokenizer.encode(text).unwrap();
        let (answer, begun) = (tokens(answer), tokens(begun).len());
        *self.script.lock().unwrap() = Script { answer, begun, given: Vec::new() };
        self
    }

    /// The whole prompt that `ember` was given last, and what it said.
    pub fn given(&self) -> String {
        self.text.tokenizer.decode(&self.script.lock().unwrap().given, true)
    }

    pub fn open_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Line {
        let json = ("content-type", "application/json");
        let headers: Vec<_> = [json].iter().chain(headers).copied().collect();
        Line::open(self.address, &request(method, path, &headers, body))
    }

    /// A request without a token.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.open_with("POST", path, &[], &body.to_string()).reply()
    }

    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        self.open_with("POST", path, headers, &body.to_string()).reply()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.open_with("GET", path, &[], "").reply()
    }

    /// Waits until the engine holds nothing.
    pub fn quiet(&self) {
        while self.engine.status().running + self.engine.status().waiting + self.engine.status().blocks_used
            > 0
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        self.controls.run();
        self.controls.delay(Duration::ZERO);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if !std::thread::panicking() {
            assert_eq!(self.controls.violations(), Vec::<String>::new());
        }
    }
}
