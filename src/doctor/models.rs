//! The models that the settings name: whether each can be read, and whether all of them have room.

use hearth_models::memory::Size;

use super::{Finding, Verdict};
use crate::config::Settings;
use crate::fit::{Plan, Unfit};
use crate::store::{Origin, Papers};

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
    findings.extend(plan.opened.iter().flat_map(|model| provenance(&model.entry.name, &model.papers)));
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

/// Whether a model is what was imported, and may be used for work. A plan compares as much of it as a start does.
fn provenance(name: &str, papers: &Papers) -> Vec<Finding> {
    const CHECK: &str = "origin";
    let what = format!("{name}: {}; {}", papers.provenance(), papers.licence());
    let note = |fix: String| Finding { fix: Some(fix), ..Finding::new(CHECK, Verdict::Note, what.clone()) };
    let origin = match (papers.origin, &papers.compared) {
        (Origin::Store, None) => note(format!(
            "`hearth models verify {name}` reads it now; models.verify = \"sample\" does at every start"
        )),
        (Origin::Directory, _) => note("`hearth models import DIR` keeps sums to compare it with".to_owned()),
        _ => Finding::ok(CHECK, what),
    };
    let licence = (papers.production == Some(false)).then(|| {
        let what = format!("{name}: its licence, {}, does not allow production", papers.licence);
        let fix = "serve users with another model, or agree with its publisher";
        Finding::warns("licence", what, fix).effect("whoever works with it breaks its licence")
    });
    std::iter::once(origin).chain(licence).collect()
}
