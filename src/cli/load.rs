//! Models from settings to engines: which checkpoint a name means, what it needs, reading it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use hearth_kernels::Context;
use hearth_kernels::paged::BLOCK;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::decoder::{Decoder, Options};
use hearth_models::device;
use hearth_models::memory::{Memory, fit};

use super::device::{Place, Spot, spread};
use super::packing::{Packing, lost_on_a_gpu};
use super::terminal::Progress;
use super::{CliError, Common, Exit};
use crate::config::entries::name_of;
use crate::config::keys::size as parse_size;
use crate::config::{Layers, ModelEntry, Origin, Settings, UpstreamEntry, models_dir};
use crate::engine::device::OnDevice;
use crate::engine::executor::Executor;
use crate::engine::handle::{Config, Engine};
use crate::engine::local::Local;
use crate::engine::replicas::Replicas;
use crate::nearest::nearest;
use crate::openai::answers::now;
use crate::served::Served;
use crate::served::family::Family;
use crate::store::{self, Store};
use crate::text::{Text, TextFiles};
use crate::upstream;

/// The name of the model inside the binary, if there is one.
#[cfg(feature = "ember")]
pub const BUILT_IN: Option<&str> = Some(hearth_models::ember::NAME);
#[cfg(not(feature = "ember"))]
pub const BUILT_IN: Option<&str> = None;

/// Whole contexts for which there is room by default; answers share it, so many more can be in the making.
const CONTEXTS: usize = 8;

/// Which models, and how they are run.
#[derive(Args, Clone, Default)]
pub struct ModelFlags {
    /// A checkpoint's directory, NAME=DIR, or the name of a configured or built-in model; may be repeated
    #[arg(long = "model", value_name = "DIR|NAME")]
    models: Vec<String>,
    /// What computes: cpu, cuda, or auto, the GPU if there is one [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Packs weights at load: on the CPU q8_0, q4_k or q6_k, on a GPU int8, fp8 or int4
    #[arg(long, value_name = "TYPE", value_parser = ["none", "q8_0", "q4_k", "q6_k", "int8", "fp8", "int4"])]
    quantize: Option<String>,
    /// Tokens of prompt and answer at most [default: the checkpoint's own]
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Memory for keys and values, like 2GiB [default: room for several whole contexts]
    #[arg(long, value_name = "SIZE")]
    kv: Option<String>,
}

impl ModelFlags {
    /// The models that are named, as they were typed.
    pub fn named(&self) -> &[String] {
        &self.models
    }

    /// The same flags for another process.
    pub fn arguments(&self) -> Vec<OsString> {
        let context = self.context.map(|tokens| tokens.to_string());
        let models = self.models.iter().map(|model| ("--model", Some(model)));
        let flags = [
            ("--device", self.device.as_ref()),
            ("--threads", self.threads.as_ref()),
            ("--quantize", self.quantize.as_ref()),
            ("--context", context.as_ref()),
            ("--kv", self.kv.as_ref()),
        ];
        let given = models.chain(flags).filter_map(|(flag, value)| Some([flag.into(), value?.into()]));
        given.flatten().collect()
    }

    /// Puts the flags over the other layers. Without any model the built-in one is served.
    pub fn apply(&self, layers: &mut Layers) -> Result<(), CliError> {
        for (flag, name, value) in
            [("--device", "engine.device", &self.device), ("--threads", "engine.threads", &self.threads)]
        {
            if let Some(value) = value {
                layers.flag(flag, name, value.clone())?;
            }
        }
        if !self.models.is_empty() {
            let named = self.models.iter().map(|m| entry(m, layers)).collect::<Result<Vec<_>, _>>()?;
            if let Some(twice) =
                named.iter().enumerate().find(|(i, m)| named[..*i].iter().any(|o| o.name == m.name))
            {
                let what = format!("two models are named {}", twice.1.name);
                return Err(CliError::new(Exit::Usage, what).fix("name one of them: --model NAME=DIR"));
            }
            layers.only(named);
        } else if layers.models().is_empty() && layers.upstreams().is_empty() {
            layers.only(vec![the_built_in()?]);
        }
        let kv = match &self.kv {
            None => None,
            Some(text) => Some(parse_size(text).ok_or_else(|| {
                CliError::new(Exit::Usage, format!("--kv is {text:?}"))
                    .fix("give a size, like 512MiB or 8GiB")
            })?),
        };
        for model in layers.models_mut() {
            if let Some(quantize) = &self.quantize {
                model.quantize = Some(quantize.clone()).filter(|q| q != "none");
            }
            model.context = self.context.unwrap_or(model.context);
            model.kv = kv.unwrap_or(model.kv);
        }
        Ok(())
    }
}

/// The model of somebody who has configured none.
fn the_built_in() -> Result<ModelEntry, CliError> {
    BUILT_IN.map(built_in).ok_or_else(|| {
        CliError::new(Exit::Model, "no model is configured and none is built in").fix("give --model DIR")
    })
}

fn built_in(name: &str) -> ModelEntry {
    ModelEntry {
        name: name.to_owned(),
        path: None,
        quantize: None,
        aliases: Vec::new(),
        family: None,
        context: 0,
        kv: 0,
        fp8_kv: false,
        replicas: 0,
        origin: Origin::Default,
    }
}

/// A checkpoint's directory under a name.
pub fn at(name: String, path: &Path) -> ModelEntry {
    ModelEntry { path: Some(path.to_owned()), origin: Origin::Flag("--model".to_owned()), ..built_in(&name) }
}

/// What a `--model` means.
fn entry(text: &str, layers: &Layers) -> Result<ModelEntry, CliError> {
    if let Some((name, path)) =
        text.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains('/'))
    {
        return Ok(at(name.to_owned(), Path::new(path)));
    }
    if let Some(known) = layers.models().iter().find(|m| m.name == text) {
        return Ok(known.clone());
    }
    let path = Path::new(text);
    if path.is_dir() {
        return Ok(at(name_of(path), path));
    }
    if BUILT_IN == Some(text) {
        return Ok(built_in(text));
    }
    let store = Store::at(models_dir(layers));
    if let Some(path) = store.directory(text) {
        return Ok(at(text.to_owned(), &path));
    }
    let imported = store.names().unwrap_or_default();
    let mut known: Vec<&str> = layers.models().iter().map(|m| m.name.as_str()).collect();
    known.extend(imported.iter().map(String::as_str));
    known.extend(BUILT_IN);
    let fix = format!("give a checkpoint's directory, or one of {}", known.join(", "));
    Err(CliError::new(Exit::Model, format!("there is no model {text}")).fix(fix))
}

/// Loads every configured model and starts its engine. What all of them need is summed up before a weight is read.
pub fn all(settings: &Settings) -> Result<Vec<Served>, CliError> {
    if settings.models.is_empty() {
        return Ok(Vec::new());
    }
    let plan = Plan::new(settings)?;
    for spot in &plan.spots {
        eprintln!("device: {}", spot.said);
    }
    for (model, at) in plan.opened.iter().zip(&plan.spread) {
        let replicas = if at.len() > 1 { format!(", {} replicas, each", at.len()) } else { String::new() };
        eprintln!("{}{replicas}\n{}", model.entry.name, model.memory);
    }
    plan.fits()?;
    let Plan { spots, spread, opened } = plan;
    let start =
        |(model, at): (Opened<'_>, &Vec<usize>)| model.start(settings, at.iter().map(|spot| &spots[*spot]));
    opened.into_iter().zip(&spread).map(start).collect()
}

/// Every configured model, looked at and not read yet, and where each will be.
pub struct Plan<'a> {
    spots: Vec<Spot>,
    spread: Vec<Vec<usize>>,
    opened: Vec<Opened<'a>>,
}

impl<'a> Plan<'a> {
    pub fn new(settings: &'a Settings) -> Result<Self, CliError> {
        let spots = Spot::all(settings)?;
        let spread = spread(&settings.models, &spots)?;
        let on = |spot: usize| spread.iter().flatten().filter(|s| **s == spot).count() as u64;
        let mut opened = Vec::new();
        for (entry, at) in settings.models.iter().zip(&spread) {
            // Replicas are alike, so the one with the least room decides.
            let share = at.iter().map(|spot| spots[*spot].available.bytes / on(*spot)).min();
            let share = share.expect("bug: a model without a replica");
            opened.push(Opened::new(entry, settings, share, &spots[at[0]].place)?);
        }
        Ok(Self { spots, spread, opened })
    }

    /// What each model takes, for each of its replicas.
    pub fn sums(&self) -> impl Iterator<Item = (&str, &Memory, usize)> {
        self.opened.iter().zip(&self.spread).map(|(m, at)| (m.entry.name.as_str(), &m.memory, at.len()))
    }

    /// Whether each place holds what is planned for it.
    pub fn fits(&self) -> Result<(), CliError> {
        for (index, spot) in self.spots.iter().enumerate() {
            let here = self.opened.iter().zip(&self.spread).flat_map(|(model, at)| {
                at.iter().filter(|spot| **spot == index).map(|_| (model.entry.name.as_str(), &model.memory))
            });
            fit(&here.collect::<Vec<_>>(), &spot.available)
                .map_err(|e| CliError::new(Exit::Memory, e.to_string()))?;
        }
        Ok(())
    }
}

/// The models of the upstreams. No connection is made.
pub fn upstreams(settings: &Settings) -> Result<Vec<upstream::Model>, CliError> {
    let models = settings.upstreams.iter().map(upstream::Model::all).collect::<Result<Vec<_>, _>>()?;
    Ok(models.into_iter().flatten().collect())
}

/// Whether every name and alias means one model, and the default models are among them.
pub fn check_names(settings: &Settings) -> Result<(), CliError> {
    let of_model = |m: &ModelEntry| (vec![m.name.clone()], m.aliases.clone(), m.origin.clone());
    let of_upstream = |u: &UpstreamEntry| {
        (u.models.iter().map(|(here, _)| here.clone()).collect(), u.aliases.clone(), u.origin.clone())
    };
    let entries = settings.models.iter().map(of_model).chain(settings.upstreams.iter().map(of_upstream));
    let mut known: Vec<String> = Vec::new();
    for (names, aliases, origin) in entries {
        for name in names.into_iter().chain(aliases) {
            if known.contains(&name) {
                let what = format!("two models are named {name}");
                let fix = "change one of the names, aliases or `models` of the upstreams";
                return Err(CliError::new(Exit::Config, what).at(origin.to_string()).fix(fix));
            }
            known.push(name);
        }
    }
    for (setting, name, origin) in &settings.defaults {
        if !name.is_empty() && !known.contains(name) {
            let fix = match nearest(name, known.iter().map(String::as_str)) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("the models are {}", known.join(", ")),
            };
            let what = format!("`{setting}` is {name:?}, and no model has that name");
            return Err(CliError::new(Exit::Config, what).at(origin.to_string()).fix(fix));
        }
    }
    Ok(())
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

/// The processor's cores, as many as the settings allow.
pub(super) fn processor(settings: &Settings) -> Result<Context, CliError> {
    let cores = match settings.threads {
        0 => None,
        n => {
            let mut cores = allowed_cores();
            if n > cores.len() {
                let what = format!("{n} threads are asked for; this process may use {} cores", cores.len());
                return Err(CliError::new(Exit::Config, what).fix("lower --threads or engine.threads"));
            }
            cores.truncate(n);
            Some(cores)
        }
    };
    Context::cpu(cores).map_err(|e| CliError::new(Exit::Device, e.to_string()))
}

/// The cores that this process may use.
fn allowed_cores() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or("0");
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// A model that was looked at and not read yet.
struct Opened<'a> {
    entry: &'a ModelEntry,
    checkpoint: Checkpoint,
    text: Text,
    options: Options,
    packing: Packing,
    memory: Memory,
    notice: Option<String>,
}

impl<'a> Opened<'a> {
    /// `share` is the memory that this model may count on when the settings do not say.
    fn new(entry: &'a ModelEntry, settings: &Settings, share: u64, place: &Place) -> Result<Self, CliError> {
        as_imported(entry, settings)?;
        let (checkpoint, files, notice) = files(entry)?;
        let spec = checkpoint.spec();
        let (own, vocab) = (spec.context, spec.vocab as u32);
        let context = match entry.context as usize {
            0 => own,
            asked if asked <= own => asked,
            asked => {
                let what = format!(
                    "model {}: a context of {asked} tokens is asked for; the checkpoint's own is {own}",
                    entry.name
                );
                return Err(CliError::new(Exit::Config, what)
                    .at(entry.origin.to_string())
                    .fix("lower it or leave it out"));
            }
        };
        let text = Text::new(&files, vocab, context as u32, &spec.eos)
            .map_err(|e| CliError::new(Exit::Model, format!("model {}: {e}", entry.name)))?;
        if text.tokenizer.vocab() > vocab {
            let what = format!(
                "model {}: its tokenizer has {} tokens and its embedding {vocab}; the two do not belong together",
                entry.name,
                text.tokenizer.vocab(),
            );
            return Err(CliError::new(Exit::Model, what).fix("copy the checkpoint again"));
        }
        let packing = Packing::of(entry, settings, matches!(place, Place::Gpu(_)), spec)?;
        if let (Place::Gpu(_), Some(lost)) = (place, lost_on_a_gpu(checkpoint.main_dtype().as_str())) {
            eprintln!("{}: {lost}", entry.name);
        }
        let step_tokens = if settings.step_tokens > 0 { settings.step_tokens } else { place.step_tokens() };
        // A strict step keeps room for a block of a prompt beside what draws.
        let spare = if settings.strict { BLOCK } else { 0 };
        let rows = (step_tokens.max(settings.sequences) as usize).max(settings.sequences as usize + spare);
        let mut options = Options {
            quantize: packing.processor,
            rows,
            logits: match place {
                Place::Processor(_) => rows,
                // Each has a place in two copies of logits.
                Place::Gpu(_) => (settings.sequences as usize + spare).max(64).min(rows),
            },
            context,
            blocks: 1,
            kv: None,
        };
        let sum = |options: &Options| match place {
            Place::Processor(_) => Memory::of(&checkpoint, options),
            Place::Gpu(_) => Memory::on_device(&checkpoint, &packing.on_gpu(options)),
        };
        let one = sum(&options);
        let whole = context.div_ceil(BLOCK);
        let room = one.blocks_within(share) as usize;
        options.blocks = match (entry.kv, place) {
            // Half of what is left, so that a machine is not filled to the brim unasked; one context at least.
            (0, Place::Processor(_)) => {
                let wanted = whole * CONTEXTS.min(settings.sequences as usize);
                wanted.min(room / 2).max(whole)
            }
            // All of it, up to what the sequences can ever need: nobody else wants it.
            (0, Place::Gpu(_)) => room.min(whole * settings.sequences as usize).max(whole),
            (bytes, _) => (bytes / one.block_bytes).max(1) as usize,
        };
        let memory = sum(&options);
        Ok(Self { entry, checkpoint, text, options, packing, memory, notice })
    }

    /// Reads the weights for every replica and starts its engine.
    fn start<'s>(
        self,
        settings: &Settings,
        spots: impl ExactSizeIterator<Item = &'s Spot>,
    ) -> Result<Served, CliError> {
        let several = spots.len() > 1;
        let mut engines = Vec::with_capacity(spots.len());
        for (number, spot) in spots.enumerate() {
            let name =
                if several { format!("{} {number}", self.entry.name) } else { self.entry.name.clone() };
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
            let engine = Engine::start(self.executor(&name, &spot.place)?, config).map_err(|e| {
                CliError::new(Exit::Failed, format!("the engine's thread cannot be started: {e}"))
            })?;
            engines.push(engine);
        }
        let own = || Family::of(self.checkpoint.spec().family, &self.text, self.entry.path.is_none());
        let family = self.entry.family.unwrap_or_else(own);
        Ok(Served {
            name: self.entry.name.clone(),
            aliases: self.entry.aliases.clone(),
            family,
            text: Arc::new(self.text),
            engine: Replicas::new(engines),
            created: now(),
            notice: self.notice,
        })
    }

    /// The weights, where they are computed with.
    fn executor(&self, name: &str, place: &Place) -> Result<Box<dyn Executor>, CliError> {
        let bytes = self.checkpoint.bytes();
        let progress = Progress::new(name, bytes);
        let failed = |e: String| CliError::new(Exit::Model, format!("model {}: {e}", self.entry.name));
        let executor: Box<dyn Executor> = match place {
            Place::Processor(context) => {
                let decoder =
                    Decoder::load(context, &self.checkpoint, &self.options, &mut |done| progress.at(done));
                Box::new(Local::new(context, decoder.map_err(|e| failed(e.to_string()))?))
            }
            Place::Gpu(device) => {
                let options = self.packing.on_gpu(&self.options);
                let decoder =
                    device::Decoder::load(device, &self.checkpoint, &options, &mut |done| progress.at(done));
                let decoder = decoder.map_err(|e| failed(e.to_string()))?;
                Box::new(OnDevice::new(device, decoder).map_err(|e| failed(e.to_string()))?)
            }
        };
        progress.done(bytes);
        Ok(executor)
    }
}

/// An imported model must be what was imported.
fn as_imported(entry: &ModelEntry, settings: &Settings) -> Result<(), CliError> {
    let Some(path) = &entry.path else { return Ok(()) };
    let store = Store::at(&settings.models_dir);
    if let Some(report) = store::at_load(&store, path, settings.verify)? {
        let read = hearth_models::memory::Size(report.bytes);
        eprintln!("{}: {read} compared with the sums of its import", entry.name);
    }
    Ok(())
}

/// A checkpoint's files, from its directory or from the binary, and what to say about it.
fn files(entry: &ModelEntry) -> Result<(Checkpoint, TextFiles, Option<String>), CliError> {
    let Some(path) = &entry.path else { return built_in_files(&entry.name) };
    let failed =
        |e: String| CliError::new(Exit::Model, e).at(format!("model {} ({})", entry.name, entry.origin));
    let checkpoint = Checkpoint::open(path).map_err(|e| failed(e.to_string()))?;
    let files = TextFiles::read(path).map_err(|e| failed(e.to_string()))?;
    Ok((checkpoint, files, None))
}

#[cfg(feature = "ember")]
fn built_in_files(name: &str) -> Result<(Checkpoint, TextFiles, Option<String>), CliError> {
    use hearth_models::ember;
    if name != ember::NAME {
        return Err(not_built_in(name));
    }
    let checkpoint = ember::checkpoint().map_err(|e| CliError::new(Exit::Model, e.to_string()))?;
    let files = TextFiles {
        tokenizer: ember::TOKENIZER.to_vec(),
        tokenizer_config: Some(ember::TOKENIZER_CONFIG.to_vec()),
        chat_template: None,
    };
    let notice = "ember-demo is the small built-in model: it finishes code-like text for trying things out and is not \
                  useful for work; serve a real one with --model DIR";
    Ok((checkpoint, files, Some(notice.to_owned())))
}

#[cfg(not(feature = "ember"))]
fn built_in_files(name: &str) -> Result<(Checkpoint, TextFiles, Option<String>), CliError> {
    Err(not_built_in(name))
}

fn not_built_in(name: &str) -> CliError {
    CliError::new(Exit::Model, format!("no model named {name} is built in")).fix(format!(
        "give it a `path`, or import it: hearth models import DIR --name {name} --accept-license"
    ))
}

/// The family of a model, of which nothing but the small files is read. `None`: they cannot be.
pub fn family(entry: &ModelEntry) -> Option<Family> {
    let of_checkpoint = || {
        let (checkpoint, files, _) = files(entry).ok()?;
        let spec = checkpoint.spec();
        let text = Text::new(&files, spec.vocab as u32, spec.context as u32, &spec.eos).ok()?;
        Some(Family::of(spec.family, &text, entry.path.is_none()))
    };
    entry.family.or_else(of_checkpoint)
}

/// The directory of a model, for messages.
pub fn place(entry: &ModelEntry) -> String {
    entry.path.as_ref().map_or("built in".to_owned(), |p: &PathBuf| p.display().to_string())
}
