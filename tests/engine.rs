//! The engine over the scripted executor, scenario by scenario. Most step on the test's own thread.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use hearth::engine::arbiter::Arbiter;
use hearth::engine::clock::Manual;
use hearth::engine::executor::Capacity;
use hearth::engine::handle::{Config, Engine, Handle, Inline, Tokens};
use hearth::engine::request::{Event, Finish, Mask, Refused, Request, Sampling};
use hearth::engine::scripted::{Controls, Fault, Scripted};

const CAPACITY: Capacity =
    Capacity { blocks: 64, block_size: 4, rows: 16, logits: 8, context: 128, vocab: 1000, strict: false };

fn inline(capacity: Capacity, config: Config) -> (Handle, Inline, Controls) {
    let executor = Scripted::new(capacity);
    let controls = executor.controls();
    let (handle, engine) = Engine::inline(Box::new(executor), config);
    (handle, engine, controls)
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|i| i * 7 % 31).collect()
}

fn ask(length: u32, max_tokens: u32) -> Request {
    Request { max_tokens, ..Request::new(prompt(length)) }
}

fn run(engine: &mut Inline) {
    while engine.turn() {}
}

/// Everything until the end, which must be there already.
fn hear(tokens: &mut Tokens) -> Vec<Event> {
    std::iter::from_fn(|| tokens.next_blocking()).collect()
}

fn drawn(events: &[Event]) -> Vec<u32> {
    let token = |event: &Event| match event {
        Event::Token { token, .. } => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn cached(events: &[Event]) -> u32 {
    match &events[0] {
        Event::Prompt { cached, .. } => *cached,
        other => panic!("{other:?} before the prompt"),
    }
}

fn failure(events: &[Event]) -> &str {
    match events.last() {
        Some(Event::Failed { error }) => error,
        other => panic!("{other:?} instead of a failure"),
    }
}

/// What is there now.
fn listen(tokens: &mut Tokens, most: usize) -> Vec<Event> {
    std::iter::from_fn(|| tokens.next().now_or_never().flatten()).take(most).collect()
}

/// What the script says after a prompt.
fn script(length: u32, count: usize) -> Vec<u32> {
    let mut tokens = prompt(length);
    for _ in 0..count {
        tokens.push(Scripted::next(&tokens, CAPACITY.vocab));
    }
    tokens.split_off(length as usize)
}

#[test]
fn a_request_gets_its_prompt_its_tokens_and_one_end() {
    let (handle, mut engine, controls) = inline(CAPACITY, Config::default());
    let mut tokens = handle.submit(ask(30, 5)).unwrap();
    run(&mut engine);
    let events = hear(&mut tokens);
    assert_eq!(events[0], Event::Prompt { cached: 0, logprobs: Vec::new() });
    assert_eq!(drawn(&events), script(30, 5));
    assert_eq!(events.last(), Some(&Event::Finished { choice: 0, reason: Finish::Length }));
    assert_eq!(events.len(), 7);
    let status = handle.status();
    assert_eq!((status.tokens_in, status.tokens_out, status.blocks_used), (30, 5, 0));
    assert_eq!(controls.steps(), 2 + 4, "two chunks of the prompt, the last of which draws, and four tokens");
}

#[test]
fn a_stream_dropped_in_the_middle_of_its_prompt_is_out_of_the_next_step() {
    let (handle, mut engine, controls) = inline(CAPACITY, Config::default());
    let tokens = handle.submit(ask(100, 5)).unwrap();
    assert!(engine.turn());
    assert!(handle.status().blocks_used > 0);
    drop(tokens);
    assert!(!engine.turn());
    assert_eq!(controls.steps(), 1);
    assert_eq!((handle.status().blocks_used, handle.status().running), (0, 0));
}

#[test]
fn a_stream_dropped_while_it_waits_gives_its_place_back() {
    let config = Config { sequences: 1, ..Config::default() };
    let (handle, mut engine, _) = inline(CAPACITY, config);
    let _first = handle.submit(ask(10, 50)).unwrap();
    let second = handle.submit(ask(20, 50)).unwrap();
    engine.turn();
    assert_eq!((handle.status().waiting, handle.status().queued_tokens), (1, 20));
    drop(second);
    engine.turn();
    assert_eq!((handle.status().waiting, handle.status().queued_tokens), (0, 0));
    assert_eq!(handle.status().running, 1);
}

#[test]
fn a_cancelled_choice_ends_without_a_word_and_the_others_go_on() {
    let (handle, mut engine, _) = inline(CAPACITY, Config::default());
    let mut tokens = handle.submit(Request { choices: 3, ..ask(10, 20) }).unwrap();
    (0..4).for_each(|_| {
        engine.turn();
    });
    tokens.cancel(1);
    run(&mut engine);
    let events = hear(&mut tokens);
    let of = |wanted: u32| {
        let token = |e: &&Event| matches!(e, Event::Token { choice, .. } if *choice == wanted);
        events.iter().filter(token).count()
    };
    assert_eq!((of(0), of(2)), (20, 20));
    assert!(of(1) < 20);
    assert!(!events.iter().any(|e| matches!(e, Event::Finished { choice: 1, .. } | Event::Failed { .. })));
}

#[test]
fn when_the_first_choice_leaves_before_the_prompt_is_done_the_next_takes_its_place() {
    let (handle, mut engine, _) = inline(CAPACITY, Config::default());
    let mut tokens = handle.submit(Request { choices: 2, ..ask(100, 3) }).unwrap();
    engine.turn();
    tokens.cancel(0);
    run(&mut engine);
    let events = hear(&mut tokens);
    assert_eq!(drawn(&events), script(100, 3));
    assert_eq!(events.last(), Some(&Event::Finished { choice: 1, reason: Finish::Length }));
}

#[test]
fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let config = Config { queue_requests: 2, queue_tokens: 100, sequences: 1, ..Config::default() };
    let (handle, mut engine, _) = inline(CAPACITY, config);
    let _one = handle.submit(ask(90, 5)).unwrap();
    let refused = handle.submit(ask(11, 5)).err().unwrap();
    assert_eq!(refused, Refused::Full { queued: 1, queued_tokens: 90, retry_after: 1 });
    let _two = handle.submit(ask(10, 5)).unwrap();
    assert!(matches!(handle.submit(ask(1, 1)), Err(Refused::Full { queued: 2, queued_tokens: 100, .. })));
    engine.turn();
    assert!(handle.submit(ask(1, 1)).is_ok(), "one of them has begun");
}

#[test]
fn the_time_to_come_back_is_that_of_the_queue_at_its_measured_speed() {
    let clock = Manual::default();
    let config =
        Config { queue_tokens: 400, sequences: 1, clock: Arc::new(clock.clone()), ..Config::default() };
    let (handle, mut engine, _) = inline(CAPACITY, config);
    let submit = |salt: u64, length: u32| handle.submit(Request { salt, ..ask(length, 1) });
    let mut held: Vec<_> = (0..13).map(|salt| submit(salt, 30).unwrap()).collect();
    // Two turns a request of 30 tokens, half a second each: 30 tokens a second leave the queue.
    for salt in 13..20 {
        for _ in 0..2 {
            engine.turn();
            clock.advance(Duration::from_millis(500));
        }
        held.extend(submit(salt, 30));
    }
    let Err(Refused::Full { retry_after, queued_tokens, .. }) = submit(99, 120) else {
        panic!("{:?}", handle.status());
    };
    assert_eq!(u64::from(retry_after), queued_tokens / 30);
    // Who would be gone before the work could begin is told so at once, and who waits longer is taken.
    let patient = |seconds: u64| {
        let deadline = Some(Duration::from_secs(seconds));
        handle.submit(Request { deadline, ..ask(1, 1) })
    };
    let wait = u64::from(retry_after);
    assert_eq!(patient(wait - 1).err(), Some(Refused::Late { wait: retry_after, deadline: retry_after - 1 }));
    assert!(patient(wait + 1).is_ok());
    // So is who waits for the beginning alone: of what has begun the end may come later.
    let beginning = |seconds: u64, tokens: u32| {
        let (deadline, begin) = (Some(Duration::from_secs(3600)), Some(Duration::from_secs(seconds)));
        handle.submit(Request { deadline, begin, ..ask(1, tokens) })
    };
    let refused = beginning(wait - 1, 1).err();
    assert_eq!(refused, Some(Refused::Late { wait: retry_after, deadline: retry_after - 1 }));
    let mut begun = beginning(wait + 1, 100).unwrap();
    run(&mut engine);
    clock.advance(Duration::from_secs(wait + 2));
    run(&mut engine);
    drop(held);
    run(&mut engine);
    assert_eq!(drawn(&hear(&mut begun)).len(), 100);
}

#[test]
fn what_can_never_fit_is_refused_with_both_numbers() {
    let (handle, _engine, _) = inline(CAPACITY, Config::default());
    let refused = |request| handle.submit(request).err().unwrap();
    assert_eq!(refused(ask(0, 1)), Refused::Empty);
    assert_eq!(refused(ask(100, 29)), Refused::TooLong { prompt: 100, max_tokens: 29, context: 128 });
    assert_eq!(refused(ask(128, u32::MAX)), Refused::TooLong { prompt: 128, max_tokens: 1, context: 128 });
    assert_eq!(refused(Request::new([3, 1000])), Refused::UnknownToken { token: 1000, vocab: 1000 });
    let (small, _engine, _) = inline(Capacity { blocks: 10, ..CAPACITY }, Config::default());
    assert_eq!(
        small.submit(ask(30, 11)).err().unwrap(),
        Refused::TooBig { prompt: 30, max_tokens: 11, cache: 40 }
    );
    assert!(small.submit(ask(30, 10)).is_ok());
}

#[test]
fn a_request_without_a_limit_ends_with_the_context() {
    let (handle, mut engine, _) = inline(CAPACITY, Config { buffer: 200, ..Config::default() });
    let mut tokens = handle.submit(ask(100, u32::MAX)).unwrap();
    run(&mut engine);
    assert_eq!(drawn(&hear(&mut tokens)), script(100, 28));
}

#[test]
fn no_tokens_asked_for_gives_the_prompt_and_its_log_probabilities_and_nothing_else() {
    let (handle, mut engine, controls) = inline(CAPACITY, Config::default());
    let mut plain = handle.submit(ask(20, 0)).unwrap();
    run(&mut engine);
    assert_eq!(hear(&mut plain).len(), 2);
    assert_eq!(controls.steps(), 0);
    let mut scored = handle.submit(Request { prompt_logprobs: Some(2), choices: 2, ..ask(20, 0) }).unwrap();
    run(&mut engine);
    let events = hear(&mut scored);
    let Event::Prompt { logprobs, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(logprobs.len(), 20);
    assert!(logprobs[0].is_none() && logprobs[1..].iter().all(|l| l.as_ref().unwrap().top.len() == 2));
    assert_eq!(events.len(), 3);
    assert_eq!(controls.rows(), 19, "the last token of the prompt is not computed");
}

#[test]
fn stop_tokens_end_a_choice_but_not_before_min_tokens() {
    let all = script(10, 8);
    let stop: Arc<[u32]> = [all[2]].into();
    let (handle, mut engine, _) = inline(CAPACITY, Config::default());
    let mut stopped = handle.submit(Request { stop_tokens: stop.clone(), ..ask(10, 8) }).unwrap();
    let mut barred = handle.submit(Request { stop_tokens: stop, min_tokens: 3, ..ask(10, 8) }).unwrap();
    run(&mut engine);
    let events = hear(&mut stopped);
    assert_eq!(drawn(&events), all[..3]);
    assert_eq!(events.last(), Some(&Event::Finished { choice: 0, reason: Finish::Stop }));
    let events = hear(&mut barred);
    assert_eq!(drawn(&events)[..2], all[..2]);
    assert_ne!(drawn(&events)[2], all[2]);
}

#[test]
fn a_prompt_seen_before_comes_from_the_cache_but_for_its_last_token() {
    let (handle, mut engine, controls) = inline(CAPACITY, Config::default());
    let mut ask_for = |length: u32, salt: u64| {
        let before = controls.rows();
        let mut tokens = handle.submit(Request { salt, ..ask(length, 3) }).unwrap();
        run(&mut engine);
        let events = hear(&mut tokens);
        assert_eq!(drawn(&events), script(length, 3));
        (cached(&events), controls.rows() - before)
    };
    assert_eq!(ask_for(20, 1), (0, 22));
    assert_eq!(ask_for(20, 1), (16, 6), "of five full blocks the last holds the last token");
    assert_eq!(ask_for(21, 1), (20, 3));
    assert_eq!(ask_for(20, 2), (0, 22), "another salt shares nothing");
    let status = handle.status();
    assert_eq!((status.prefix_queries, status.prefix_hits), (81, 36));
}

#[test]
fn choices_share_their_prompt_and_two_at_once_do_not_lose_it() {
    for prefix_cache in [true, false] {
        let (handle, mut engine, controls) = inline(CAPACITY, Config { prefix_cache, ..Config::default() });
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut tokens = handle.submit(Request { choices: 4, sampling, ..ask(41, 2) }).unwrap();
        run(&mut engine);
        let events = hear(&mut tokens);
        assert_eq!(drawn(&events).len(), 8);
        assert_eq!(controls.rows(), 41 + 3 + 4, "ten blocks of the prompt are computed once");
        let mut again = handle.submit(ask(41, 2)).unwrap();
        run(&mut engine);
        assert_eq!(cached(&hear(&mut again)), if prefix_cache { 40 } else { 0 });
    }
}

#[test]
fn a_long_prompt_takes_its_chunk_beside_others_and_the_whole_step_when_alone() {
    let capacity = Capacity { context: 500, blocks: 200, ..CAPACITY };
    let (handle, mut engine, controls) = inline(capacity, Config { chunk: Some(5), ..Config::default() });
    let rows = |engine: &mut Inline| {
        let before = controls.rows();
        engine.turn();
        controls.rows() - before
    };
    let _decoding = handle.submit(ask(3, 100)).unwrap();
    assert_eq!(rows(&mut engine), 3);
    let long = handle.submit(Request { salt: 1, ..ask(300, 5) }).unwrap();
    assert_eq!((rows(&mut engine), rows(&mut engine)), (6, 6));
    drop(_decoding);
    assert_eq!(rows(&mut engine), 16);
    drop(long);
}

#[test]
fn the_youngest_is_preempted_and_every_stream_is_as_if_it_were_alone() {
    let capacity = Capacity { blocks: 12, ..CAPACITY };
    let (handle, mut engine, controls) = inline(capacity, Config::default());
    let mut streams: Vec<_> = (0..4)
        .map(|i| (10 + i, handle.submit(Request { salt: i.into(), ..ask(10 + i, 30) }).unwrap()))
        .collect();
    run(&mut engine);
    for (length, tokens) in &mut streams {
        assert_eq!(drawn(&hear(tokens)), script(*length, 30));
    }
    assert!(handle.status().preemptions > 0);
    assert_eq!(handle.status().blocks_used, 0);
    assert_eq!(controls.violations(), Vec::<String>::new());
}

#[test]
fn a_slow_reader_pauses_alone_goes_on_when_it_reads_and_fails_when_it_never_does() {
    let clock = Manual::default();
    let config = Config { buffer: 10, clock: Arc::new(clock.clone()), ..Config::default() };
    let (handle, mut engine, _) = inline(CAPACITY, config);
    let mut slow = handle.submit(ask(10, 60)).unwrap();
    let mut never = handle.submit(ask(11, 60)).unwrap();
    let mut quick = handle.submit(ask(12, 60)).unwrap();
    let mut heard = Vec::new();
    while heard.len() < 62 {
        engine.turn();
        heard.extend(listen(&mut quick, 100));
    }
    assert_eq!(drawn(&heard), script(12, 60), "two readers that take nothing hold nobody else up");
    run(&mut engine);
    clock.advance(Duration::from_secs(29));
    assert!(!engine.turn());
    let mut first = listen(&mut slow, 4);
    assert!(engine.turn(), "room wakes the sequence up");
    clock.advance(Duration::from_secs(1));
    engine.turn();
    let events = hear(&mut never);
    assert!(failure(&events).contains("reader"), "{events:?}");
    assert!(!drawn(&events).is_empty(), "what was on its way is still delivered");
    while first.len() < 62 {
        engine.turn();
        first.extend(listen(&mut slow, 100));
    }
    assert_eq!(drawn(&first), script(10, 60));
    assert_eq!(slow.next_blocking(), None);
}

#[test]
fn a_deadline_ends_a_request_in_the_queue_and_in_the_middle_of_its_tokens() {
    let clock = Manual::default();
    let config = Config { sequences: 1, clock: Arc::new(clock.clone()), ..Config::default() };
    let (handle, mut engine, _) = inline(CAPACITY, config);
    let deadline = Some(Duration::from_secs(5));
    let mut runs = handle.submit(Request { deadline, ..ask(10, 60) }).unwrap();
    let mut waits = handle.submit(Request { deadline, ..ask(10, 60) }).unwrap();
    engine.turn();
    clock.advance(Duration::from_secs(5));
    assert!(!engine.turn());
    for stream in [&mut runs, &mut waits] {
        assert!(failure(&hear(stream)).contains("within its 5 s"));
    }
    assert_eq!((handle.status().waiting, handle.status().blocks_used), (0, 0));
}

#[test]
fn a_failing_step_ends_its_requests_and_the_engine_serves_on() {
    for fault in [Fault::Launch, Fault::LaunchPanics, Fault::Sample, Fault::Collect, Fault::CollectPanics] {
        let (handle, mut engine, controls) = inline(CAPACITY, Config::default());
        for round in 0..5 {
            let mut tokens = handle.submit(ask(20, 5)).unwrap();
            engine.turn();
            controls.fail(controls.steps(), fault);
            run(&mut engine);
            assert!(failure(&hear(&mut tokens)).contains("step failed"), "{fault:?}, round {round}");
            assert_eq!(handle.status().blocks_used, 0);
        }
        assert_eq!(handle.status().failed_steps, 5);
        let mut tokens = handle.submit(ask(20, 5)).unwrap();
        run(&mut engine);
        let events = hear(&mut tokens);
        assert_eq!(drawn(&events), script(20, 5));
        assert_eq!(
            cached(&events),
            16,
            "what earlier steps wrote is there; what the failed ones wrote is not"
        );
    }
}

#[test]
fn blocks_of_a_failed_step_are_never_shared() {
    let (handle, mut engine, controls) = inline(CAPACITY, Config::default());
    controls.fail(0, Fault::Collect);
    let mut failed = handle.submit(ask(16, 5)).unwrap();
    run(&mut engine);
    failure(&hear(&mut failed));
    let mut again = handle.submit(ask(16, 5)).unwrap();
    run(&mut engine);
    assert_eq!(cached(&hear(&mut again)), 0);
}

#[test]
fn a_row_that_is_not_a_number_fails_its_request_alone() {
    let (handle, mut engine, controls) = inline(CAPACITY, Config::default());
    let mut bad = handle.submit(ask(8, 5)).unwrap();
    let mut good = handle.submit(ask(7, 5)).unwrap();
    controls.fail(0, Fault::Row);
    run(&mut engine);
    assert!(failure(&hear(&mut bad)).contains("not a number"));
    assert_eq!(drawn(&hear(&mut good)), script(7, 5));
    assert_eq!(handle.status().failed_steps, 0);
}

struct Broken(u32, bool);

impl Mask for Broken {
    fn fill(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        if self.0 == 0 && self.1 {
            panic!("scripted: a grammar panics");
        }
        allowed.fill(u32::MAX);
        if self.0 == 0 { Err("a grammar gives up".into()) } else { Ok(()) }
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        self.0 -= 1;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Mask> {
        Box::new(Broken(self.0, self.1))
    }
}

#[test]
fn a_grammar_that_fails_or_panics_ends_its_request_alone() {
    for panics in [false, true] {
        let (handle, mut engine, _) = inline(CAPACITY, Config::default());
        let mask: Box<dyn Mask> = Box::new(Broken(3, panics));
        let mut bad = handle.submit(Request { mask: Some(mask), ..ask(8, 9) }).unwrap();
        let mut good = handle.submit(ask(7, 9)).unwrap();
        run(&mut engine);
        let events = hear(&mut bad);
        assert_eq!(drawn(&events), script(8, 3));
        assert!(failure(&events).contains("grammar"));
        assert_eq!(drawn(&hear(&mut good)), script(7, 9));
    }
}

fn start(config: Config) -> (Handle, Controls) {
    let executor = Scripted::new(CAPACITY);
    let controls = executor.controls();
    (Engine::start(Box::new(executor), config).unwrap(), controls)
}

#[test]
fn stopping_with_time_finishes_what_was_taken_and_takes_nothing_more() {
    let (handle, controls) = start(Config::default());
    controls.allow(1);
    let mut streams: Vec<_> = (0..5).map(|i| handle.submit(ask(10 + i, 20)).unwrap()).collect();
    controls.reached(1);
    let stopped = handle.stop(Duration::from_secs(3600));
    assert!(matches!(handle.submit(ask(3, 3)), Err(Refused::Stopping)));
    controls.run();
    stopped.wait();
    for (i, stream) in (0..).zip(&mut streams) {
        assert_eq!(drawn(&hear(stream)), script(10 + i, 20));
    }
    assert!(!handle.status().alive);
}

#[test]
fn stopping_without_time_fails_every_stream_once() {
    let (handle, controls) = start(Config { sequences: 2, ..Config::default() });
    controls.allow(3);
    let mut streams: Vec<_> = (0..5).map(|i| handle.submit(ask(10 + i, 100)).unwrap()).collect();
    controls.reached(3);
    let stopped = handle.stop(Duration::ZERO);
    controls.run();
    stopped.wait();
    for stream in &mut streams {
        let events = hear(stream);
        assert!(failure(&events).contains("stopping"));
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Failed { .. })).count(), 1);
    }
    let status = handle.status();
    assert_eq!((status.running, status.waiting, status.blocks_used), (0, 0, 0));
}

#[test]
fn an_engine_that_nobody_can_ask_any_more_finishes_what_it_has() {
    let (handle, controls) = start(Config::default());
    let idle = handle.clone();
    let mut tokens = handle.submit(ask(10, 50)).unwrap();
    drop((handle, idle));
    assert_eq!(drawn(&hear(&mut tokens)), script(10, 50));
    assert_eq!(controls.violations(), Vec::<String>::new());
}

#[test]
fn two_engines_of_one_device_take_turns_and_both_finish() {
    let arbiter = Arc::new(Arbiter::default());
    let config = || Config { arbiter: Some(arbiter.clone()), ..Config::default() };
    let ((one, _), (two, _)) = (start(config()), start(config()));
    let mut streams: Vec<_> =
        (0..6).map(|i| [&one, &two][i as usize % 2].submit(ask(10 + i, 90)).unwrap()).collect();
    for (i, stream) in (0..).zip(&mut streams) {
        assert_eq!(drawn(&hear(stream)), script(10 + i, 90));
    }
}

#[test]
fn a_step_beside_the_next_plan_gives_the_same_tokens() {
    let executor = Scripted::new(CAPACITY).overlapping();
    let controls = executor.controls();
    let handle = Engine::start(Box::new(executor), Config::default()).unwrap();
    let penalised = Sampling { presence_penalty: 1.0, ..Sampling::default() };
    let mut streams: Vec<_> = (0..8)
        .map(|i| handle.submit(Request { sampling: penalised.clone(), ..ask(10 + i, 90) }).unwrap())
        .collect();
    for (i, stream) in (0..).zip(&mut streams) {
        assert_eq!(drawn(&hear(stream)), script(10 + i, 90));
    }
    assert_eq!(controls.violations(), Vec::<String>::new());
}

#[test]
fn ten_thousand_submits_cancels_and_preemptions_lose_no_block() {
    let capacity = Capacity { blocks: 32, ..CAPACITY };
    let config = Config { queue_requests: 64, ..Config::default() };
    let (handle, mut engine, controls) = inline(capacity, config);
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut open, mut submitted) = (Vec::<Tokens>::new(), 0);
    while submitted < 10_000 {
        let request = Request {
            choices: 1 + random(3) as u32,
            salt: random(40),
            ..ask(1 + random(60) as u32, 1 + random(40) as u32)
        };
        match handle.submit(request) {
            Ok(tokens) => {
                submitted += 1;
                open.push(tokens);
            }
            Err(Refused::Full { .. }) => {}
            Err(refused) => panic!("{refused}"),
        }
        if open.len() > 12 {
            let _left = open.swap_remove(random(open.len() as u64) as usize);
        }
        for _ in 0..random(8) {
            engine.turn();
        }
    }
    drop(open);
    run(&mut engine);
    let status = handle.status();
    assert!(status.preemptions > 400, "{status:?}");
    assert_eq!((status.blocks_used, status.running, status.waiting, status.queued_tokens), (0, 0, 0, 0));
    assert_eq!(controls.violations(), Vec::<String>::new());
    let mut whole = handle.submit(Request { salt: 9, ..ask(100, 28) }).unwrap();
    run(&mut engine);
    assert_eq!(drawn(&hear(&mut whole)), script(100, 28));
}

#[test]
fn readers_on_many_threads_that_leave_at_random_end_with_all_blocks_back() {
    let (handle, controls) = start(Config::default());
    let readers: Vec<_> = (0..8u32)
        .map(|reader| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                for round in 0..30u32 {
                    let length = 1 + (reader * 31 + round * 17) % 60;
                    let Ok(mut tokens) = handle.submit(ask(length, 40)) else { continue };
                    let stay = (reader + round) % 3 > 0;
                    let heard: Vec<_> = std::iter::from_fn(|| tokens.next_blocking())
                        .take(if stay { usize::MAX } else { 7 })
                        .collect();
                    let expected = script(length, 40);
                    assert_eq!(drawn(&heard), expected[..if stay { 40 } else { drawn(&heard).len() }]);
                }
            })
        })
        .collect();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    handle.stop(Duration::from_secs(3600)).wait();
    let status = handle.status();
    assert_eq!((status.blocks_used, status.running, status.waiting), (0, 0, 0));
    assert_eq!(controls.violations(), Vec::<String>::new());
}
