//! Measures Hearth on a GPU: whether it is right, what the device can do, and what share of that the decoder reaches,
//! at the true shapes of models with weights made on the device. `benches/gpu/run.sh` runs all of it.
//!
//!     gpu_bench PART... [--shape NAME] [--quantize FORMAT] [--device N] [--quick] [--out FILE.json] [--date TEXT]
//!               [--emulated]
//!
//! | part | |
//! |---|---|
//! | `right` | products against f64, the decoder against the CPU's; exit status 1 if something is wrong |
//! | `ceilings` | bandwidth of memory and the rate of one large product |
//! | `decode` | one sequence: tokens a second, share of the bandwidth |
//! | `serving` | 8 to 256 sequences, prompts, and prompts beside sequences that decode |
//!
//! `--quantize` packs the weights of `decode` and `serving`: int8, fp8, int4, q8_0, q6_k, q4_k; bf16 leaves them as they are.
//!
//! `--quick` is for profilers and sanitizers: the same work, little of it. `--emulated` runs the kernels on this
//! processor, in a tiny shape, so that everything but the figures can be tried without a GPU; it needs the source tree
//! and g++. Without a GPU, or built without `cuda`, it says so and exits 0; with a GPU that cannot be used, 1.
//!
//! Every file says at its head what was predicted before anything was measured, with the arithmetic.
#![allow(clippy::print_stdout)] // a measurement prints its table

mod ceilings;
mod decode;
mod device;
mod experts;
mod grouped;
mod right;
mod serving;
mod shapes;
mod steps;

use std::process::ExitCode;

use hearth_kernels::cuda::weightonly::Format;
use serde_json::{Value, json};

use device::Bench;

pub type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "gpu_bench PART... [--shape NAME] [--quantize FORMAT] [--device N] [--quick] [--out FILE.json] \
                     [--date TEXT] [--emulated]\nparts: right ceilings decode serving";
const PARTS: [&str; 4] = ["right", "ceilings", "decode", "serving"];

#[derive(Default)]
struct Asked {
    parts: Vec<String>,
    shape: Option<String>,
    quantize: Option<Format>,
    ordinal: usize,
    quick: bool,
    emulated: bool,
    out: Option<String>,
    date: Option<String>,
}

impl Asked {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self::default();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
            match argument.as_str() {
                "--shape" => asked.shape = Some(value()?),
                "--quantize" => asked.quantize = format(&value()?)?,
                "--device" => asked.ordinal = value()?.parse().map_err(|e| format!("--device: {e}"))?,
                "--out" => asked.out = Some(value()?),
                "--date" => asked.date = Some(value()?),
                "--quick" => asked.quick = true,
                "--emulated" => asked.emulated = true,
                part if PARTS.contains(&part) => asked.parts.push(argument),
                _ => return Err(format!("{argument} is not known")),
            }
        }
        if asked.parts.is_empty() {
            return Err("no part is named".to_owned());
        }
        Ok(asked)
    }

    /// Written after every part, so that what was measured is there if a later one is stopped.
    fn write(&self, result: &Value) -> Result<(), Failure> {
        match &self.out {
            Some(path) => {
                std::fs::write(path, format!("{result:#}\n")).map_err(|e| format!("{path}: {e}").into())
            }
            None => Ok(()),
        }
    }
}

/// As settings call it; none for bf16.
fn format(name: &str) -> Result<Option<Format>, String> {
    if name == "bf16" {
        return Ok(None);
    }
    let format = Format::ALL.into_iter().find(|format| format.title() == name);
    let known = Format::ALL.map(Format::title).join(" ");
    format.map(Some).ok_or(format!("--quantize {name}: no such format; there are: bf16 {known}"))
}

fn main() -> ExitCode {
    let asked = match Asked::read(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(reason) => {
            eprintln!("error: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&asked) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing was wrong.
fn run(asked: &Asked) -> Result<bool, Failure> {
    let mut result = json!({
        "program": "gpu_bench", "version": env!("CARGO_PKG_VERSION"), "date": asked.date, "quick": asked.quick,
        "command": std::env::args().skip(1).collect::<Vec<_>>(),
    });
    let opened = match asked.emulated {
        true => device::emulated(),
        false => match device::gpu(asked.ordinal) {
            Ok(opened) => opened,
            Err(none) => {
                println!("nothing is measured: {}", none.reason);
                result["device"] = Value::Null;
                result["reason"] = json!(none.reason);
                asked.write(&result)?;
                return Ok(!none.is_an_obstacle);
            }
        },
    };
    let name = asked.shape.as_deref().unwrap_or(if asked.emulated { "tiny" } else { "mistral-7b" });
    let bench = Bench::new(opened, (name.to_owned(), shapes::shape(name)?), asked.quantize, asked.quick)?;
    println!("{}", bench.line());
    result["device"] = bench.facts().clone();
    result["shape"] = json!(name);
    result["weights"] = json!(bench.format());
    result["parts"] = json!({});
    let mut all = true;
    for part in &asked.parts {
        println!("== {part}");
        let figures = match part.as_str() {
            "right" => right::run(&bench),
            "ceilings" => ceilings::run(&bench),
            "decode" => decode::run(&bench),
            _ => serving::run(&bench),
        };
        let figures = figures.unwrap_or_else(|error| {
            println!("verdict: {part} FAILED: {error}");
            json!({ "error": error.to_string(), "right": false })
        });
        all &= figures["right"] != json!(false);
        result["parts"][part] = figures;
        if let Some(ceilings) = bench.measured() {
            result["ceilings"] = ceilings.json();
        }
        asked.write(&result)?;
    }
    Ok(all)
}
