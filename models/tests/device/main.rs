//! The decoder on a device, with its kernels emulated on the CPU, against the decoder of the CPU: every family's geometry
//! of heads, mixed steps, captured and not.

#[path = "../decoding/golden.rs"]
#[allow(dead_code)] // what the other decoder is driven by
mod golden;
#[path = "../decoding/meeting.rs"]
mod meeting;
mod rig;
mod sharding;

use golden::{Golden, argmax};
use hearth_kernels::cuda::driver::{Device, Driver};
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::cuda::weightonly::Format;
use hearth_kernels::paged::Span;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::device::{Decoder, KvType, Options};
use hearth_models::memory::Memory;
use hearth_models::step::Step;
use safetensors::Dtype;

use rig::{
    FAMILIES, FP8, HALF, OPTIONS, Rig, Sequence, bits, checkpoint, compare, relative, schedule, sequences,
};

const MEMORY: usize = 1 << 30;

fn sequence(length: usize, first: usize) -> Sequence {
    Sequence::new((0..length).map(|i| ((first + i * 7) % 300) as u32).collect())
}

fn device(checkpoint: &Checkpoint, strict: bool, graphs: bool) -> Rig {
    on_emulated(checkpoint, Options { strict, graphs, ..OPTIONS })
}

fn on_emulated(checkpoint: &Checkpoint, options: Options) -> Rig {
    Rig::on(&Emulated::open(Order::Shuffled, MEMORY), checkpoint, options)
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
fn a_long_prompt_takes_the_products_of_hopper_unless_bits_are_those_of_few_rows() {
    const LONG: usize = 70;
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    let prompt = || [sequence(LONG, 3)];
    let mut processor = Rig::cpu(&checkpoint);
    let mut there = prompt();
    processor.step(&mut there, &[(0, 64)]);
    let wanted = processor.step(&mut there, &[(0, LONG - 64)]);
    let on_device = |strict| {
        let mut rig = on_emulated(&checkpoint, Options { rows: 128, strict, ..OPTIONS });
        let Rig::Device(decoder) = &rig else { panic!("no device") };
        assert_eq!((decoder.is_on_hopper(), decoder.set_aside()), (!strict, None));
        rig.step(&mut prompt(), &[(0, LONG)]).remove(0)
    };
    let (hopper, strict) = (on_device(false), on_device(true));
    for (name, row) in [("hopper", &hopper), ("strict", &strict)] {
        let apart = relative(row, &wanted[0]);
        assert!(apart < HALF, "{name}: {apart:.1e}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn a_long_prompt_of_a_mixture_takes_the_products_of_hopper_and_its_bits_do_not_depend_on_the_rest_of_the_step()
 {
    const LONG: usize = 140;
    // Half of the experts a row, so that they have more than 64 rows of a step of 140, and outputs enough that every
    // product of many rows is of one class whatever the bucket.
    let values = [("num_experts_per_tok", 4), ("hidden_size", 192), ("num_hidden_layers", 1)];
    let values = values.map(|(key, value)| (key, value.into()));
    let (_dir, checkpoint) = rig::altered((FAMILIES[8].0, 2, 1, 128), &values);
    let mut processor = Rig::cpu(&checkpoint);
    let mut prompt = sequence(LONG, 3);
    let chunks = [64, 64, LONG - 128];
    let wanted: Vec<_> = chunks.into_iter().flat_map(|rows| processor.score(&mut prompt, rows)).collect();

    let emulated = Emulated::new(Order::Shuffled, MEMORY);
    let device: Device = emulated.clone();
    let options = Options { rows: 2 * LONG, logits: LONG, graphs: false, ..OPTIONS };
    let mut rig = Rig::on(&device, &checkpoint, options);
    let Rig::Device(decoder) = &rig else { panic!("no device") };
    assert_eq!((decoder.is_on_hopper(), decoder.set_aside()), (true, None));
    let launches = || {
        let of = |ending| {
            let name = |columns| format!("expert_product_hopper_{columns}_{ending}");
            emulated.launches(&name(128)) + emulated.launches(&name(256))
        };
        ["silu", "set"].map(of)
    };
    // Those of the check at the start.
    let before = launches();
    let mut both = [sequence(LONG, 3), sequence(LONG, 31)];
    let got = rig.score(&mut both[0], LONG);
    assert_eq!(launches(), before.map(|launches| launches + 1));
    let mut apart = rig::Apart::default();
    got.iter().zip(&wanted).for_each(|(got, wanted)| apart.add(got, wanted, true));
    println!("{apart}");
    assert!(apart.is_near(), "{apart}");

    // In the same bucket behind other rows, and in a larger one before them.
    for (turns, at) in [([(1, 90), (0, LONG)], 1), ([(0, LONG), (1, LONG)], 0)] {
        both.iter_mut().for_each(Sequence::begin_anew);
        let again = &rig.step(&mut both, &turns)[at];
        let alone = &got[LONG - 1];
        assert!(bits(again) == bits(alone), "{turns:?}: {:.1e} off", relative(again, alone));
    }
    assert_eq!(launches(), before.map(|launches| launches + 3));
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
fn launches_begin_early_unless_that_changes_a_bit() {
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    // How many chained launches before one comes to nothing: the first of them, one of a later step, one that is captured.
    for lost in [None, Some(0), Some(28), Some(150)] {
        let device = Emulated::new(Order::Ascending, MEMORY);
        device.chain(true);
        if let Some(count) = lost {
            device.lose(count);
        }
        let driver: Device = device.clone();
        let Rig::Device(decoder) = Rig::on(&driver, &checkpoint, OPTIONS) else { panic!("no device") };
        assert_eq!(
            (decoder.unchained().is_some(), device.chains()),
            (lost.is_some(), lost.is_none()),
            "{lost:?}"
        );
        let said = decoder.unchained().map(|differs| differs.to_string()).unwrap_or_default();
        assert_eq!(said.contains("are not used: decoding is slower"), lost.is_some(), "{said}");
        if let Some(differs) = decoder.unchained() {
            assert_eq!(said.contains("captured"), lost == Some(150), "{differs}");
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

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn packed_weights_give_the_logits_of_weights_that_were_widened_beforehand() {
    // Gates bent by GELU, and biases. A width of 64, 128 or 144 that is no whole block stays as it is.
    let more = [
        (FAMILIES[5], Format::Int8),
        (FAMILIES[7], Format::Int4),
        (FAMILIES[5], Format::Q8_0),
        (FAMILIES[7], Format::Q8_0),
    ];
    for (family, format) in Format::ALL.map(|format| (FAMILIES[0], format)).into_iter().chain(more) {
        gives_the_logits_of_widened(family.0, format, checkpoint(family));
    }
    for format in [Format::Q6K, Format::Q4K] {
        gives_the_logits_of_widened("all of it", format, rig::wide());
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn packed_experts_give_the_logits_of_experts_that_were_widened_beforehand() {
    let narrow = [Format::Int8, Format::E4m3, Format::Int4, Format::Q8_0];
    for format in narrow {
        gives_the_logits_of_widened(FAMILIES[8].0, format, checkpoint(FAMILIES[8]));
    }
    for format in [Format::Q6K, Format::Q4K] {
        gives_the_logits_of_widened("all of it", format, rig::of_widths(FAMILIES[8], 256, 512));
    }
    // Gate and up divide into blocks and are packed, down stays as it is.
    gives_the_logits_of_widened("half of it", Format::Q4K, rig::of_widths(FAMILIES[8], 256, 384));
}

#[allow(clippy::print_stdout)] // the errors are worth knowing
fn gives_the_logits_of_widened(
    family: &str,
    format: Format,
    (dir, checkpoint): (tempfile::TempDir, Checkpoint),
) {
    let (_other, widened) = rig::widened(&checkpoint, dir.path(), format);
    // Few rows multiply with exact numbers times their scale, the widened weight has them rounded.
    let mut packed = on_emulated(&checkpoint, Options { quantize: Some(format), ..OPTIONS });
    let mut wide = device(&widened, false, true);
    let apart = compare(&mut packed, &mut wide);
    println!("{family:<20} {} {apart}", format.name());
    assert!(apart.is_near(), "{family:?} {format:?}: {apart}");
    // Where all rows take the tensor cores, it is the same product.
    let mut packed = on_emulated(&checkpoint, Options { quantize: Some(format), strict: true, ..OPTIONS });
    let mut wide = device(&widened, true, true);
    let (mut here, mut there) = (sequences(), sequences());
    for turns in schedule() {
        let (got, wanted) = (packed.step(&mut here, &turns), wide.step(&mut there, &turns));
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!(bits(got) == bits(wanted), "{family:?} {format:?} {turns:?}");
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn packed_weights_lose_what_their_format_loses() {
    let (_dir, checkpoint) = rig::wide();
    let bounds = [0.03, 0.1, 0.25, 0.03, 0.05, 0.2];
    for (format, bound) in Format::ALL.into_iter().zip(bounds) {
        let mut packed = on_emulated(&checkpoint, Options { quantize: Some(format), ..OPTIONS });
        let apart = compare(&mut packed, &mut Rig::cpu(&checkpoint));
        println!("{} {apart}", format.title());
        assert!(apart.worst > 0.0 && apart.worst < bound, "{format:?}: {apart}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_with_packed_weights_has_the_same_bits_beside_others_as_alone() {
    let mixture = [(FAMILIES[8], Format::E4m3), (FAMILIES[8], Format::Int4)];
    for (family, format) in Format::ALL.map(|format| (FAMILIES[0], format)).into_iter().chain(mixture) {
        let (_dir, checkpoint) = checkpoint(family);
        let options = Options { quantize: Some(format), strict: true, ..OPTIONS };
        let open = || on_emulated(&checkpoint, options.clone());
        let (mut batch, mut alone) = (open(), open());
        let (mut together, mut apart) = (sequences(), sequences());
        for turns in schedule() {
            let rows = batch.step(&mut together, &turns);
            for (turn, row) in turns.iter().zip(rows) {
                let alone = alone.step(&mut apart, &[*turn]);
                assert!(bits(&alone[0]) == bits(&row), "{family:?} {format:?} {turns:?}: {turn:?}");
            }
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn packed_experts_give_a_row_the_same_bits_beside_seven_others_as_alone() {
    let (_dir, mixture) = checkpoint(FAMILIES[8]);
    for format in Format::ALL {
        let open = || on_emulated(&mixture, Options { quantize: Some(format), ..OPTIONS });
        let (mut batch, mut alone) = (open(), open());
        let (mut together, mut apart) = (sequences(), sequences());
        for turns in
            [&[(0, 5), (1, 3)][..], &[(0, 1), (1, 1)], &[(1, 1), (0, 1), (2, 6)], &[(2, 1), (1, 1), (0, 1)]]
        {
            let rows = batch.step(&mut together, turns);
            for (turn, row) in turns.iter().zip(rows) {
                let alone = alone.step(&mut apart, &[*turn]);
                assert!(bits(&alone[0]) == bits(&row), "{format:?} {turns:?}: {turn:?}");
            }
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn keys_and_values_in_fp8_give_nearly_the_logits_of_the_processor() {
    // Groups of queries, a window, heads of 256, and a bias on the keys.
    for family in [FAMILIES[0], FAMILIES[1], FAMILIES[5], ("qwen2.5-coder-7b", 7, 1, 128)] {
        let (_dir, checkpoint) = checkpoint(family);
        let mut reference = Rig::cpu(&checkpoint);
        let mut rig = on_emulated(&checkpoint, Options { kv: KvType::Fp8, ..OPTIONS });
        let (mut here, mut there) = (sequences(), sequences());
        let mut worst = 0f32;
        for turns in schedule() {
            let wanted = reference.step(&mut here, &turns);
            for (got, wanted) in rig.step(&mut there, &turns).iter().zip(&wanted) {
                let apart = relative(got, wanted);
                worst = if apart.is_finite() { worst.max(apart) } else { f32::INFINITY };
            }
        }
        println!("{:<20} worst {worst:.1e}", family.0);
        assert!(worst < FP8, "{family:?}: {worst}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_over_pages_of_fp8_has_the_same_bits_beside_others_as_alone() {
    let (_dir, dense) = checkpoint(FAMILIES[1]);
    let options = Options { kv: KvType::Fp8, strict: true, ..OPTIONS };
    let (mut batch, mut alone) = (on_emulated(&dense, options.clone()), on_emulated(&dense, options.clone()));
    let (mut together, mut apart) = (sequences(), sequences());
    for turns in schedule() {
        let rows = batch.step(&mut together, &turns);
        for (turn, row) in turns.iter().zip(rows) {
            assert!(bits(&alone.step(&mut apart, &[*turn])[0]) == bits(&row), "{turns:?}: {turn:?}");
        }
    }
    // Half the bytes a block, and heads that have no kernels are refused by name.
    let half = Memory::on_device(&dense, &options).block_bytes;
    assert_eq!(2 * half, Memory::on_device(&dense, &OPTIONS).block_bytes);
    let (_dir, small) = checkpoint(FAMILIES[7]);
    let refused = Decoder::load(&Emulated::open(Order::Shuffled, MEMORY), &small, &options, &mut |_| ());
    let refused = refused.err().expect("heads of 64 were served").to_string();
    assert!(refused.contains("fp8") && refused.contains("64 numbers"), "{refused}");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn checkpoints_of_f16_and_f32_are_those_of_bf16_that_they_round_to() {
    // Gate and up by turns, biases, experts.
    for (family, dtype) in [(FAMILIES[0], Dtype::F16), (FAMILIES[7], Dtype::F32), (FAMILIES[8], Dtype::F16)] {
        let (dir, checkpoint) = checkpoint(family);
        let [(_one, fine), (_other, rounded)] = rig::stored(&checkpoint, dir.path(), dtype);
        let (mut fine, mut rounded) = (device(&fine, true, true), device(&rounded, true, true));
        let (mut here, mut there) = (sequences(), sequences());
        for turns in &schedule()[..3] {
            let (got, wanted) = (fine.step(&mut here, turns), rounded.step(&mut there, turns));
            assert!(
                got.iter().zip(&wanted).all(|(a, b)| bits(a) == bits(b)),
                "{family:?} {dtype:?} {turns:?}"
            );
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn what_weights_take_is_what_was_said_packed_or_not_random_or_not() {
    let device = Emulated::open(Order::Shuffled, MEMORY);
    for family in [FAMILIES[0], FAMILIES[8]] {
        let (_dir, checkpoint) = checkpoint(family);
        for quantize in [None].into_iter().chain(Format::ALL.map(Some)) {
            let options = Options { quantize, context: 64, blocks: 4, ..OPTIONS };
            let sum = Memory::on_device(&checkpoint, &options).weight_bytes();
            let decoder = Decoder::load(&device, &checkpoint, &options, &mut |_| ()).unwrap();
            assert_eq!(sum, decoder.weight_bytes(), "{family:?} {quantize:?}");
            let random = Decoder::random(&device, checkpoint.spec(), &options).unwrap();
            assert_eq!(sum, random.weight_bytes(), "{family:?} {quantize:?} at random");
        }
    }
}

/// The golden checkpoints whose heads are of a size that a device serves.
const GOLDEN: [&str; 2] = ["codegemma-2b", "mistral-small-2501"];

/// How they are computed, and the norm of the error over that of the reference: that of the format, through all layers.
fn ways() -> Vec<(&'static str, Options, f32)> {
    let packed = |format| Options { quantize: Some(format), ..OPTIONS };
    vec![
        (GOLDEN[0], OPTIONS, HALF),
        (GOLDEN[1], OPTIONS, HALF),
        (GOLDEN[1], packed(Format::Int8), 0.03),
        (GOLDEN[1], packed(Format::E4m3), 0.1),
        (GOLDEN[1], packed(Format::Int4), 0.25),
        (GOLDEN[1], packed(Format::Q8_0), 0.03),
    ]
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn a_device_gives_the_logits_and_tokens_of_the_reference() {
    for (name, options, bound) in ways() {
        let case = Golden::read(name).case("long");
        let format = options.quantize.map_or("bf16", Format::title);
        let mut rig = on_emulated(&golden::open(name), options);
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
            "{name:<20} {format} {} rows, worst {:.1e} ({:.1e} in a logit), {} of {} tokens equal, {unsure} near ties",
            case.rows.len(),
            worst.0,
            worst.1,
            logits.len() - differing.clone().count(),
            logits.len()
        );
        assert!(worst.0 < bound, "{name} {format}: {}", worst.0);
        assert_eq!(differing.count(), unsure, "{name}: the reference was sure of a token");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_step_that_names_what_the_cache_has_not_is_refused() {
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    let device = Emulated::open(Order::Shuffled, 1 << 30);
    let (free, _) = device.memory().unwrap();
    let options = Options { logits: 8, context: 64, blocks: 4, ..OPTIONS };
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
