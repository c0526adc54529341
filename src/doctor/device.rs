//! What computes.

use hearth_kernels::cuda::presence::Presence;

use super::{Finding, Verdict};
use crate::config::Settings;
use crate::gpu;

/// Whether the models are computed where they should be. Looks at this host, not at the running server.
pub fn device(settings: &Settings) -> Finding {
    const CHECK: &str = "device";
    if settings.device == "cpu" {
        return match Presence::now().is_here() {
            true => Finding::new(
                CHECK,
                Verdict::Note,
                "the CPU, as engine.device says; this host has an NVIDIA GPU",
            ),
            false => Finding::ok(CHECK, "the CPU, as engine.device says"),
        };
    }
    match gpu::look() {
        Ok(said) => Finding::ok(CHECK, said.join("; ")),
        Err(none) if none.is_an_obstacle || settings.device == "cuda" => Finding::fails(
            CHECK,
            format!("{}: the server does not start", none.reason),
            "mend that, or serve on the CPU: engine.device = \"cpu\"",
        ),
        Err(none) => Finding::ok(CHECK, format!("the CPU: {}", none.reason)),
    }
}
