//! A model that was looked at and not read yet: what it is made for, and the memory that this takes.

use hearth_kernels::paged::BLOCK;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::decoder::Options;
use hearth_models::memory::Memory;

use super::Unfit;
use super::files::{Files, as_imported, papers};
use super::packing::{Packing, format_of, lost_on_a_gpu};
use super::spot::Place;
use crate::config::{ModelEntry, Settings};
use crate::engine::room::Wanted;
use crate::store::Papers;
use crate::text::Text;

/// Whole contexts for which there is room by default; answers share it, so many more can be in the making.
const CONTEXTS: usize = 8;

/// A model that was looked at and not read yet.
pub struct Opened<'a> {
    pub entry: &'a ModelEntry,
    pub checkpoint: Checkpoint,
    pub text: Text,
    pub options: Options,
    pub packing: Packing,
    /// Blocks of keys and values that are wanted, should the model be served on a GPU: how many fit is measured there.
    pub wanted: Wanted,
    pub memory: Memory,
    pub notice: Option<String>,
    pub papers: Papers,
    /// What whoever runs the server should hear.
    pub remarks: Vec<String>,
}

impl<'a> Opened<'a> {
    /// `share` is the memory that this model may count on when the settings do not say.
    pub fn new(entry: &'a ModelEntry, settings: &Settings, share: u64, place: &Place) -> Result<Self, Unfit> {
        let mut remarks = Vec::new();
        let compared = as_imported(entry, settings)?;
        let Files { checkpoint, text: files, notice } = Files::of(entry)?;
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
                let place = Some(entry.origin.to_string());
                return Err(Unfit::Settings { what, place, fix: "lower it or leave it out".to_owned() });
            }
        };
        let text = Text::new(&files, vocab, context as u32, &spec.eos)
            .map_err(|e| Unfit::model(format!("model {}: {e}", entry.name)))?;
        if text.tokenizer.vocab() > vocab {
            let what = format!(
                "model {}: its tokenizer has {} tokens and its embedding {vocab}; the two do not belong together",
                entry.name,
                text.tokenizer.vocab(),
            );
            let fix = Some("copy the checkpoint again".to_owned());
            return Err(Unfit::Model { what, place: None, fix });
        }
        let packing = Packing::of(entry, settings, matches!(place, Place::Gpu(_)), spec)?;
        if let (Place::Gpu(_), Some(lost)) = (place, lost_on_a_gpu(checkpoint.main_dtype().as_str())) {
            remarks.push(format!("{}: {lost}", entry.name));
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
        let format = format_of(checkpoint.main_dtype().as_str(), entry, matches!(place, Place::Gpu(_)));
        let papers = Papers { format, ..papers(entry, settings, spec, compared.as_ref()) };
        let wanted = match entry.kv {
            0 => Wanted { least: whole, most: whole * settings.sequences as usize, share },
            // As asked, whatever it leaves to the other models: the plan has added them up.
            _ => Wanted { least: options.blocks, most: options.blocks, share: u64::MAX },
        };
        Ok(Self { entry, checkpoint, text, options, packing, wanted, memory, notice, papers, remarks })
    }
}
