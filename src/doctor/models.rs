//! The models that the settings name: whether each can be read, and whether all of them have room.

use hearth_models::memory::Size;

use super::{Finding, Verdict};
use crate::config::Settings;
use crate::fit::{Plan, Unfit};

/// A running server has the room already, so it is not asked for a second time.
pub fn models(settings: &Settings, running: bool) -> Vec<Finding> {
    let plan = match Plan::new(settings) {
        Ok(plan) => plan,
        Err(error) => {
            let fix = error.fix().unwrap_or("see `hearth models inspect` for that model".to_owned());
            return vec![Finding::fails("model", said(&error), fix).effect("the server does not start")];
        }
    };
    let mut findings: Vec<Finding> = plan
        .sums()
        .map(|(name, memory, replicas)| {
            let tokens = memory.kv_bytes() / memory.token_bytes();
            let times = if replicas > 1 { format!("{replicas} times ") } else { String::new() };
            Finding::ok(
                "model",
                format!(
                    "{name}: {times}{} of weights, {} for keys and values of {tokens} tokens, {} of buffers",
                    Size(memory.weight_bytes()),
                    Size(memory.kv_bytes()),
                    Size(memory.rope + memory.step),
                ),
            )
        })
        .collect();
    findings.extend(plan.remarks().map(|remark| Finding::new("model", Verdict::Note, remark)));
    if !running {
        findings.push(match plan.fits() {
            Ok(()) => Finding::ok("fit", "all models have room"),
            Err(error) => {
                let fix = "serve fewer models, lower `kv` or `context`, or pack the weights (`quantize`)";
                Finding::fails("fit", error.to_string().lines().next().unwrap_or_default(), fix)
                    .effect("the server does not start")
            }
        });
    }
    findings
}

/// What is wrong and where.
fn said(error: &Unfit) -> String {
    let place = error.place().map(|place| format!(" ({place})")).unwrap_or_default();
    format!("{error}{place}")
}
