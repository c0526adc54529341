//! A model cut into parts for several ranks: the parts are the whole, and computed together they say the same.

use hearth_kernels::paged::Span;
use hearth_kernels::{Context, Quantize};
use hearth_models::checkpoint::Checkpoint;
use hearth_models::decoder::{Decoder, Options};
use hearth_models::layout::{Layout, Part};
use hearth_models::shard::{Packing, Peers, Shard};
use hearth_models::step::Step;

use super::golden::{self, folder};
use super::meeting::{Member, together as ranks_together};

/// The norm of the difference over that of the logits, weights in f32: sums in another order, nothing else.
const REORDERED: f64 = 1e-5;
/// Weights of 8 bits, whose products round their inputs to 8 bits too, against weights that are not packed.
const PACKED: f64 = 6e-2;

impl Peers for Member {
    fn sum(&mut self, numbers: &mut [f32]) {
        Member::sum(self, numbers);
    }
}

/// Puts the parts that ranks hold of a tensor together again. Ranks that hold the same count once.
fn together(checkpoint: &Checkpoint, whole: &Part, parts: &[(Shard, Part)]) -> Vec<u8> {
    let bytes = checkpoint.dtype(&whole.name).unwrap().size_in_bytes();
    let (rows, cols) = (whole.rows, whole.cols.unwrap_or(1));
    let mine = parts[0].1.clone();
    let (down, across) = (rows / mine.rows, cols / mine.cols.unwrap_or(1));
    // Neighbours hold the same where there are more ranks than parts.
    let each = parts.len() / (down * across).max(1);
    let cuts: Vec<_> = parts.iter().map(|(shard, part)| shard.cut(checkpoint, part)).collect();
    for group in cuts.chunks(each.max(1)) {
        assert!(group.iter().all(|cut| cut == &group[0]), "{}: ranks that share a part differ", whole.name);
    }
    let cuts: Vec<_> = cuts.iter().step_by(each.max(1)).collect();
    let width = cols / across * bytes;
    if across == 1 {
        return cuts.iter().flat_map(|cut| cut.iter().copied()).collect();
    }
    (0..rows)
        .flat_map(|row| cuts.iter().flat_map(move |cut| cut[row * width..][..width].iter().copied()))
        .collect()
}

#[test]
#[allow(clippy::print_stdout)] // which sizes do not come apart is worth knowing
fn the_parts_of_every_family_put_together_are_the_whole() {
    let (mut split, mut refused) = (0, Vec::new());
    for name in golden::names() {
        let checkpoint = golden::open(&name);
        let spec = checkpoint.spec();
        for of in [2, 4] {
            let ranks: Result<Vec<(Shard, Layout)>, _> = (0..of)
                .map(|rank| Shard { rank, of })
                .map(|shard| Ok((shard, shard.layout(spec, None)?)))
                .collect();
            let ranks = match ranks {
                Ok(ranks) => ranks,
                Err(error) => {
                    let error: hearth_models::shard::Indivisible = error;
                    refused.push(format!("{name}, {of}: {error}"));
                    continue;
                }
            };
            split += 1;
            for whole in Layout::of(spec).parts() {
                let holders: Vec<(Shard, Part)> = ranks
                    .iter()
                    .filter_map(|(shard, layout)| {
                        let part = layout.parts().find(|part| part.name == whole.name)?;
                        Some((*shard, part.clone()))
                    })
                    .collect();
                let all = checkpoint.tensor(&whole.name).unwrap().bytes;
                assert!(together(&checkpoint, whole, &holders) == all, "{name}, {of} ranks: {}", whole.name);
                let is_summed = ["o_proj.bias", "down_proj.bias"].iter().any(|end| whole.name.ends_with(end));
                assert_eq!(holders.len(), if is_summed { 1 } else { of }, "{name}: {}", whole.name);
                let is_whole = holders[0].1 == *whole;
                let stays = ["embed_tokens.weight", "norm.weight", "block_sparse_moe.gate.weight"];
                let lone_head =
                    spec.kv_heads == 1 && (whole.name.contains("k_proj") || whole.name.contains("v_proj"));
                let may = stays.iter().any(|end| whole.name.ends_with(end)) || lone_head || is_summed;
                assert_eq!(is_whole, may, "{name}, {of} ranks: {} on each: {is_whole}", whole.name);
            }
            // A tied head is the embedding's rows, which are held twice.
            let head_of = |layout: &Layout| layout.head.as_ref().unwrap().parts[0].clone();
            let heads: Vec<(Shard, Part)> = ranks.iter().map(|(shard, l)| (*shard, head_of(l))).collect();
            let from = Layout::of(spec);
            let from = &from.head.as_ref().unwrap_or(&from.embedding).parts[0];
            assert!(
                together(&checkpoint, from, &heads) == checkpoint.tensor(&from.name).unwrap().bytes,
                "{name}"
            );
        }
    }
    println!("{split} splits; refused:\n{}", refused.join("\n"));
    let text = refused.join("\n");
    for part in [
        "codegemma-7b, 2: heads of keys and values: 3 cannot be split over 2 ranks",
        "codestral-v0.1, 4: heads of queries: 6 cannot be split over 4 ranks",
        "qwen2.5-coder-0.5b, 2: heads of queries: 7 cannot",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(refused.len(), 5, "{text}");
}

#[test]
fn a_cut_through_the_blocks_of_packed_weights_is_refused_by_name() {
    let checkpoint = golden::open("mistral-small-2501");
    let layout =
        |of, kind| Shard { rank: 0, of }.layout(checkpoint.spec(), Some(Packing::from(kind))).map(|_| ());
    // 256 numbers of heads: a block of 256, or eight of 32.
    let refused = layout(2, Quantize::Q4K).unwrap_err().to_string();
    assert!(refused.contains("the width of the heads: 256") && refused.contains("q4_k"), "{refused}");
    assert_eq!(layout(4, Quantize::Q8_0), Ok(()));
    assert_eq!(layout(1, Quantize::Q4K), Ok(()));
}

/// One step: a prompt of which every row is wanted.
fn step(tokens: u32) -> Step {
    let range = || 0..tokens;
    Step {
        tokens: range().map(|i| (3 + i * 7) % 300).collect(),
        positions: range().collect(),
        slots: range().collect(),
        spans: vec![Span { row: 0, rows: tokens, table: 0, context: tokens }],
        tables: (0..tokens.div_ceil(16)).collect(),
        logits: range().collect(),
    }
}

/// Logits of a prompt and of one more token after it, by as many ranks as there are.
fn logits(checkpoint: &Checkpoint, quantize: Option<Quantize>, of: usize) -> Vec<Vec<f32>> {
    let options = Options { quantize, rows: 32, logits: 32, context: 64, blocks: 4, kv: None };
    let parts: Vec<Vec<Vec<f32>>> = ranks_together(of, |rank, member| {
        let peers = (of > 1).then(|| Box::new(member) as Box<dyn Peers>);
        let ctx = Context::cpu(Some(vec![0])).unwrap();
        let shard = Shard { rank, of };
        let decoder = Decoder::load_shard(&ctx, checkpoint, &options, shard, peers, &mut |_| ());
        let mut decoder = decoder.unwrap_or_else(|error| panic!("{error}"));
        let first = decoder.forward(&step(23)).unwrap().to_vec2::<f32>().unwrap();
        let next = Step {
            tokens: vec![9],
            positions: vec![23],
            slots: vec![23],
            spans: vec![Span { row: 0, rows: 1, table: 0, context: 24 }],
            tables: vec![0, 1],
            logits: vec![0],
        };
        let second = decoder.forward(&next).unwrap().to_vec2::<f32>().unwrap();
        first[..23].iter().chain(&second[..1]).cloned().collect()
    });
    (0..24).map(|row| parts.iter().flat_map(|part| part[row].clone()).collect()).collect()
}

fn apart(got: &[Vec<f32>], wanted: &[Vec<f32>]) -> f64 {
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let rows = got.iter().zip(wanted).map(|(got, wanted)| {
        assert_eq!(got.len(), wanted.len(), "logits of the whole vocabulary");
        norm(&mut got.iter().zip(wanted).map(|(a, b)| a - b)) / norm(&mut wanted.iter().copied())
    });
    rows.fold(0.0, |worst, row| if row.is_nan() { f64::INFINITY } else { worst.max(row) })
}

#[test]
fn a_rank_that_fails_leaves_no_other_waiting() {
    let failed = std::panic::catch_unwind(|| {
        ranks_together(3, |rank, member| {
            let mut numbers = [rank as f32];
            member.sum(&mut numbers);
            assert_eq!(numbers, [3.0]);
            // The others are at their second sum, or come to it later.
            assert!(rank != 1, "this one has enough");
            member.sum(&mut numbers);
        })
    });
    let why = failed.unwrap_err().downcast::<&str>().map(|text| *text);
    assert_eq!(why.unwrap_or("another"), "this one has enough", "the first failure is the one that is told");
}

#[test]
#[allow(clippy::print_stdout)] // the errors are worth knowing
fn ranks_together_say_what_one_says_alone() {
    // Groups of heads, one head of keys for all and a tied head, a window, experts, biases of queries.
    for name in ["mistral-v0.3", "codegemma-2b", "mistral-v0.1", "mixtral-8x7b-v0.1", "qwen2.5-coder-7b"] {
        let (_dir, checkpoint) = golden::widened(name);
        let alone = logits(&checkpoint, None, 1);
        for of in [2, 4] {
            let apart = apart(&logits(&checkpoint, None, of), &alone);
            println!("{name:<20} {of} ranks {apart:.1e}");
            assert!(apart < REORDERED, "{name}, {of} ranks: {apart}");
        }
    }
    // Biases on what is summed: added once.
    let text = std::fs::read(folder("codellama-13b").join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    config["attention_bias"] = true.into();
    config["mlp_bias"] = true.into();
    let (_dir, checkpoint) = golden::random(&config);
    let apart_with = apart(&logits(&checkpoint, None, 2), &logits(&checkpoint, None, 1));
    println!("with all biases      2 ranks {apart_with:.1e}");
    assert!(apart_with < REORDERED, "{apart_with}");
    // Packed: parts are as near the unpacked whole as the packed whole is. Nearer to each other they are not: each rounds
    // in its own places.
    let checkpoint = golden::open("mistral-small-2501");
    let alone = logits(&checkpoint, None, 1);
    let packed = [1, 2].map(|of| apart(&logits(&checkpoint, Some(Quantize::Q8_0), of), &alone));
    println!("packed to q8_0       1 rank {:.1e}, 2 ranks {:.1e}", packed[0], packed[1]);
    assert!(packed.iter().all(|apart| *apart < PACKED), "{packed:?}");
}
