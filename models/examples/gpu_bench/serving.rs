//! Many sequences: 512 tokens in, 256 out, no two prompts alike, at 8 to 256 at the same time; prompts alone; and prompts
//! in chunks beside sequences that decode.
//!
//! The ceiling of a step of decoding is the time in which the device copies as many bytes as the weights and all keys and
//! values of the step; that of a prompt is the rate of the large product of this run, attention not counted.
//!
//! Predicted for an H200 (copy 4.3 TB/s), mistral-7b:
//!
//! - 64 sequences of 1,024: 55 to 65 % of the ceiling. 14.23 GB of weights and 8.6 GB of keys and values are 5.3 ms; the
//!   products of 64 rows reach 0.65 to 0.75 of their bytes' time (tiles of 64 x 128, four stages), attention 0.6 to 0.7,
//!   and 32 layers add 0.8 ms of small launches: 8.2 to 9.6 ms, 6,700 to 7,800 tokens/s. At 512 to 768 positions each,
//!   as measured here, the weights weigh more: 4.6 ms at best, 8,000 to 9,300 tokens/s.
//! - 8 sequences: 60 to 70 % (the kernels of few rows end at 0.5 to 0.6 of the read at 8 rows, arithmetic takes as long).
//!   256 sequences: 55 to 65 %; 21 GB of keys and values, and products of 256 rows are 3.6 TFLOP, 10 ms at 360 TFLOP/s,
//!   no longer bound by memory: 15 to 17 ms, 15,000 to 17,000 tokens/s at the most.
//! - mixtral-8x7b int8, 64 sequences: all experts are touched, 47.6 GB and 5.4 GB of keys and values are 12.3 ms; 16 rows an
//!   expert take tiles of 64, three quarters of them for nothing: 55 to 65 %, 2,900 to 3,500 tokens/s.
//! - prompts in chunks of 2,048: 300 to 400 TFLOP/s in products, 21,000 to 28,000 tokens/s at 2,048 tokens; 70 to 85 % of
//!   that at 16,384, where attention is 32 x 4 x 4096 x 8192 = 4.3 GFLOP a token more at half the rate of products.
//! - 8,192-token prompts beside 64 sequences: chunks of 192 rows (a step of 256) double the step, 16,000 to 20,000 prompt
//!   tokens/s, 70 % of the rate alone; chunks of 1,984 take 80 ms a step.
//!
//! mixtral-8x7b, prompts in chunks of 2,048 with the products that Hopper alone has: 15,000 to 19,000 tokens/s at 2,048
//! tokens, 0.66 to 0.77 of the large product's rate. A layer is 962 GFLOP of gate and up at 440 to 540 TFLOP/s, 481 of down
//! at 390 to 490 (`grouped.rs`), 172 of attention's matrices at 450 to 580, and 0.3 ms of attention, routing, gathering
//! and norms: 3.4 to 4.2 ms, 108 to 134 ms for all 32. With the products of all generations (`HEARTH_GPU_ISA=sm_80`) 265
//! to 355 TFLOP/s: 10,500 to 13,500 tokens/s. Steps of 257 to 512 rows have 128 rows an expert at most and read all 90 GB:
//! 38 to 48 ms, of which 21 are the read.

use hearth_models::device::{Decoder, KvType, Options, step_bytes};
use hearth_models::step::Step;
use serde_json::{Value, json};

use crate::Failure;
use crate::ceilings::Ceilings;
use crate::device::{Bench, quantile};
use crate::shapes::Cost;
use crate::steps::{self, Group};

/// Kept free beside what is asked for.
const SPARE: usize = 1 << 30;
/// Shares of the ceilings that are to be reached.
const BAR: f64 = 0.60;
/// Beside prompts the 95th percentile of steps may grow so much, and the prompts keep so much of their rate.
const MOST_SLOWER: f64 = 2.0;
const LEAST_KEPT: f64 = 0.70;

/// How much of everything.
struct Plan {
    concurrency: &'static [usize],
    input: usize,
    output: usize,
    /// Rows of a step at most.
    rows: usize,
    prompts: &'static [usize],
    /// Sequences that decode while prompts of this length stream in, in steps of so many rows.
    streams: usize,
    beside: usize,
    buckets: &'static [usize],
    /// Steps at least beside prompts.
    steps: usize,
}

const FULL: Plan = Plan {
    concurrency: &[8, 32, 64, 128, 256],
    input: 512,
    output: 256,
    rows: 2048,
    prompts: &[2048, 16384],
    streams: 64,
    beside: 8192,
    buckets: &[128, 256, 512, 1024, 2048],
    steps: 60,
};
const QUICK: Plan =
    Plan { concurrency: &[64], output: 8, prompts: &[2048], beside: 2048, buckets: &[256], steps: 8, ..FULL };
const TINY: Plan = Plan {
    concurrency: &[2, 3],
    input: 20,
    output: 3,
    rows: 32,
    prompts: &[33],
    streams: 2,
    beside: 40,
    buckets: &[16, 32],
    steps: 3,
};

/// A decoder and what it is compared with.
struct Serving<'a> {
    bench: &'a Bench,
    plan: &'a Plan,
    ceilings: Ceilings,
    cost: Cost,
    decoder: Decoder,
}

pub fn run(bench: &Bench) -> Result<Value, Failure> {
    let plan = match (bench.is_emulated, bench.quick) {
        (true, _) => &TINY,
        (_, true) => &QUICK,
        _ => &FULL,
    };
    let ceilings = bench.ceilings()?;
    let spec = &bench.spec;
    let cost = Cost::of(spec, bench.quantize);
    let what = format!("{} {}", bench.name, bench.format());
    let most = *plan.concurrency.iter().max().expect("bug: a plan has sequences");
    // A prompt beside the sequences that decode gives logits too.
    let logits = most.max(plan.streams + 1);
    let room = plan.input + plan.output;
    let group = |sequences, room| Group { sequences, room, first_block: 0, vocab: spec.vocab }.blocks();
    let longest = *plan.prompts.iter().max().expect("bug: a plan has prompts");
    let context = longest.max(plan.beside).max(room).min(spec.context);
    let beside = group(plan.streams, room) + group(1, plan.beside);
    let wanted = group(most, room).max(group(1, context)).max(beside);
    let mut options = Options {
        quantize: bench.quantize,
        kv: KvType::Bf16,
        rows: plan.rows,
        logits,
        context,
        blocks: wanted,
        strict: false,
        graphs: true,
    };
    let (free, total) = bench.device.memory()?;
    let taken = cost.weights + step_bytes(spec, &options) + SPARE as u64;
    let page = 16 * cost.position;
    options.blocks = wanted.min(((free as u64).saturating_sub(taken) / page) as usize);
    if options.blocks < beside.min(group(8, room)) && !bench.is_emulated {
        let gib = |bytes: usize| bytes >> 30;
        println!("verdict: serving {what} does not fit {} of {} GiB", gib(free), gib(total));
        return Ok(json!({ "fits": false }));
    }
    let decoder = Decoder::random(&bench.device, spec, &options)?;
    let mut serving = Serving { bench, plan, ceilings, cost, decoder };
    println!(
        "{what}: {} blocks of 16 positions, {:.1} GB",
        options.blocks,
        options.blocks as f64 * page as f64 / 1e9
    );

    let prompts = serving.prompts()?;
    let loads = serving.loads()?;
    let beside = serving.beside()?;
    let shares = loads.iter().map(|load| load["share_of_ceiling"].as_f64().unwrap_or(0.0));
    let least = shares.fold(f64::INFINITY, f64::min);
    println!(
        "verdict: serving {what} reaches at least {:.1} % of the ceiling in decoding: {}",
        least * 100.0,
        if least >= BAR { "meets the bar of 60 %" } else { "below the bar of 60 %" }
    );
    Ok(json!({
        "fits": true, "blocks": options.blocks, "input": plan.input, "output": plan.output, "prompts": prompts,
        "loads": loads, "beside": beside,
    }))
}

impl Serving<'_> {
    fn steps(&mut self, steps: &[Step]) -> Result<Vec<f64>, Failure> {
        steps::run(&self.bench.device, &mut self.decoder, steps)
    }

    fn warm(&mut self, steps: &[Step]) -> Result<(), Failure> {
        steps::warm(&self.bench.device, &mut self.decoder, steps)
    }

    fn group(&self, sequences: usize, room: usize, first_block: usize) -> Option<Group> {
        let group = Group { sequences, room, first_block, vocab: self.bench.spec.vocab };
        let options = self.decoder.options();
        (first_block + group.blocks() <= options.blocks && room <= options.context).then_some(group)
    }

    /// Rate of prompts: tokens a second, and the share that its products have of the large product's rate.
    fn rate(&self, tokens: usize, us: f64) -> (f64, f64) {
        let tflops = self.cost.operations(tokens) / us / 1e6;
        (tokens as f64 / us * 1e6, tflops / self.ceilings.product_tflop_s)
    }

    /// One prompt at a time, in whole steps.
    fn prompts(&mut self) -> Result<Vec<Value>, Failure> {
        println!(
            "{:>8} {:>10} {:>10} {:>10} {:>18}",
            "prompt", "tokens/s", "ms", "TFLOP/s", "share of product"
        );
        let mut results = Vec::new();
        for &length in self.plan.prompts {
            let Some(group) = self.group(1, length, 0) else {
                println!("{length:>8} does not fit");
                continue;
            };
            let steps = group.prompts(length, self.plan.rows);
            self.warm(&steps)?;
            let us: f64 = self.steps(&steps)?.iter().sum();
            let (tokens, share) = self.rate(length, us);
            let tflops = share * self.ceilings.product_tflop_s;
            println!("{length:>8} {tokens:>10.0} {:>10.1} {tflops:>10.1} {share:>18.3}", us / 1e3);
            results.push(json!({
                "tokens": length, "tokens_per_s": tokens, "us": us, "tflop_s": tflops, "share_of_product": share,
            }));
        }
        Ok(results)
    }

    /// All prompts first, then all sequences decode.
    fn loads(&mut self) -> Result<Vec<Value>, Failure> {
        println!(
            "{:>9} {:>11} {:>9} {:>11} {:>9} {:>9} {:>8} {:>9} {:>9}",
            "sequences",
            "prompt t/s",
            "of prod.",
            "decode t/s",
            "p50 us",
            "p95 us",
            "share",
            "first p50",
            "all t/s"
        );
        let (input, output) = (self.plan.input, self.plan.output);
        let mut results = Vec::new();
        for &sequences in self.plan.concurrency {
            let Some(group) = self.group(sequences, input + output, 0) else {
                println!("{sequences:>9} do not fit");
                continue;
            };
            let prompts = group.prompts(input, self.plan.rows);
            let decode: Vec<Step> = (input..input + output).map(|at| group.decode(at)).collect();
            for step in [&prompts[0], &prompts[prompts.len() - 1], &decode[0]] {
                self.warm(std::slice::from_ref(step))?;
            }
            let prompt_times = self.steps(&prompts)?;
            let mut times = self.steps(&decode)?;
            let (prompt_us, us): (f64, f64) = (prompt_times.iter().sum(), times.iter().sum());
            let (rate, of_product) = self.rate(sequences * input, prompt_us);
            let tokens = (sequences * output) as f64;
            let bytes: f64 =
                (input..input + output).map(|at| self.cost.bytes((0..sequences).map(|_| at + 1))).sum();
            let share = self.ceilings.microseconds(bytes) / us;
            let [p50, p95] = [0.5, 0.95].map(|share| quantile(&mut times, share));
            let [first_p50, first_p95] = [0.5, 0.95].map(|share| first_token(&prompts, &prompt_times, share));
            let all = tokens / (prompt_us + us) * 1e6;
            let decoded = tokens / us * 1e6;
            println!(
                "{sequences:>9} {rate:>11.0} {of_product:>9.3} {decoded:>11.0} {p50:>9.0} {p95:>9.0} {share:>8.3} {:>6.0} ms {all:>9.0}",
                first_p50 / 1e3
            );
            results.push(json!({
                "sequences": sequences, "prompt_tokens_per_s": rate, "prompt_share_of_product": of_product,
                "decode_tokens_per_s": decoded, "step_p50_us": p50, "step_p95_us": p95,
                "share_of_ceiling": share, "first_token_p50_us": first_p50, "first_token_p95_us": first_p95,
                "output_tokens_per_s_with_prompts": all,
            }));
        }
        Ok(results)
    }

    /// Sequences that decode, alone and with chunks of long prompts in their steps.
    fn beside(&mut self) -> Result<Value, Failure> {
        let Plan { input, output, streams, beside, .. } = *self.plan;
        let first = self.group(streams, input + output, 0);
        let second = first.and_then(|first| self.group(1, beside, first.blocks()));
        let (Some(group), Some(long)) = (first, second) else {
            println!("{streams} sequences and a prompt of {beside} do not fit");
            return Ok(Value::Null);
        };
        self.steps(&group.prompts(input, self.plan.rows))?;
        let alone: Vec<Step> = (0..self.plan.steps).map(|i| group.decode(input + i % output)).collect();
        self.warm(&alone[..1])?;
        let mut times = self.steps(&alone)?;
        let [p50, p95] = [0.5, 0.95].map(|share| quantile(&mut times, share));
        let whole = long.prompts(beside, self.plan.rows);
        self.warm(&whole)?;
        let us: f64 = self.steps(&whole)?.iter().sum();
        let (unloaded, _) = self.rate(beside, us);
        println!(
            "{streams} sequences without prompts: p50 {p50:.0} us, p95 {p95:.0} us; a prompt of {beside} alone: {unloaded:.0} tokens/s"
        );
        println!(
            "{:>7} {:>9} {:>9} {:>8} {:>11} {:>8}",
            "chunk", "p50 us", "p95 us", "slower", "prompt t/s", "kept"
        );
        let mut results = Vec::new();
        let mut within: Option<f64> = None;
        for &bucket in self.plan.buckets {
            let chunk = bucket - streams;
            let mut steps = Vec::new();
            let mut from = 0;
            let mut tokens = 0;
            // Whole prompts, one after another.
            while from > 0 || steps.len() < self.plan.steps {
                let mut step = group.decode(input + steps.len() % output);
                let rows = chunk.min(beside - from);
                long.add(&mut step, 0, from, rows, from + rows == beside);
                from = (from + rows) % beside;
                tokens += rows;
                steps.push(step);
            }
            self.warm(&steps[..1])?;
            self.warm(&steps[steps.len() - 1..])?;
            let mut times = self.steps(&steps)?;
            let (rate, _) = self.rate(tokens, times.iter().sum());
            let [p50_beside, p95_beside] = [0.5, 0.95].map(|share| quantile(&mut times, share));
            let (slower, kept) = (p95_beside / p95, rate / unloaded);
            println!("{chunk:>7} {p50_beside:>9.0} {p95_beside:>9.0} {slower:>8.2} {rate:>11.0} {kept:>8.2}");
            if slower <= MOST_SLOWER {
                within = Some(within.unwrap_or(0.0).max(kept));
            }
            results.push(json!({
                "chunk": chunk, "step_p50_us": p50_beside, "step_p95_us": p95_beside, "times_p95_alone": slower,
                "prompt_tokens_per_s": rate, "share_of_rate_alone": kept,
            }));
        }
        println!(
            "verdict: beside prompts {}",
            match within {
                Some(kept) if kept >= LEAST_KEPT => format!(
                    "p95 at most doubles and prompts keep {:.0} % of their rate: meets the bar",
                    kept * 100.0
                ),
                Some(kept) =>
                    format!("where p95 at most doubles, prompts keep {:.0} %: below 70 %", kept * 100.0),
                None => "p95 more than doubles with every chunk: below the bar".to_owned(),
            }
        );
        Ok(json!({
            "sequences": streams, "prompt": beside, "step_p50_us": p50, "step_p95_us": p95,
            "prompt_tokens_per_s_alone": unloaded, "chunks": results, "kept_within_twice": within,
        }))
    }
}

/// When a share of all first tokens was there, if all prompts came at once.
fn first_token(steps: &[Step], times: &[f64], share: f64) -> f64 {
    let mut done = 0.0;
    let mut each = Vec::new();
    for (step, us) in steps.iter().zip(times) {
        done += us;
        each.extend(step.logits.iter().map(|_| done));
    }
    quantile(&mut each, share)
}
