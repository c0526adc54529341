//! What fits where: before a weight is read, every configured model is looked at, given its places and summed up.
//!
//! `hearth serve` loads what this says, and doctor tells it without loading anything.

mod files;
mod opened;
mod packing;
mod spot;
mod spread;
mod unfit;

use hearth_models::memory::{Memory, fit};

use crate::config::Settings;
pub use files::{BUILT_IN, built_in_papers, family};
pub use opened::Opened;
pub use spot::{Place, Spot};
use spread::spread;
pub use unfit::Unfit;

/// Every configured model, looked at and not read yet, and where each will be.
pub struct Plan<'a> {
    pub spots: Vec<Spot>,
    /// By model, the spots of its replicas.
    pub spread: Vec<Vec<usize>>,
    pub opened: Vec<Opened<'a>>,
}

impl<'a> Plan<'a> {
    pub fn new(settings: &'a Settings) -> Result<Self, Unfit> {
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

    /// What whoever runs the server should hear of the models.
    pub fn remarks(&self) -> impl Iterator<Item = &str> {
        self.opened.iter().flat_map(|model| model.remarks.iter().map(String::as_str))
    }

    /// Whether each place holds what is planned for it.
    pub fn fits(&self) -> Result<(), Unfit> {
        for (index, spot) in self.spots.iter().enumerate() {
            let here = self.opened.iter().zip(&self.spread).flat_map(|(model, at)| {
                at.iter().filter(|spot| **spot == index).map(|_| (model.entry.name.as_str(), &model.memory))
            });
            fit(&here.collect::<Vec<_>>(), &spot.available)?;
        }
        Ok(())
    }
}
