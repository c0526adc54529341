//! Which model is where.

use super::Unfit;
use super::spot::{Place, Spot};
use crate::config::ModelEntry;

/// Which spots each model has a replica on: as many as it asks for, on those that have the fewest; on all GPUs if it does
/// not say. On the processor replicas share it, which is for trying things out.
pub fn spread(models: &[ModelEntry], spots: &[Spot]) -> Result<Vec<Vec<usize>>, Unfit> {
    let gpus = matches!(spots[0].place, Place::Gpu(_)).then_some(spots.len());
    let wanted: Vec<usize> = models.iter().map(|model| model.replicas as usize).collect();
    spread_over(&wanted, gpus).map_err(|at| {
        let (model, count) = (&models[at], spots.len());
        let what = format!(
            "model {}: {} replicas are asked for; this host has {count} GPUs",
            model.name, wanted[at]
        );
        let fix = format!("lower `replicas` to {count}, or leave it out to have one on every GPU");
        Unfit::Settings { what, place: Some(model.origin.to_string()), fix }
    })
}

/// The same in numbers; the error is the model that asks for too many.
fn spread_over(wanted: &[usize], gpus: Option<usize>) -> Result<Vec<Vec<usize>>, usize> {
    let mut load = vec![0; gpus.unwrap_or(1)];
    let one = |(at, wanted): (usize, &usize)| {
        let count = match (gpus, wanted) {
            (None, _) => return Ok(vec![0; (*wanted).max(1)]),
            (Some(all), 0) => all,
            (Some(all), _) if *wanted > all => return Err(at),
            (Some(_), _) => *wanted,
        };
        let mut order: Vec<usize> = (0..load.len()).collect();
        order.sort_by_key(|spot| (load[*spot], *spot));
        order.truncate(count);
        order.sort_unstable();
        order.iter().for_each(|spot| load[*spot] += 1);
        Ok(order)
    };
    wanted.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_does_not_say_is_on_every_gpu_and_once_on_the_processor() {
        assert_eq!(spread_over(&[0], Some(3)), Ok(vec![vec![0, 1, 2]]));
        assert_eq!(spread_over(&[0, 0], None), Ok(vec![vec![0], vec![0]]));
    }

    #[test]
    fn models_with_fewer_replicas_keep_out_of_each_others_way() {
        assert_eq!(spread_over(&[1, 1, 1], Some(2)), Ok(vec![vec![0], vec![1], vec![0]]));
        assert_eq!(spread_over(&[2, 1, 1], Some(4)), Ok(vec![vec![0, 1], vec![2], vec![3]]));
        assert_eq!(spread_over(&[1, 0, 1], Some(2)), Ok(vec![vec![0], vec![0, 1], vec![1]]));
    }

    #[test]
    fn more_replicas_than_gpus_are_refused_and_on_the_processor_they_share_it() {
        assert_eq!(spread_over(&[1, 3], Some(2)), Err(1));
        assert_eq!(spread_over(&[3], None), Ok(vec![vec![0, 0, 0]]));
    }
}
