//! Values of flags: numbers, shares and times as people type them.

use std::time::Duration;

pub fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it must be a number".to_owned())?;
    let usable = number.is_finite() && (0.001..=1e6).contains(&number);
    if usable { Ok(number) } else { Err("it must be from 0.001 to 1000000".to_owned()) }
}

pub fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

/// `90`, `90s`, `10m`, `2h`.
pub fn time(text: &str) -> Result<Duration, String> {
    let unit = [("s", 1u64), ("m", 60), ("h", 3600)].into_iter().find(|(unit, _)| text.ends_with(unit));
    let (digits, seconds) = match unit {
        Some((unit, seconds)) => (&text[..text.len() - unit.len()], seconds),
        None => (text, 1),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).filter(|n| *n <= 7 * 86_400);
    number
        .map(Duration::from_secs)
        .ok_or_else(|| "it must be a time of at most a week, like 90s, 10m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_limits() {
        let seconds = |text| time(text).map(|time| time.as_secs());
        assert_eq!(
            (seconds("90"), seconds("90s"), seconds("10m"), seconds("2h")),
            (Ok(90), Ok(90), Ok(600), Ok(7200))
        );
        for wrong in ["", "s", "-1", "1.5m", "10d", "99999999999999999999m", "169h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert!(positive("0").is_err() && positive("nan").is_err() && positive("7.5") == Ok(7.5));
        assert!(share("1.01").is_err() && share("NaN").is_err() && share("0") == Ok(0.0));
    }
}
