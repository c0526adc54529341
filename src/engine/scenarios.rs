//! Random schedules over the scripted executor: whatever else is in the engine, a request's stream is the one it gets
//! when it is alone.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::task::noop_waker;
use proptest::prelude::*;

use super::executor::Capacity;
use super::handle::{Config, Engine, Handle, Inline, Tokens};
use super::request::{Event, Finish, Logprobs, Mask, Refused, Request, Sampling};
use super::scripted::{Controls, Fault, Scripted};

const VOCAB: u32 = 50;

/// What a request asked for, without what cannot be copied.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<u32>,
    choices: u32,
    sampling: Sampling,
    max_tokens: u32,
    stops: bool,
    min_tokens: u32,
    prompt_logprobs: Option<u8>,
    masked: bool,
    salt: u64,
}

/// Allows the tokens that differ from the last one in parity.
#[derive(Clone)]
struct Alternating(u32);

impl Mask for Alternating {
    fn fill(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        allowed.fill(if self.0.is_multiple_of(2) { 0xaaaa_aaaa } else { 0x5555_5555 });
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if token % 2 == self.0 % 2 {
            return Err(format!("token {token} after {}", self.0));
        }
        self.0 = token;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Mask> {
        Box::new(self.clone())
    }
}

impl Ask {
    fn request(&self) -> Request {
        Request {
            choices: self.choices,
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop_tokens: if self.stops { [0, 7, 14, 21, 28].into() } else { [].into() },
            min_tokens: self.min_tokens,
            prompt_logprobs: self.prompt_logprobs,
            mask: self.masked.then(|| Box::new(Alternating(0)) as Box<dyn Mask>),
            salt: self.salt,
            ..Request::new(&self.prompt[..])
        }
    }
}

/// What came out of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    prompt: Option<Vec<Option<Logprobs>>>,
    tokens: BTreeMap<u32, Vec<(u32, Option<Logprobs>)>>,
    finished: BTreeMap<u32, Finish>,
    failed: Option<String>,
    over: bool,
}

impl Told {
    fn hear(&mut self, stream: &mut Tokens) {
        let waker = noop_waker();
        let mut context = Context::from_waker(&waker);
        while let Poll::Ready(event) = Pin::new(&mut *stream).poll_next(&mut context) {
            let Some(event) = event else {
                self.over = true;
                return;
            };
            assert!(!self.over && self.failed.is_none(), "{event:?} after the end");
            match event {
                Event::Prompt { logprobs, .. } => {
                    assert!(self.prompt.replace(logprobs).is_none(), "two prompts");
                }
                Event::Token { choice, token, logprobs } => {
                    assert!(self.prompt.is_some() && !self.finished.contains_key(&choice));
                    self.tokens.entry(choice).or_default().push((token, logprobs));
                }
                Event::Finished { choice, reason } => {
                    assert!(self.finished.insert(choice, reason).is_none(), "choice {choice} ended twice");
                }
                Event::Failed { error } => self.failed = Some(error),
            }
        }
    }
}

/// On a device with room for everything. Where that is strict, the size of a block belongs to what a request gets.
fn alone(ask: &Ask, Capacity { strict, block_size, .. }: Capacity) -> Told {
    let block_size = if strict { block_size } else { 16 };
    let capacity =
        Capacity { blocks: 256, block_size, rows: 128, logits: 128, context: 64, vocab: VOCAB, strict };
    let (handle, mut engine) = Engine::inline(Box::new(Scripted::new(capacity)), Config::default());
    let mut stream = handle.submit(ask.request()).unwrap();
    let mut told = Told::default();
    while !told.over {
        engine.turn();
        told.hear(&mut stream);
    }
    told
}

#[derive(Clone, Debug)]
enum Act {
    Submit(Ask),
    Turn,
    Read(usize),
    Leave(usize),
    Cancel(usize, u32),
    Fault(Fault),
}

#[derive(Clone, Debug)]
struct Scene {
    capacity: Capacity,
    chunk: Option<u32>,
    sequences: u32,
    buffer: u32,
    prefix_cache: bool,
    overlaps: bool,
}

struct Player {
    handle: Handle,
    engine: Inline,
    controls: Controls,
    streams: Vec<(Ask, Option<Tokens>, Told, bool)>,
    faults: bool,
}

impl Player {
    fn new(scene: &Scene) -> Self {
        let mut executor = Scripted::new(scene.capacity);
        if scene.overlaps {
            executor = executor.overlapping();
        }
        let controls = executor.controls();
        let config = Config {
            sequences: scene.sequences,
            chunk: scene.chunk,
            buffer: scene.buffer,
            prefix_cache: scene.prefix_cache,
            ..Config::default()
        };
        let (handle, engine) = Engine::inline(Box::new(executor), config);
        Self { handle, engine, controls, streams: Vec::new(), faults: false }
    }

    fn act(&mut self, act: &Act) {
        let count = self.streams.len().max(1);
        match act {
            Act::Submit(ask) => match self.handle.submit(ask.request()) {
                Ok(tokens) => self.streams.push((ask.clone(), Some(tokens), Told::default(), false)),
                Err(Refused::TooLong { .. } | Refused::TooBig { .. }) => {}
                Err(refused) => panic!("{refused}"),
            },
            Act::Turn => {
                self.engine.turn();
                self.engine.audit();
            }
            Act::Read(which) => {
                if let Some((_, Some(stream), told, _)) = self.streams.get_mut(which % count) {
                    told.hear(stream);
                }
            }
            Act::Leave(which) => {
                if let Some((_, stream, _, _)) = self.streams.get_mut(which % count) {
                    *stream = None;
                }
            }
            Act::Cancel(which, choice) => {
                if let Some((_, Some(stream), _, cancelled)) = self.streams.get_mut(which % count) {
                    stream.cancel(*choice);
                    *cancelled = true;
                }
            }
            Act::Fault(fault) => {
                self.faults = true;
                self.controls.fail(self.controls.steps(), *fault);
            }
        }
    }

    /// Lets everything end, and checks what every stream said.
    fn curtain(mut self) {
        let mut turns = 0;
        loop {
            let busy = self.engine.turn();
            self.engine.audit();
            for (_, stream, told, _) in &mut self.streams {
                stream.iter_mut().for_each(|stream| told.hear(stream));
            }
            let open = self.streams.iter().any(|(_, stream, told, _)| stream.is_some() && !told.over);
            if !busy && !open {
                break;
            }
            turns += 1;
            assert!(turns < 3_000, "the engine does not come to an end");
        }
        assert_eq!(self.controls.violations(), Vec::<String>::new());
        let status = self.handle.status();
        assert_eq!((status.running, status.waiting, status.queued_tokens, status.blocks_used), (0, 0, 0, 0));
        for (ask, stream, told, cancelled) in &self.streams {
            if stream.is_none() {
                continue;
            }
            let expected = alone(ask, self.handle.capacity());
            assert!(told.failed.is_none() || self.faults, "{:?} for {ask:?}", told.failed);
            for (choice, tokens) in &told.tokens {
                let whole = &expected.tokens[choice];
                assert_eq!(tokens[..], whole[..tokens.len()], "choice {choice} of {ask:?}");
            }
            if told.failed.is_none() && !cancelled {
                assert_eq!(*told, expected, "{ask:?}");
            }
        }
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    // Prompts over three tokens, so that prefixes are shared often.
    let prompt = prop::collection::vec(0u32..3, 1..40);
    let sampling = (any::<bool>(), any::<bool>(), 0u64..3, prop::option::of(0u8..3)).prop_map(
        |(random, penalised, seed, logprobs)| Sampling {
            temperature: if random { 1.0 } else { 0.0 },
            presence_penalty: if penalised { 0.5 } else { 0.0 },
            seed,
            logprobs,
            ..Sampling::default()
        },
    );
    let limits = (prop_oneof![4 => 1u32..20, 1 => Just(0), 1 => Just(u32::MAX)], any::<bool>(), 0u32..6);
    let rest = (prop::option::weighted(0.2, 0u8..3), prop::bool::weighted(0.2), 0u64..2);
    (prompt, 1u32..4, sampling, limits, rest).prop_map(
        |(prompt, choices, sampling, (max_tokens, stops, min_tokens), (prompt_logprobs, masked, salt))| Ask {
            // A request to the end of the context depends on how large the cache is; it gets a stop instead.
            max_tokens: if max_tokens == u32::MAX {
                64u32.saturating_sub(prompt.len() as u32)
            } else {
                max_tokens
            },
            prompt,
            choices,
            sampling,
            stops,
            min_tokens,
            prompt_logprobs,
            masked,
            salt,
        },
    )
}

fn scene() -> impl Strategy<Value = Scene> {
    let capacity = (1u32..7, 8u32..70, 1u32..40, 1u32..12, any::<bool>());
    let capacity = capacity.prop_map(|(block_size, blocks, rows, logits, strict)| {
        let (block_size, least) = if strict { (block_size + 1, block_size + 1) } else { (block_size, 0) };
        let (rows, logits) = (rows + least, logits + least);
        Capacity { blocks, block_size, rows, logits, context: 64, vocab: VOCAB, strict }
    });
    (capacity, prop::option::of(1u32..8), 1u32..12, 8u32..40, any::<bool>(), any::<bool>()).prop_map(
        |(capacity, chunk, sequences, buffer, prefix_cache, overlaps)| Scene {
            capacity,
            chunk,
            sequences,
            buffer,
            prefix_cache,
            overlaps,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => ask().prop_map(Act::Submit),
        20 => Just(Act::Turn),
        6 => (0usize..64).prop_map(Act::Read),
        1 => (0usize..64).prop_map(Act::Leave),
        1 => (0usize..64, 0u32..3).prop_map(|(which, choice)| Act::Cancel(which, choice)),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Launch),
        Just(Fault::LaunchPanics),
        Just(Fault::Sample),
        Just(Fault::Collect),
        Just(Fault::CollectPanics),
        Just(Fault::Row),
    ]
}

#[test]
fn a_strict_answer_is_computed_again_by_a_prompt_that_goes_on_where_it_ended() {
    let capacity =
        Capacity { blocks: 64, block_size: 4, rows: 32, logits: 32, context: 64, vocab: VOCAB, strict: true };
    let open = || Engine::inline(Box::new(Scripted::new(capacity)), Config::default());
    let say = |(handle, engine): &mut (Handle, Inline), prompt: &[u32]| -> Vec<u32> {
        let mut stream = handle.submit(Request { max_tokens: 12, ..Request::new(prompt) }).unwrap();
        let mut told = Told::default();
        while !told.over {
            engine.turn();
            told.hear(&mut stream);
        }
        told.tokens[&0].iter().map(|(token, _)| *token).collect()
    };
    let mut both = open();
    let begun = say(&mut both, &[1, 2, 3]);
    let longer = [&[1, 2, 3][..], &begun].concat();
    assert_eq!(say(&mut both, &longer), say(&mut open(), &longer));
}

/// Scripted panics are part of the play.
fn hush() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string();
        if !text.contains("scripted:") {
            eprintln!("{text}");
        }
    }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_what_it_gets_alone(scene in scene(), acts in prop::collection::vec(act(), 0..120)) {
        let mut player = Player::new(&scene);
        acts.iter().for_each(|act| player.act(act));
        player.curtain();
    }

    #[test]
    fn a_step_that_fails_ends_its_own_requests_and_changes_nothing_for_the_others(
        scene in scene(),
        acts in prop::collection::vec(prop_oneof![12 => act(), 1 => fault().prop_map(Act::Fault)], 0..120),
    ) {
        hush();
        let mut player = Player::new(&scene);
        acts.iter().for_each(|act| player.act(act));
        player.curtain();
    }
}
