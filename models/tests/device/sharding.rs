//! A model cut into parts for several ranks, each on a device of its own: together they say what one device says alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::{Device, DeviceError};
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::cuda::weightonly::Format;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::device::{Decoder, KvType, Options, Peers};
use hearth_models::shard::Shard;

use super::MEMORY;
use super::meeting::{Member, together};
use super::rig::{
    FAMILIES, OPTIONS, Rig, Sequence, altered, bits, checkpoint, relative, schedule, sequences,
};

/// The norm of the difference over that of the logits: sums in another order, and what of them is rounded to 8 bits the
/// other way.
const REORDERED: f32 = 5e-3;

/// Sums by way of the host.
struct OverHost(Member);

impl Peers for OverHost {
    fn sum(&self, _: &Device, numbers: &Buffer<f32>) -> Result<(), DeviceError> {
        let mut all = numbers.get()?;
        self.0.sum(&mut all);
        numbers.part(0, numbers.len()).put(0, &all)
    }

    fn can_be_captured(&self) -> bool {
        false
    }
}

/// Nobody: what is summed is what the rank itself has. Counts how often it is asked.
struct Nobody {
    asked: Arc<AtomicUsize>,
    can_be_captured: bool,
}

impl Peers for Nobody {
    fn sum(&self, _: &Device, _: &Buffer<f32>) -> Result<(), DeviceError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn can_be_captured(&self) -> bool {
        self.can_be_captured
    }
}

fn device() -> Device {
    Emulated::open(Order::Shuffled, MEMORY)
}

/// A rank that has nobody to sum with, or why there is none.
fn lone(
    device: &Device,
    checkpoint: &Checkpoint,
    options: &Options,
    shard: Shard,
    progress: &mut dyn FnMut(u64),
) -> Result<Decoder, String> {
    let peers = Nobody { asked: Arc::default(), can_be_captured: true };
    let peers = (!shard.is_whole()).then(|| Box::new(peers) as Box<dyn Peers>);
    Decoder::load_shard(device, checkpoint, options, shard, peers, progress).map_err(|why| why.to_string())
}

/// All rows of the schedule that give logits, by as many ranks as there are.
fn logits(checkpoint: &Checkpoint, options: &Options, of: usize) -> Vec<Vec<f32>> {
    let run = |mut rig: Rig| -> Vec<Vec<f32>> {
        let mut sequences = sequences();
        schedule().iter().flat_map(|turns| rig.step(&mut sequences, turns)).collect()
    };
    if of == 1 {
        return run(Rig::on(&device(), checkpoint, options.clone()));
    }
    let parts = together(of, |rank, member| {
        let (shard, peers) = (Shard { rank, of }, Box::new(OverHost(member)));
        let decoder = Decoder::load_shard(&device(), checkpoint, options, shard, Some(peers), &mut |_| ());
        run(Rig::Device(Box::new(decoder.unwrap_or_else(|error| panic!("{error}")))))
    });
    (0..parts[0].len()).map(|row| parts.iter().flat_map(|part| part[row].clone()).collect()).collect()
}

fn farthest(got: &[Vec<f32>], wanted: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let rows = got.iter().zip(wanted).map(|(got, wanted)| {
        assert_eq!(got.len(), wanted.len(), "logits of the whole vocabulary");
        relative(got, wanted)
    });
    rows.fold(0.0, |worst, row| if row.is_nan() { f32::INFINITY } else { worst.max(row) })
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn ranks_on_devices_together_say_what_one_says_alone() {
    let all_biases = [("attention_bias", true.into()), ("mlp_bias", true.into())];
    let wide = [("intermediate_size", 256.into())];
    let packed = |format| Options { quantize: Some(format), ..OPTIONS };
    let small = Options { kv: KvType::Fp8, ..OPTIONS };
    let qwen = ("qwen2.5-coder-7b", 4, 2, 64);
    let cases = [
        // Four ranks share two heads of keys.
        (FAMILIES[0], &[][..], OPTIONS, &[2, 4][..]),
        // One head of keys for all, and a head that is the embedding.
        (FAMILIES[5], &[], OPTIONS, &[2]),
        // Biases of what is cut by rows; and of what is summed, where they are added once.
        (qwen, &[], OPTIONS, &[2]),
        (FAMILIES[4], &all_biases, OPTIONS, &[2]),
        // Experts one by one and grouped.
        (FAMILIES[8], &[("intermediate_size", 64.into())], OPTIONS, &[4]),
        (FAMILIES[0], &wide, packed(Format::Int8), &[2]),
        (FAMILIES[0], &[], packed(Format::Int4), &[4]),
        (FAMILIES[0], &[], small, &[2]),
    ];
    for (family, values, options, ranks) in cases {
        let (_dir, checkpoint) = altered(family, values);
        let alone = logits(&checkpoint, &options, 1);
        for of in ranks {
            let apart = farthest(&logits(&checkpoint, &options, *of), &alone);
            let format = options.quantize.map_or("bf16", Format::title);
            println!("{:<20} {format:<5} {of} ranks, {} rows, worst {apart:.1e}", family.0, alone.len());
            assert!(apart < REORDERED, "{family:?} {options:?}, {of} ranks: {apart}");
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn scales_of_whole_rows_are_those_of_a_ranks_part_and_no_farther_off() {
    // fp8: a part of a row has a scale of its own.
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    let wide = logits(&checkpoint, &OPTIONS, 1);
    let options = Options { quantize: Some(Format::E4m3), ..OPTIONS };
    let [alone, two] = [1, 2].map(|of| farthest(&logits(&checkpoint, &options, of), &wide));
    println!("fp8 against bf16: alone {alone:.1e}, 2 ranks {two:.1e}");
    assert!(alone > 0.0 && two < 1.5 * alone, "{two} where one alone is {alone} off");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_rank_holds_its_share_of_weights_and_pages_and_reads_no_more() {
    const OF: usize = 2;
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    let spec = checkpoint.spec();
    // What every rank holds: the embedding and the norms, these twice as wide as in the checkpoint.
    let embedding = 2 * spec.vocab * spec.hidden;
    let norms = (2 * spec.layers + 1) * spec.hidden;
    let whole = lone(&device(), &checkpoint, &OPTIONS, Shard::WHOLE, &mut |_| ()).unwrap();
    let cut = whole.weight_bytes() as usize - embedding - 4 * norms;
    for rank in 0..OF {
        let mut read = 0;
        let progress = &mut |bytes| read = bytes as usize;
        let decoder = lone(&device(), &checkpoint, &OPTIONS, Shard { rank, of: OF }, progress).unwrap();
        assert_eq!(decoder.weight_bytes() as usize, embedding + 4 * norms + cut / OF);
        assert_eq!(read, embedding + 2 * norms + cut / OF, "rank {rank}");
        assert_eq!((decoder.spec().heads, decoder.spec().kv_heads), (spec.heads / OF, spec.kv_heads / OF));
    }
    // What one block more takes.
    let taken = |blocks: usize, shard| {
        let device = device();
        let (free, _) = device.memory().unwrap();
        let options = Options { blocks, ..OPTIONS };
        let _decoder = lone(&device, &checkpoint, &options, shard, &mut |_| ()).unwrap();
        free - device.memory().unwrap().0
    };
    let block = |shard| taken(9, shard) - taken(8, shard);
    let bytes = spec.layers * 2 * 16 * spec.kv_heads * spec.head_dim * 2;
    assert_eq!(block(Shard::WHOLE), bytes);
    assert_eq!(block(Shard { rank: 1, of: OF }), bytes / OF);
    // Four ranks with two heads of keys hold one each.
    assert_eq!(block(Shard { rank: 1, of: 4 }), bytes / 2);
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn what_does_not_come_apart_for_a_device_is_refused_by_name() {
    let packed = |format| Options { quantize: Some(format), ..OPTIONS };
    for (family, values, options, of, wanted) in [
        (FAMILIES[2], &[][..], OPTIONS, 4, "heads of queries: 6 cannot be split over 4 ranks"),
        (FAMILIES[8], &[], OPTIONS, 4, "width of the MLP: 48 cannot be split over 4 ranks as bf16, whose"),
        (
            FAMILIES[0],
            &[],
            packed(Format::Int8),
            4,
            "MLP: 128 cannot be split over 4 ranks as int8, whose blocks are 128",
        ),
        (("qwen2.5-coder-7b", 8, 2, 64), &[], packed(Format::Int8), 8, "the width of the heads: 512"),
        (
            FAMILIES[0],
            &[("intermediate_size", 96.into())],
            packed(Format::Int4),
            2,
            "as int4, whose blocks are 32",
        ),
        (
            FAMILIES[0],
            &[("vocab_size", 312.into())],
            OPTIONS,
            2,
            "vocabulary: 312 cannot be split over 2 ranks in parts",
        ),
    ] {
        let (_dir, checkpoint) = altered(family, values);
        let refused = lone(&device(), &checkpoint, &options, Shard { rank: 0, of }, &mut |_| ());
        let refused = refused.err().unwrap_or_else(|| panic!("{family:?} on {of} ranks was served"));
        assert!(refused.contains(wanted), "{refused}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn sums_that_can_be_captured_are_replayed_and_others_asked_for_in_every_step() {
    let (_dir, checkpoint) = checkpoint(FAMILIES[0]);
    let layers = checkpoint.spec().layers;
    let run = |graphs, can_be_captured| {
        let asked = Arc::new(AtomicUsize::new(0));
        let peers = Box::new(Nobody { asked: asked.clone(), can_be_captured });
        let (options, shard) = (Options { graphs, ..OPTIONS }, Shard { rank: 1, of: 2 });
        let decoder = Decoder::load_shard(&device(), &checkpoint, &options, shard, Some(peers), &mut |_| ());
        let mut rig = Rig::Device(Box::new(decoder.unwrap()));
        let mut sequences = sequences();
        let mut rows = Vec::new();
        for _ in 0..3 {
            for turns in schedule() {
                rows.extend(rig.step(&mut sequences, &turns).iter().map(|row| bits(row)));
            }
            sequences.iter_mut().for_each(Sequence::begin_anew);
        }
        (rows, asked.load(Ordering::Relaxed))
    };
    let (eager, every_step) = run(false, true);
    assert_eq!(every_step, 2 * layers * 3 * schedule().len());
    assert_eq!(run(true, false), (eager.clone(), every_step));
    // Rows of the steps, rounded up: 32, 64, 64, 4, 2, 32. Each is enqueued once and captured once.
    assert_eq!(run(true, true), (eager, 2 * layers * 2 * 4));
}
