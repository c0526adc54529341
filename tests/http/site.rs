//! A server with two models whose answers are scripted.
//!
//! `ember` reads and writes with ember's own tokenizer: it has fill-in-the-middle and a chat template. `plain` has
//! neither. Both answer [`ANSWER`] to a prompt that ends in `@`, to a gap, and to a turn of chat, and then end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hearth::access::{Access, FirstKey};
use hearth::config::Origin;
use hearth::config::state::Secret;
use hearth::duo::Gateway;
use hearth::duo::choice::Defaults;
use hearth::duo::identity::{Identity, Rules};
use hearth::duo::search::Docs;
use hearth::engine::executor::Capacity;
use hearth::engine::handle::{Config, Engine};
use hearth::engine::replicas::Replicas;
use hearth::engine::scripted::{Controls, Scripted};
use hearth::served::family::Family;
use hearth::served::{Models, Served};
use hearth::server::{self, Door, Health, Limits, Listener, Metrics, Server, Shared};
use hearth::text::{Text, TextFiles};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::client::{Line, Reply, request};

pub const KEY: &str = "hearth_test_key_0123456789";
pub const ANSWER: &str = "Hello wörld 🦀, this is the END of it.\n";
pub const CONTEXT: u32 = 256;

pub struct Site {
    pub address: SocketAddr,
    pub controls: Controls,
    pub engine: Replicas,
    pub metrics: SocketAddr,
    pub text: Arc<Text>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How a site differs from the usual one.
#[derive(Default)]
pub struct Options {
    pub limits: Limits,
    pub config: Config,
    /// Who may call; without it one key that opens everything, [`KEY`].
    pub access: Option<Arc<Access>>,
    pub door: Door,
    /// A step that takes longer is hung; zero: none is.
    pub step: Duration,
    /// The metrics ask for a key.
    pub guarded_metrics: bool,
}

/// [`KEY`] as the first key.
pub fn first() -> FirstKey {
    FirstKey::chosen(Secret::checked(KEY, &Origin::Default).unwrap())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model(name: &str, files: &Path, vocab: u32, config: Config) -> (Served, Controls) {
    let capacity = Capacity {
        blocks: 512,
        block_size: 16,
        rows: 64,
        logits: 64,
        context: CONTEXT,
        vocab,
        strict: false,
    };
    let text = Arc::new(Text::new(&TextFiles::read(files).unwrap(), vocab, CONTEXT, &[]).unwrap());
    let script = text.tokenizer.encode(ANSWER).unwrap();
    let one = |s: &str| *text.tokenizer.encode(s).unwrap().last().unwrap();
    let (at, end) = (one("@"), text.tokenizer.eos().unwrap());
    let middle = text.tokenizer.marker("<|fim_middle|>");
    let turn = text.tokenizer.marker("<|im_start|>");
    let header = text.tokenizer.encode("assistant\n").unwrap().len();
    let says = move |tokens: &[u32]| {
        let after = tokens.iter().rposition(|t| *t == at || Some(*t) == middle || Some(*t) == turn);
        let skip = after.map_or(0, |i| i + 1 + if Some(tokens[i]) == turn { header } else { 0 });
        // Random draws may open a turn without its header.
        *script.get(tokens.len().saturating_sub(skip)).unwrap_or(&end)
    };
    let executor = Scripted::new(capacity).says(says);
    let controls = executor.controls();
    let engine = Engine::start(Box::new(executor), config).unwrap();
    let served = Served {
        name: name.into(),
        aliases: vec![format!("{name}-alias")],
        family: Family::General,
        text,
        engine: engine.into(),
        created: 1_700_000_000,
        notice: None,
        papers: Default::default(),
    };
    (served, controls)
}

impl Site {
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let config = options.config;
        let (ember, controls) = model("ember", &root().join("models/ember"), 4096, config.clone());
        let plain = root().join("tests/golden/tokenizers/llama-3");
        let (plain, _) = model("plain", &plain, 2006, config);
        let (engine, text) = (ember.engine.clone(), ember.text.clone());
        let models = Models::new(vec![ember, plain]);
        let metrics = Metrics::default();
        let shared = Shared {
            duo: Arc::new(Gateway {
                identity: Identity::new(Rules::default(), None).unwrap(),
                models: models.clone(),
                defaults: Defaults::default(),
                docs: Docs::default(),
                figures: metrics.duo.clone(),
                streaming: true,
                patience: Duration::from_secs(60),
            }),
            models,
            access: options.access.unwrap_or_else(|| Arc::new(Access::single(first()))),
            health: Arc::new(Health::default()),
            metrics,
        };
        shared.health.expect_steps_within(options.step);
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let figures =
                    server::metrics::serve("127.0.0.1:0".parse().unwrap(), &shared, !options.guarded_metrics);
                let figures = figures.await.unwrap();
                let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
                let server = Server::on(vec![listener], options.door, options.limits, shared);
                bound.send((server.address().unwrap(), figures)).unwrap();
                server
                    .serve(async {
                        let _ = stopped.await;
                    })
                    .await;
            });
        });
        let (address, metrics) = address.recv().unwrap();
        Self { address, metrics, controls, engine, text, stop: Some(stop), thread: Some(thread) }
    }

    /// As SIGTERM does.
    pub fn stop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits for the server to end.
    pub fn ended(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn open(&self, path: &str, body: &Value) -> Line {
        let bearer = format!("Bearer {KEY}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        Line::open(self.address, &request("POST", path, &headers, &body.to_string()))
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.open(path, body).reply()
    }

    pub fn post_text(&self, path: &str, body: &str) -> Reply {
        let headers = [("x-api-key", KEY), ("content-type", "application/json")];
        Line::open(self.address, &request("POST", path, &headers, body)).reply()
    }

    pub fn get(&self, path: &str) -> Reply {
        Line::open(self.address, &request("GET", path, &[("x-api-key", KEY)], "")).reply()
    }

    /// A completion with the usual fields and those given.
    pub fn complete(&self, fields: Value) -> Reply {
        self.post("/v1/completions", &with(json!({"model": "ember", "prompt": "a@"}), fields))
    }

    /// A turn of chat with the usual fields and those given.
    pub fn chat(&self, fields: Value) -> Reply {
        let usual =
            json!({"model": "ember", "messages": [{"role": "user", "content": "hi"}], "temperature": 0});
        self.post("/v1/chat/completions", &with(usual, fields))
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
        self.stop();
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

/// `usual` with the fields of `others` put over it.
pub fn with(mut usual: Value, others: Value) -> Value {
    let fields = usual.as_object_mut().unwrap();
    if !others.is_null() {
        fields.extend(others.as_object().unwrap().clone());
    }
    fields.entry("temperature").or_insert(json!(0));
    usual
}
