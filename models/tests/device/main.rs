//! The decoder on a device, with its kernels emulated on the CPU, against the decoder of the CPU: every family's geometry
//! of heads, mixed steps, captured and not.

#[path = "../decoding/golden.rs"]
#[allow(dead_code)] // what the other decoder is driven by
mod golden;
mod rig;

use golden::{Golden, argmax};
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::paged::Span;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::device::{Decoder, Options};
use hearth_models::memory::Memory;
use hearth_models::step::Step;
use rig::{FAMILIES, HALF, Rig, Sequence, bits, checkpoint, compare, relative, schedule, sequences};

const MEMORY: usize = 1 << 30;

fn device(checkpoint: &Checkpoint, strict: bool, graphs: bool) -> Rig {
    Rig::device(&Emulated::open(Order::Shuffled, MEMORY), checkpoint, strict, graphs)
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn a_device_gives_the_logits_of_the_processor_for_every_family() {
    for family in FAMILIES {
        let (_dir, checkpoint) = checkpoint(family);
        let apart = compare(&mut device(&checkpoint, false, true), &mut Rig::cpu(&checkpoint));
        println!("{:<20} {apart}", family.0);
        assert!(apart.is_near(), "{family:?}: {apart}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn captured_steps_give_the_bits_of_steps_that_are_enqueued() {
    for family in [FAMILIES[0], FAMILIES[5], FAMILIES[8]] {
        let (_dir, checkpoint) = checkpoint(family);
        let (mut captured, mut eager) = (device(&checkpoint, false, true), device(&checkpoint, false, false));
        let (mut here, mut there) = (sequences(), sequences());
        // Enqueued the first time, captured the second, replayed the third.
        for _ in 0..3 {
            for turns in schedule() {
                assert_eq!(
                    captured.step(&mut here, &turns),
                    eager.step(&mut there, &turns),
                    "{family:?} {turns:?}"
                );
            }
            here.iter_mut().chain(&mut there).for_each(Sequence::begin_anew);
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_has_the_same_bits_beside_others_as_alone() {
    for family in [FAMILIES[0], FAMILIES[1], FAMILIES[6], FAMILIES[8]] {
        let (_dir, checkpoint) = checkpoint(family);
        let (mut batch, mut alone) = (device(&checkpoint, true, true), device(&checkpoint, true, true));
        let mut together = sequences();
        let mut apart = sequences();
        for turns in schedule() {
            let rows = batch.step(&mut together, &turns);
            for (turn, row) in turns.iter().zip(rows) {
                let alone = alone.step(&mut apart, &[*turn]);
                let apart = relative(&alone[0], &row);
                assert!(bits(&alone[0]) == bits(&row), "{family:?} {turns:?}: {turn:?} is {apart:.1e} off");
            }
        }
    }
}

/// The golden checkpoints whose heads are of a size that a device serves.
const GOLDEN: [&str; 2] = ["codegemma-2b", "mistral-small-2501"];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn a_device_gives_the_logits_and_tokens_of_the_reference() {
    for name in GOLDEN {
        let case = Golden::read(name).case("long");
        let mut rig = device(&golden::open(name), false, true);
        let mut sequence = Sequence::new(case.tokens.clone());
        let mut logits = Vec::new();
        // The prompt in chunks, the continuation token by token.
        while logits.len() < case.prompt {
            logits.extend(rig.score(&mut sequence, 37.min(case.prompt - logits.len())));
        }
        while sequence.left() > 0 {
            logits.extend(rig.score(&mut sequence, 1));
        }
        let mut worst = (0f32, 0f32);
        for (row, wanted) in case.rows.iter().zip(&case.logits) {
            let apart = logits[*row].iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            worst = (worst.0.max(relative(&logits[*row], wanted)), worst.1.max(apart));
        }
        // A choice may differ where the reference's own margin is below twice the error.
        let chosen = logits.iter().zip(&case.argmax).zip(&case.margin);
        let differing = chosen.clone().filter(|((logits, wanted), _)| argmax(logits) != **wanted);
        let unsure = differing.clone().filter(|(_, margin)| **margin <= 2.0 * worst.1).count();
        println!(
            "{name:<20} {} rows, worst {:.1e} ({:.1e} in a logit), {} of {} tokens equal, {unsure} near ties",
            case.rows.len(),
            worst.0,
            worst.1,
            logits.len() - differing.clone().count(),
            logits.len()
        );
        assert!(worst.0 < HALF, "{name}: {}", worst.0);
        assert_eq!(differing.count(), unsure, "{name}: the reference was sure of a token");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_step_that_names_what_the_cache_has_not_is_refused() {
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    let device = Emulated::open(Order::Shuffled, 1 << 30);
    let (free, _) = device.memory().unwrap();
    let options = Options { rows: 64, logits: 8, context: 64, blocks: 4, strict: false, graphs: true };
    let mut decoder = Decoder::load(&device, &checkpoint, &options, &mut |_| ()).unwrap();
    // What is taken is what the sum said, or less.
    let taken = (free - device.memory().unwrap().0) as u64;
    let sum = Memory::on_device(&checkpoint, &options).total();
    assert!(taken <= sum, "{taken} bytes were taken, {sum} were said");

    let span = Span { row: 0, rows: 1, table: 0, context: 1 };
    let step = |slot, block| Step {
        tokens: vec![1],
        positions: vec![0],
        slots: vec![slot],
        spans: vec![span],
        tables: vec![block],
        logits: vec![0],
    };
    assert!(decoder.forward(&step(63, 3)).is_ok());
    for (step, what) in [(step(64, 3), "slot 64"), (step(63, 4), "block 4")] {
        let refused = decoder.forward(&step).unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
    }
}
