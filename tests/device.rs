//! The engine on a device, its kernels emulated: steps overlap, tokens stay on the device for the next step, and what a
//! request gets does not depend on who else is there.

use std::path::Path;
use std::sync::Arc;

use hearth::engine::device::OnDevice;
use hearth::engine::handle::{Config, Engine, Tokens};
use hearth::engine::local::Local;
use hearth::engine::request::{Event, Request, Sampling};
use hearth::engine::room::{Room, RoomError, Wanted};
use hearth_kernels::Context;
use hearth_kernels::cuda::driver::{Device, Driver};
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_models::checkpoint::Checkpoint;
use hearth_models::memory::Memory;
use hearth_models::{decoder, device};

const BLOCKS: usize = 64;
const ROWS: usize = 64;

fn checkpoint() -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/checkpoints/mistral-small-2501");
    Checkpoint::open(&folder).unwrap_or_else(|error| panic!("{error}"))
}

fn on_device(blocks: usize) -> Box<OnDevice> {
    let emulated = Emulated::open(Order::Shuffled, 1 << 30);
    let options = device::Options {
        quantize: None,
        kv: device::KvType::Bf16,
        rows: ROWS,
        logits: 32,
        context: 120,
        blocks,
        strict: true,
        graphs: true,
    };
    let decoder = device::Decoder::load(&emulated, &checkpoint(), &options, &mut |_| ());
    let decoder = decoder.unwrap_or_else(|error| panic!("{error}"));
    Box::new(OnDevice::new(&emulated, decoder).unwrap_or_else(|error| panic!("{error}")))
}

fn on_cpu() -> Box<Local> {
    let ctx = Context::cpu(None).unwrap();
    let options =
        decoder::Options { quantize: None, rows: ROWS, logits: 16, context: 120, blocks: BLOCKS, kv: None };
    let decoder = decoder::Decoder::load(&ctx, &checkpoint(), &options, &mut |_| ());
    Box::new(Local::new(&ctx, decoder.unwrap_or_else(|error| panic!("{error}"))))
}

/// One of eight requests: short and long, greedy and seeded, with penalties, biases, alternatives and two choices.
fn request(i: u32) -> Request {
    let prompt: Vec<u32> = (0..2 + i * 5).map(|p| 3 + (p * 7 + i * 31) % 300).collect();
    let sampling = match i % 4 {
        0 => Sampling::default(),
        1 => Sampling { temperature: 1.0, seed: i.into(), logprobs: Some(3), ..Sampling::default() },
        2 => Sampling {
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            logprobs: Some(0),
            ..Sampling::default()
        },
        _ => Sampling {
            temperature: 0.7,
            top_p: 0.9,
            top_k: 50,
            logit_bias: vec![(5, 2.0), (17, -3.0)],
            seed: i.into(),
            ..Sampling::default()
        },
    };
    Request { choices: 1 + u32::from(i == 3), sampling, max_tokens: 12, ..Request::new(prompt) }
}

fn hear(stream: &mut Tokens) -> Vec<Event> {
    let mut events: Vec<Event> = std::iter::from_fn(|| stream.next_blocking()).collect();
    for event in &mut events {
        match event {
            Event::Prompt { cached, .. } => *cached = 0,
            Event::Failed { error } => panic!("{error}"),
            _ => {}
        }
    }
    events.sort_by_key(|event| match event {
        Event::Token { choice, .. } | Event::Finished { choice, .. } => choice + 1,
        _ => 0,
    });
    events
}

fn tokens(events: &[Event]) -> Vec<u32> {
    let token = |event: &Event| match event {
        Event::Token { token, .. } => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn config() -> Config {
    Config { chunk: Some(ROWS as u32), prefix_cache: false, ..Config::default() }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn requests_get_on_a_device_what_they_get_on_the_processor() {
    let (handle, mut engine) = Engine::inline(on_device(BLOCKS), config());
    let alone: Vec<Vec<Event>> = (0..8)
        .map(|i| {
            let mut stream = handle.submit(request(i)).unwrap();
            while engine.turn() {}
            hear(&mut stream)
        })
        .collect();
    let mut streams: Vec<Tokens> = (0..8).map(|i| handle.submit(request(i)).unwrap()).collect();
    while engine.turn() {}
    for (i, (stream, alone)) in streams.iter_mut().zip(&alone).enumerate() {
        assert_eq!(&hear(stream), alone, "request {i} beside others and alone");
    }

    // The best token there is the best here, unless two are as near as the rounding of activations.
    let (handle, mut engine) = Engine::inline(on_cpu(), config());
    for i in [0, 4] {
        let mut asked = request(i);
        asked.sampling.logprobs = Some(3);
        let mut stream = handle.submit(asked).unwrap();
        while engine.turn() {}
        let there = hear(&mut stream);
        let drawn = there.iter().filter_map(|event| match event {
            Event::Token { token, logprobs, .. } => Some((*token, logprobs.clone().unwrap())),
            _ => None,
        });
        let Some(((token, best), here)) = drawn.zip(tokens(&alone[i as usize])).find(|((t, _), h)| t != h)
        else {
            continue;
        };
        let other = best.top.iter().find(|(token, _)| *token == here);
        let margin = best.logprob - other.map_or(f32::NEG_INFINITY, |(_, logprob)| *logprob);
        assert!(margin < 0.1, "request {i}: {token} on the processor, {here} on the device, {margin} apart");
    }
}

/// One of six requests: prompts of whole blocks, of one token more or fewer, and one that goes on where the first was
/// answered.
fn edge(i: u32, answered: &[u32]) -> Request {
    let prompt = |length: u32| (0..length).map(|p| 3 + (p * 7) % 300).collect::<Vec<u32>>();
    let prompt = match i {
        5 => [&prompt(1)[..], answered].concat(),
        i => prompt([1, 16, 17, 31, 33][i as usize]),
    };
    Request { max_tokens: 20, sampling: request(i).sampling, ..Request::new(prompt) }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_strict_device_says_the_same_alone_in_a_batch_in_chunks_from_the_cache_and_preempted() {
    let run = |blocks, config: Config, asked: Vec<Request>, together: bool| {
        let (handle, mut engine) = Engine::inline(on_device(blocks), config);
        let mut streams = Vec::new();
        for request in asked {
            streams.push(handle.submit(request).unwrap());
            while !together && engine.turn() {}
        }
        while engine.turn() {}
        (streams.iter_mut().map(hear).collect::<Vec<_>>(), handle.status().preemptions)
    };
    let config = |chunk, prefix_cache| Config { chunk: Some(chunk), prefix_cache, ..Config::default() };
    let (first, _) = run(BLOCKS, config(64, false), vec![edge(0, &[])], false);
    let answered = tokens(&first[0]);
    let all = || (0..6).map(|i| edge(i, &answered)).collect::<Vec<_>>();

    let (alone, _) = run(BLOCKS, config(64, false), all(), false);
    assert_eq!(alone[0], first[0]);
    for (what, (heard, preemptions), preempts) in [
        ("in a batch, in chunks", run(BLOCKS, config(16, false), all(), true), false),
        ("from the cache", run(BLOCKS, config(48, true), all(), false), false),
        ("preempted", run(8, config(32, true), all(), true), true),
    ] {
        for (i, (heard, alone)) in heard.iter().zip(&alone).enumerate() {
            assert_eq!(heard, alone, "request {i} {what}");
        }
        assert_eq!(preemptions > 0, preempts, "{what}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_device_short_of_blocks_preempts_and_loses_nothing() {
    let (handle, mut engine) = Engine::inline(on_device(9), Config { prefix_cache: true, ..config() });
    let long = |i| Request { max_tokens: 50, ..request(i) };
    let mut streams: Vec<Tokens> = (0..8).map(|i| handle.submit(long(i)).unwrap()).collect();
    drop(streams.remove(2));
    while engine.turn() {}
    for stream in &mut streams {
        let events = hear(stream);
        let finished = events.iter().filter(|event| matches!(event, Event::Finished { .. })).count();
        assert_eq!(tokens(&events).len(), 50 * finished);
    }
    let status = handle.status();
    assert!(status.preemptions > 0, "{status:?}");
    assert_eq!(status.blocks_used, 0, "{status:?}");
}

/// A device of so much memory, with room made on it for keys and values.
fn roomy(memory: usize, wanted: Wanted) -> (Arc<Emulated>, Result<(OnDevice, Room), RoomError>) {
    let emulated = Emulated::new(Order::Shuffled, memory);
    let device: Device = emulated.clone();
    let options = device::Options {
        quantize: None,
        kv: device::KvType::Bf16,
        rows: 32,
        logits: 20,
        context: 64,
        blocks: 24,
        strict: true,
        graphs: true,
    };
    let checkpoint = checkpoint();
    let said = Memory::on_device(&checkpoint, &options);
    let load =
        |options: &_| device::Decoder::load(&device, &checkpoint, options, &mut |_| ()).map_err(Box::new);
    let made = Room::make(&device, &options, wanted, &said, load);
    (emulated, made)
}

/// Requests that come and go while steps are made; what those that stayed were told.
fn throng(executor: OnDevice, at_every_turn: &mut dyn FnMut()) -> (Vec<Vec<Event>>, u64) {
    let (handle, mut engine) = Engine::inline(Box::new(executor), Config { chunk: Some(24), ..config() });
    let mut state = 7u32;
    let mut draw = |below: u32| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 16) % below
    };
    let mut streams = Vec::new();
    for i in 0..14 {
        let asked = request(i % 8);
        let prompt: Vec<u32> = asked.prompt.iter().copied().take(1 + draw(40) as usize).collect();
        let max_tokens = (20 + draw(24)).min(64 - prompt.len() as u32);
        let asked = Request { max_tokens, prompt: prompt.into(), ..asked };
        streams.push(handle.submit(asked).unwrap());
        for _ in 0..draw(3) {
            engine.turn();
            at_every_turn();
        }
        if i % 5 == 4 {
            drop(streams.remove(draw(streams.len() as u32) as usize));
        }
    }
    while engine.turn() {
        at_every_turn();
    }
    (streams.iter_mut().map(hear).collect(), handle.status().preemptions)
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the sum is worth seeing
fn keys_and_values_get_what_the_largest_steps_leave_and_serving_takes_no_memory() {
    const MEMORY: usize = 1 << 30;
    let any = Wanted { least: 4, most: 24, share: u64::MAX };
    let (_device, made) = roomy(MEMORY, any);
    let (ample, room) = made.unwrap();
    assert_eq!(room.blocks, 24, "as many as were asked for: {room:?}");
    assert_eq!(room.captured, 6, "steps of 1, 2, 4, 8, 16 and 32 rows");
    let (one, taken) = (room.block_bytes as usize, MEMORY - (room.left + room.kv_bytes()) as usize);
    assert_eq!(taken as u64, room.weights + room.buffers + room.driver, "the sum is all there is: {room:?}");
    assert!(room.driver > 0, "kernels and captured steps take memory, too");
    let (wanted, _) = throng(ample, &mut || ());

    // Room for nine blocks, with what is left to the driver.
    let nine = taken + 9 * one * 32 / 31 + one / 2;
    let (device, made) = roomy(nine, any);
    let (small, room) = made.unwrap();
    assert_eq!(room.blocks, 9, "{room:?}");
    let (before, free) = (device.allocations(), device.memory().unwrap().0);
    let mut turns = 0;
    let (heard, preemptions) = throng(small, &mut || {
        turns += 1;
        assert_eq!(device.allocations(), before, "memory was taken in turn {turns}");
    });
    assert!(preemptions > 0, "nine blocks are too few for all");
    assert_eq!(heard, wanted, "what pages a device has changes no answer");
    println!("{turns} turns, {preemptions} preemptions, {free} bytes free of {nine}");

    // A share smaller than the device.
    let (_, made) = roomy(MEMORY, Wanted { share: (taken + 5 * one) as u64, ..any });
    assert_eq!(made.unwrap().1.blocks, 5);
    // Asked for by name: exactly so many, or a refusal with the sum.
    let asked = Wanted { least: 9, most: 9, share: u64::MAX };
    assert_eq!(roomy(nine, asked).1.unwrap().1.blocks, 9);
    let (_, refused) = roomy(taken + 6 * one, asked);
    let refused = refused.err().expect("nine blocks in the room of six").to_string();
    println!("{refused}");
    for part in
        ["for 144 tokens", "measured", "said", "6 captured steps", "keys and values of 144 tokens", "`kv`"]
    {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}
