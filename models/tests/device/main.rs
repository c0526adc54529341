//! The decoder on a device, with its kernels emulated on the CPU, against the decoder of the CPU: every family's geometry
//! of heads, mixed steps, captured and not.

#[path = "../decoding/golden.rs"]
#[allow(dead_code)] // what the other decoder is driven by
mod golden;
mod rig;

use golden::{Golden, argmax};
use rig::{Rig, Sequence, bits, checkpoint, relative};

/// A checkpoint of the golden data, and what of it is changed: query heads, heads of keys, size of a head. Width and
/// vocabulary stay small; what a head's kernels see is as large as in the real model.
const FAMILIES: [(&str, usize, usize, usize); 9] = [
    ("mistral-v0.3", 8, 2, 128),
    ("mistral-v0.1", 4, 1, 128),
    ("codestral-v0.1", 6, 1, 128),
    ("deepseek-coder-33b", 7, 1, 128),
    ("codellama-13b", 2, 2, 128),
    ("codegemma-2b", 8, 1, 256),
    ("codegemma-7b", 2, 2, 256),
    ("qwen2.5-coder-7b", 7, 1, 64),
    ("mixtral-8x7b-v0.1", 8, 2, 128),
];

/// The norm of an error over the norm of a row: queries, probabilities and what goes into products have 8 bits.
const HALF: f32 = 1e-2;

/// Two prompts in chunks, one of them after the other began to decode, and a third that is a single token.
fn schedule() -> Vec<Vec<(usize, usize)>> {
    vec![
        vec![(0, 19)],
        vec![(0, 30), (1, 7)],
        vec![(0, 1), (1, 33), (2, 1)],
        vec![(0, 1), (1, 1), (2, 1)],
        vec![(2, 1), (1, 1)],
        vec![(0, 1), (1, 1), (2, 17)],
    ]
}

fn sequences() -> Vec<Sequence> {
    (0..3).map(|of| Sequence::new((0..64).map(|i| ((3 + i * 7 + of * 31) % 300) as u32).collect())).collect()
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn a_device_gives_the_logits_of_the_processor_for_every_family() {
    for family in FAMILIES {
        let (_dir, checkpoint) = checkpoint(family);
        let (mut device, mut cpu) = (Rig::device(&checkpoint, false, true), Rig::cpu(&checkpoint));
        let (mut here, mut there) = (sequences(), sequences());
        let mut worst = 0f32;
        let (mut rows, mut strays) = (0, 0);
        for turns in schedule() {
            let wanted = cpu.step(&mut here, &turns);
            for (got, wanted) in device.step(&mut there, &turns).iter().zip(&wanted) {
                assert!(got.iter().all(|logit| logit.is_finite()), "{family:?} {turns:?}");
                let apart = relative(got, wanted);
                rows += 1;
                // Where a router's near tie falls the other way another expert speaks, for this row or one before it.
                if checkpoint.spec().experts.is_some() && apart > HALF {
                    assert!(apart < 5.0 * HALF, "{family:?} {turns:?}: {apart}");
                    strays += 1;
                } else {
                    worst = worst.max(apart);
                }
            }
        }
        println!("{:<20} {rows} rows, worst {worst:.1e}, {strays} after another expert", family.0);
        assert!(3 * strays <= rows, "{family:?}: {strays} of {rows} rows after another expert");
        assert!(worst < HALF, "{family:?}: {worst}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn captured_steps_give_the_bits_of_steps_that_are_enqueued() {
    for family in [FAMILIES[0], FAMILIES[5], FAMILIES[8]] {
        let (_dir, checkpoint) = checkpoint(family);
        let (mut captured, mut eager) =
            (Rig::device(&checkpoint, false, true), Rig::device(&checkpoint, false, false));
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
        let (mut batch, mut alone) =
            (Rig::device(&checkpoint, true, true), Rig::device(&checkpoint, true, true));
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
        let mut rig = Rig::device(&golden::open(name), false, true);
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
