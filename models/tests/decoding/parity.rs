//! Parity: every family against the reference's logits and tokens.

use candle_core::{DType, Device, Tensor};
use hearth_models::checkpoint::Checkpoint;
use serde_json::{Value, json};

use crate::golden::{self, Golden, Rig, names, open, relative, widened};

/// Norm of the error over the norm of the logits, for every row: in f32, and where the weights are 16-bit.
const EXACT: f32 = 5e-5;
const HALF: f32 = 1e-2;
/// The reference's own choice is a toss-up below this margin.
const TOSS: f32 = 1e-3;
/// Router logits closer than this may fall either way when activations are rounded to bf16.
const NEAR_TIE: f32 = 2e-2;

/// What a comparison of one checkpoint came to.
#[derive(Default)]
struct Score {
    /// The worst row and the worst case: norm of the difference over norm of the reference.
    row: f32,
    case: f32,
    absolute: f32,
    compared: usize,
    equal: usize,
    near_ties: usize,
    /// Positions whose token differs although the reference was sure; judged after `absolute` is known.
    differing: Vec<(String, usize, f32)>,
}

impl Score {
    /// Feeds a case's tokens, prompt and continuation, in chunks, and compares all positions.
    fn case(&mut self, rig: &mut Rig, golden: &Golden, name: &str) {
        let case = golden.case(name);
        let logits = rig.run(&case.tokens, 37);
        let tie = |at: usize| case.router.iter().any(|layer| layer[at] < NEAR_TIE);
        self.near_ties += (0..case.tokens.len()).filter(|at| tie(*at)).count();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (row, wanted) in case.rows.iter().zip(&case.logits) {
            if tie(*row) {
                continue;
            }
            self.row = worse(self.row, relative(&logits[*row], wanted));
            let apart = logits[*row].iter().zip(wanted).map(|(a, b)| (a - b).abs());
            self.absolute = apart.fold(self.absolute, worse);
            ours.extend(&logits[*row]);
            theirs.extend(wanted);
        }
        if !ours.is_empty() {
            self.case = worse(self.case, relative(&ours, &theirs));
        }
        for (at, logits) in logits.iter().enumerate() {
            self.compared += 1;
            if golden::argmax(logits) == case.argmax[at] {
                self.equal += 1;
            } else if !tie(at) {
                self.differing.push((name.into(), at, case.margin[at]));
            }
        }
    }
}

/// The larger of two errors; NaN is the largest.
fn worse(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

fn cases(golden: &Golden) -> Vec<String> {
    let mut cases = vec!["single".to_owned(), "long".to_owned()];
    cases.extend((0..golden.batch()).map(|i| format!("batch.{i}")));
    cases
}

#[test]
fn every_family_gives_the_logits_and_tokens_of_the_reference_in_f32() {
    let mut table = vec![format!("{:<20} {:>10} {:>12} {:>14}", "f32", "error", "max diff", "tokens equal")];
    let mut wrong = Vec::new();
    for name in names() {
        let golden = Golden::read(&name);
        let (dir, checkpoint) = widened(&name);
        let mut rig = Rig::new(&checkpoint, None);
        let mut score = Score::default();
        for case in cases(&golden) {
            score.case(&mut rig, &golden, &case);
        }
        table.push(format!(
            "{name:<20} {:>10.1e} {:>12.1e} {:>7} of {:>4}",
            score.row, score.absolute, score.equal, score.compared
        ));
        let close = score.row <= EXACT;
        if !close || score.differing.iter().any(|(_, _, margin)| *margin > TOSS) {
            wrong.push(format!("{name}: error {}, tokens that differ: {:?}", score.row, score.differing));
        }
        drop(dir);
    }
    eprintln!("{}", table.join("\n"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_16_bit_checkpoint_stays_close_to_the_reference_in_its_own_type() {
    let mut table = vec![format!(
        "{:<20} {:>5} {:>10} {:>10} {:>12} {:>14} {:>10} {:>22}",
        "own type", "", "error", "worst row", "max diff", "tokens equal", "near-ties", "transformers' error"
    )];
    let mut wrong = Vec::new();
    for name in names() {
        let golden = Golden::read(&name);
        let checkpoint = open(&name);
        if checkpoint.main_dtype() == DType::F32 {
            continue;
        }
        let mut rig = Rig::new(&checkpoint, None);
        let mut score = Score::default();
        for case in cases(&golden) {
            score.case(&mut rig, &golden, &case);
        }
        table.push(format!(
            "{name:<20} {:>5} {:>10.1e} {:>10.1e} {:>12.1e} {:>7} of {:>4} {:>10} {:>22.1e}",
            checkpoint.main_dtype().as_str(),
            score.case,
            score.row,
            score.absolute,
            score.equal,
            score.compared,
            score.near_ties,
            golden.half_error(),
        ));
        let close = score.row <= HALF;
        if !close || score.differing.iter().any(|(_, _, margin)| *margin > 2.0 * score.absolute) {
            wrong.push(format!("{name}: error {}, tokens that differ: {:?}", score.row, score.differing));
        }
    }
    eprintln!("{}", table.join("\n"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_greedy_continuation_decoded_token_by_token_is_the_reference_s() {
    let mut table = vec![format!("{:<20} {:>8} {:>8} {:>8}", "greedy, f32", "single", "long", "batch.4")];
    for name in names() {
        let golden = Golden::read(&name);
        let (_dir, checkpoint) = widened(&name);
        let mut rig = Rig::new(&checkpoint, None);
        let mut line = format!("{name:<20}");
        for case in ["single", "long", "batch.4"].map(|case| golden.case(case)) {
            let got = rig.greedy(&case.tokens[..case.prompt], case.tokens.len() - case.prompt);
            let wanted = &case.tokens[case.prompt..];
            let same = got.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            let sure = (same == wanted.len()) || case.margin[case.prompt + same - 1] <= TOSS;
            assert!(sure, "{name}: token {same} is {}, the reference says {}", got[same], wanted[same]);
            line += &format!(" {same:>8}");
        }
        table.push(line);
    }
    eprintln!("{}", table.join("\n"));
}

#[test]
fn a_prompt_in_chunks_gives_the_bits_of_the_whole() {
    for name in names() {
        let golden = Golden::read(&name);
        let checkpoint = open(&name);
        let mut rig = Rig::new(&checkpoint, None);
        let tokens = &golden.case("long").tokens[..140];
        let whole = rig.run(tokens, tokens.len());
        for chunk in [1, 7, 16, 33, 64] {
            let chunked = rig.run(tokens, chunk);
            let differs = whole.iter().zip(&chunked).position(|(a, b)| golden::bits(a) != golden::bits(b));
            assert_eq!(differs, None, "{name}: first row that differs in chunks of {chunk}");
        }
    }
}

#[test]
fn sequences_of_different_lengths_in_one_step_give_the_bits_of_each_alone() {
    for name in names() {
        let golden = Golden::read(&name);
        let checkpoint = open(&name);
        let mut rig = Rig::new(&checkpoint, None);
        let prompts: Vec<Vec<u32>> = (0..golden.batch())
            .map(|i| golden.case(&format!("batch.{i}")))
            .map(|case| case.tokens[..case.prompt + 6].to_vec())
            .collect();
        let together = rig.together(&prompts, 6);
        for (i, tokens) in prompts.iter().enumerate() {
            let alone = rig.run(tokens, tokens.len());
            for (row, logits) in &together[i] {
                let same = golden::bits(logits) == golden::bits(&alone[*row]);
                assert!(same, "{name}: row {row} of sequence {i} differs");
            }
            assert_eq!(together[i].len(), 7);
        }
    }
}

/// Each switch set wrongly shows far above the tolerance, so that the comparison would find it.
#[test]
fn a_switch_set_wrongly_shows_in_the_logits() {
    let wrong = [
        ("mistral-v0.1", json!({"sliding_window": 25})),
        ("mistral-v0.1", json!({"sliding_window": null})),
        ("mistral-v0.3", json!({"rms_norm_eps": 0.0025})),
        ("codestral-v0.1", json!({"rope_theta": 900_000.0})),
        ("codegemma-2b", json!({"hidden_act": "silu", "hidden_activation": "silu"})),
        ("deepseek-coder-33b", json!({"rope_scaling": {"type": "linear", "factor": 4.1}})),
        ("deepseek-coder-33b", json!({"rope_scaling": null})),
        ("mixtral-8x7b-v0.1", json!({"num_experts_per_tok": 3})),
        (
            "llama-3.1-8b",
            json!({"rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 72, "rope_type": "llama3"}}),
        ),
    ];
    for (name, changes) in wrong {
        let (dir, _) = widened(name);
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        std::fs::write(path, config.to_string()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
        let case = Golden::read(name).case("long");
        let logits = Rig::new(&checkpoint, None).run(&case.tokens, 64);
        let rows = case.rows.iter().zip(&case.logits);
        let error = rows.map(|(row, wanted)| relative(&logits[*row], wanted)).fold(0.0, worse);
        eprintln!("{name} with {changes}: error {error:.1e}");
        assert!(error > 4.0 * EXACT, "{name} with {changes}: {error}");
    }
}

/// Long enough for several of the segments that attention is cut into.
#[test]
fn a_long_prompt_in_chunks_gives_the_same_bits() {
    let checkpoint = open("llama-3-8b");
    let mut rig = Rig::new(&checkpoint, None);
    let tokens: Vec<u32> = (0..1300u32).map(|i| 3 + i * i % 311).collect();
    let whole = rig.run(&tokens, 256);
    for chunk in [1, 100] {
        let chunked = rig.run(&tokens, chunk);
        let differs = whole.iter().zip(&chunked).position(|(a, b)| golden::bits(a) != golden::bits(b));
        assert_eq!(differs, None, "first row that differs in chunks of {chunk}");
    }
}

#[test]
fn candle_s_own_mistral_agrees() {
    use candle_transformers::models::mistral::{Config, Model};
    let name = "mistral-v0.3";
    let (dir, checkpoint) = widened(name);
    let spec = checkpoint.spec();
    let config = Config {
        vocab_size: spec.vocab,
        hidden_size: spec.hidden,
        intermediate_size: spec.ffn,
        num_hidden_layers: spec.layers,
        num_attention_heads: spec.heads,
        head_dim: Some(spec.head_dim),
        num_key_value_heads: spec.kv_heads,
        hidden_act: candle_nn::Activation::Silu,
        max_position_embeddings: 1536,
        rms_norm_eps: spec.epsilon,
        rope_theta: spec.rope.theta,
        sliding_window: None,
        use_flash_attn: false,
    };
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let weights = candle_nn::VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
    let mut candle = Model::new(&config, weights).unwrap();
    for length in [1, 204, 1300] {
        let tokens: Vec<u32> = (0..length).map(|i| 3 + i * i % 311).collect();
        candle.clear_kv_cache();
        let input = Tensor::new(&tokens[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = candle.forward(&input, 0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let ours = Rig::new(&checkpoint, None).run(&tokens, 64).pop().unwrap();
        let error = relative(&ours, &theirs);
        eprintln!("candle-transformers, mistral, f32, {length} tokens: error {error:.1e}");
        assert!(error <= EXACT, "{length} tokens: {error}");
    }
}
