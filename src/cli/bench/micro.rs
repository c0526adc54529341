//! `hearth bench micro`: where the benchmarks of single parts are.

use std::io::Write;

use crate::cli::CliError;

/// What `cargo bench` measures, for those with the sources.
const MICRO: &str = "\
The benchmarks of single parts are built from the sources:

  cargo bench --bench kernels      products of the CPU beside a plain read of the same bytes
  cargo bench --bench scheduler    a step's cost beside the device: plan, batch, commit
  cargo bench --bench sampler      a token drawn from a row of logits, by way of drawing
  cargo bench --bench request      a request's way from JSON to tokens, and an answer's to events

To compare with an earlier state of the same machine:

  cargo bench --bench sampler -- --save-baseline before
  cargo bench --bench sampler -- --baseline before
";

pub fn run() -> Result<(), CliError> {
    std::io::stdout().lock().write_all(MICRO.as_bytes())?;
    Ok(())
}
