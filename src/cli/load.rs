//! Models from a plan to engines: reading the weights, and starting what serves them.

use std::sync::Arc;

use hearth_models::decoder::Decoder;
use hearth_models::device;
use hearth_models::memory::Size;

use super::flags::{ModelFlags, the_built_in};
use super::terminal::Progress;
use super::{CliError, Common, Exit};
use crate::config::Settings;
use crate::engine::executor::Executor;
use crate::engine::handle::{Config, Engine};
use crate::engine::local::Local;
use crate::engine::replicas::Replicas;
use crate::engine::room::{Room, RoomError};
use crate::fit::{Opened, Place, Plan, Spot};
use crate::openai::answers::now;
use crate::served::Served;
use crate::served::family::Family;
use crate::upstream;

/// Loads every configured model and starts its engine. What all of them need is summed up before a weight is read.
pub fn all(settings: &Settings) -> Result<Vec<Served>, CliError> {
    if settings.models.is_empty() {
        return Ok(Vec::new());
    }
    let plan = Plan::new(settings)?;
    plan.remarks().for_each(|remark| eprintln!("{remark}"));
    for spot in &plan.spots {
        eprintln!("device: {}", spot.said);
    }
    for (model, at) in plan.opened.iter().zip(&plan.spread) {
        if let Some(compared) = &model.papers.compared {
            eprintln!("{}: {} compared with the sums of its import", model.entry.name, Size(compared.bytes));
        }
        let replicas = if at.len() > 1 { format!(", {} replicas, each", at.len()) } else { String::new() };
        eprintln!("{}{replicas}\n{}", model.entry.name, model.memory);
    }
    plan.fits()?;
    let Plan { spots, spread, opened } = plan;
    let each =
        |(model, at): (Opened<'_>, &Vec<usize>)| start(model, settings, at.iter().map(|spot| &spots[*spot]));
    opened.into_iter().zip(&spread).map(each).collect()
}

/// The models of the upstreams. No connection is made.
pub fn upstreams(settings: &Settings) -> Result<Vec<upstream::Model>, CliError> {
    let models = settings.upstreams.iter().map(upstream::Model::all).collect::<Result<Vec<_>, _>>()?;
    Ok(models.into_iter().flatten().collect())
}

/// The one model of a terminal verb.
pub(super) fn single(flags: &ModelFlags, common: &Common) -> Result<Served, CliError> {
    let mut layers = common.layers()?;
    flags.apply(&mut layers)?;
    if layers.models().is_empty() {
        layers.only(vec![the_built_in()?]);
    }
    let mut settings = Settings::of(&layers)?;
    // One answer at a time: the first model, and no room for others.
    settings.models.truncate(1);
    settings.sequences = 1;
    all(&settings)?.pop().ok_or_else(|| CliError::new(Exit::Model, "no model is configured"))
}

/// Reads the weights for every replica and starts its engine.
fn start<'s>(
    model: Opened<'_>,
    settings: &Settings,
    spots: impl ExactSizeIterator<Item = &'s Spot>,
) -> Result<Served, CliError> {
    let several = spots.len() > 1;
    let mut engines = Vec::with_capacity(spots.len());
    for (number, spot) in spots.enumerate() {
        let name = if several { format!("{} {number}", model.entry.name) } else { model.entry.name.clone() };
        let config = Config {
            // Linux cuts thread names at 15 bytes.
            name: name.chars().take(15).collect(),
            sequences: settings.sequences,
            queue_requests: settings.queue_requests,
            queue_tokens: settings.queue_tokens,
            prefix_cache: settings.prefix_cache,
            arbiter: Some(spot.arbiter.clone()),
            ..Config::default()
        };
        let engine = Engine::start(executor(&model, &name, &spot.place)?, config).map_err(|e| {
            CliError::new(Exit::Failed, format!("the engine's thread cannot be started: {e}"))
        })?;
        engines.push(engine);
    }
    let own = || Family::of(model.checkpoint.spec().family, &model.text, model.entry.path.is_none());
    let family = model.entry.family.unwrap_or_else(own);
    Ok(Served {
        name: model.entry.name.clone(),
        aliases: model.entry.aliases.clone(),
        family,
        text: Arc::new(model.text),
        engine: Replicas::new(engines),
        created: now(),
        notice: model.notice,
        papers: model.papers,
    })
}

/// The weights, where they are computed with.
fn executor(model: &Opened<'_>, name: &str, place: &Place) -> Result<Box<dyn Executor>, CliError> {
    let bytes = model.checkpoint.bytes();
    let progress = Progress::new(name, bytes);
    let failed = |e: String| CliError::new(Exit::Model, format!("model {}: {e}", model.entry.name));
    let executor: Box<dyn Executor> = match place {
        Place::Processor(context) => {
            let decoder =
                Decoder::load(context, &model.checkpoint, &model.options, &mut |done| progress.at(done));
            Box::new(Local::new(context, decoder.map_err(|e| failed(e.to_string()))?))
        }
        Place::Gpu(device) => {
            let options = model.packing.on_gpu(&model.options);
            let load = |options: &_| {
                device::Decoder::load(device, &model.checkpoint, options, &mut |done| progress.at(done))
                    .inspect(|decoder| {
                        if let Some(differs) = decoder.set_aside() {
                            tracing::warn!(model = name, "{differs}");
                        }
                        if let Some(differs) = decoder.unchained() {
                            tracing::warn!(model = name, "{differs}");
                        }
                    })
                    .map_err(Box::new)
            };
            let (executor, room) = Room::make(device, &options, model.wanted, &model.memory, load).map_err(
                |error| match error {
                    RoomError::Full { .. } => {
                        CliError::new(Exit::Memory, format!("model {}: {error}", model.entry.name))
                    }
                    error => failed(error.to_string()),
                },
            )?;
            eprint!("{name}\n{}", room.beside(&model.memory));
            Box::new(executor)
        }
    };
    progress.done(bytes);
    Ok(executor)
}
