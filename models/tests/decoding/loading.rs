//! Loading: what it takes and says, quantised weights, and steps that are not run.

use hearth_kernels::paged::Span;
use hearth_kernels::{Context, Quantize};
use hearth_models::decoder::{Decoder, Options};
use hearth_models::inspect::Inspection;
use hearth_models::memory::Memory;
use hearth_models::step::{PENDING, Step};
use serde_json::{Value, json};

use crate::golden::{self, Rig, names, open, random, relative};

const OPTIONS: Options = Options { quantize: None, rows: 64, logits: 8, context: 256, blocks: 40, kv: None };

/// Wide enough for blocks of 256 columns.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "hidden_act": "silu", "eos_token_id": 2
    })
}

#[test]
fn the_arithmetic_is_what_the_decoder_takes() {
    let (_dir, wide) = random(&config());
    let checkpoints = names().into_iter().map(|name| open(&name)).chain([wide]);
    for checkpoint in checkpoints {
        for quantize in [None, Some(Quantize::Q8_0), Some(Quantize::Q4K)] {
            let options = Options { quantize, ..OPTIONS };
            let memory = Memory::of(&checkpoint, &options);
            let mut heard = 0;
            let ctx = Context::cpu(None).unwrap();
            let decoder = Decoder::load(&ctx, &checkpoint, &options, &mut |bytes| heard = bytes).unwrap();
            let name = checkpoint.origin().display();
            assert_eq!(memory.weight_bytes(), decoder.weight_bytes(), "{name} {quantize:?}");
            assert_eq!(memory.kv_bytes(), decoder.kv_bytes(), "{name}");
            assert_eq!(heard, checkpoint.bytes(), "{name}: progress ends at the whole");
            assert_eq!(memory.token_bytes() * decoder.block_size() as u64, memory.block_bytes, "{name}");
        }
    }
}

#[test]
fn weights_stay_in_the_type_of_the_checkpoint() {
    let checkpoint = open("mistral-v0.1");
    let memory = Memory::of(&checkpoint, &OPTIONS);
    assert!(memory.weights.iter().any(|share| share.what == "layers, bf16"));
    let packed = memory.weight_bytes() as f64 / checkpoint.bytes() as f64;
    assert!(packed < 1.02, "{packed} times the file");
}

#[test]
fn quantised_weights_run_with_a_bounded_error() {
    let (_dir, checkpoint) = random(&config());
    let tokens: Vec<u32> = (0..90u32).map(|i| i * 131 % 300).collect();
    let exact = Rig::new(&checkpoint, None).run(&tokens, 64);
    // Measured in the worst row: 2.0 %, 3.1 % and 12.2 %. Random weights have no outliers and no redundancy, and the
    // products round activations to 8 bits too.
    for (kind, bound) in [(Quantize::Q8_0, 0.03), (Quantize::Q6K, 0.05), (Quantize::Q4K, 0.2)] {
        let logits = Rig::new(&checkpoint, Some(kind)).run(&tokens, 64);
        let errors = logits.iter().zip(&exact).map(|(a, b)| relative(a, b));
        let worst = errors.fold(0.0, f32::max);
        let agree = logits.iter().zip(&exact).filter(|(a, b)| golden::argmax(a) == golden::argmax(b)).count();
        let options = Options { quantize: Some(kind), ..OPTIONS };
        let bytes = Memory::of(&checkpoint, &options).weight_bytes();
        eprintln!(
            "{:<5} error {worst:.3}, {agree} of {} tokens equal, weights {bytes} bytes",
            kind.name(),
            exact.len()
        );
        assert!(worst > 0.0 && worst < bound, "{kind:?}: {worst}");
    }
}

#[test]
fn a_checkpoint_too_narrow_for_the_blocks_keeps_its_type_and_still_loads() {
    let checkpoint = open("mistral-v0.3");
    let options = Options { quantize: Some(Quantize::Q4K), ..OPTIONS };
    let memory = Memory::of(&checkpoint, &options);
    assert!(
        memory.weights.iter().all(|share| !share.what.contains("q4_k")),
        "64 columns are no block of 256"
    );
    let eight = Memory::of(&checkpoint, &Options { quantize: Some(Quantize::Q8_0), ..OPTIONS });
    assert!(eight.weights.iter().any(|share| share.what == "layers, q8_0"));
    assert!(eight.weights.iter().any(|share| share.what == "head, f32"), "the head decides the token");
}

#[test]
fn options_beyond_the_model_are_refused() {
    let checkpoint = open("llama-3.1-8b");
    let load = |options: Options| {
        let ctx = Context::cpu(None).unwrap();
        Decoder::load(&ctx, &checkpoint, &options, &mut |_| ()).map(|_| ()).unwrap_err().to_string()
    };
    let long = load(Options { context: 513, ..OPTIONS });
    assert!(long.contains("context is 513") && long.contains("512"), "{long}");
    assert!(load(Options { rows: 0, ..OPTIONS }).contains("rows of a step is 0"));
}

#[test]
fn a_step_that_cannot_be_right_is_refused_and_the_next_one_runs() {
    let checkpoint = open("llama-3-8b");
    let ctx = Context::cpu(None).unwrap();
    let mut decoder = Decoder::load(&ctx, &checkpoint, &OPTIONS, &mut |_| ()).unwrap();
    let good = Step {
        tokens: vec![5, 6],
        positions: vec![0, 1],
        slots: vec![48, 49],
        spans: vec![Span { row: 0, rows: 2, table: 0, context: 2 }],
        tables: vec![3],
        logits: vec![1],
    };
    type Break = fn(&mut Step);
    let wrong: [(&str, Break); 11] = [
        ("token 320", |step| step.tokens[1] = 320),
        ("pending", |step| step.tokens[1] = PENDING | 3),
        ("position 256", |step| step.positions[1] = 256),
        ("logits of row 2", |step| step.logits[0] = 2),
        ("1 positions", |step| step.positions.truncate(1)),
        ("spans of 0 rows", |step| step.spans.clear()),
        ("0 tables", |step| step.tables.clear()),
        ("slot", |step| step.slots[0] = 40 * 16),
        ("block", |step| step.tables[0] = 40),
        ("65 rows", |step| step.tokens = vec![1; 65]),
        ("9 rows of logits", |step| step.logits = vec![0; 9]),
    ];
    let expected = golden::bits(&decoder.forward(&good).unwrap().get(0).unwrap().to_vec1().unwrap());
    for (says, break_it) in wrong {
        let mut step = good.clone();
        break_it(&mut step);
        let error = decoder.forward(&step).map(|_| ()).expect_err(says).to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    let again = golden::bits(&decoder.forward(&good).unwrap().get(0).unwrap().to_vec1().unwrap());
    assert_eq!(expected, again);
}

#[test]
fn an_inspection_tells_the_arithmetic() {
    let mixtral = Inspection::of(&open("mixtral-8x7b-v0.1"));
    assert!(mixtral.active_parameters * 2 < mixtral.parameters, "two of eight experts work");
    let text = mixtral.to_string();
    for part in ["family mixtral", "8, 2 for each token", "BF16", "weights, q8_0", "at 32768 tokens"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    // Two layers, keys and values, two heads of 16 values, two bytes each.
    assert_eq!(mixtral.kv_bytes_per_token, 2 * 2 * 2 * 16 * 2);
    let json = serde_json::to_value(&mixtral).unwrap();
    assert_eq!(json["spec"]["experts"]["top_k"], 2);
    assert_eq!(json["contexts"][0]["tokens"], 2048);
    let tied = Inspection::of(&open("qwen2.5-coder-0.5b"));
    assert_eq!(tied.active_parameters, tied.parameters, "a tied embedding is multiplied as the head");
}

#[cfg(feature = "ember")]
#[test]
fn the_embedded_model_runs_like_any_other() {
    let checkpoint = hearth_models::ember::checkpoint().unwrap_or_else(|e| panic!("{e}"));
    let mut rig = Rig::new(&checkpoint, None);
    let tokens: Vec<u32> = (20..60).collect();
    let logits = rig.run(&tokens, 16);
    assert!(logits.iter().flatten().all(|value| value.is_finite()));
    assert_eq!(rig.greedy(&tokens, 8).len(), 8);
    eprintln!("{}", Inspection::of(&checkpoint));
}
