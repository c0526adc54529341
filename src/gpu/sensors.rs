//! What the GPUs of this host say of themselves while they work: heat, power, clocks, memory, and what holds them back.
//!
//! The driver's management library is opened when the server starts, and on a host without it there is nothing to tell.
//! A thread of its own reads it: a GPU that has fallen off its bus can hold a call for ever, and then no request and no
//! scrape waits for it; what was read before grows old and is not told any more.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use serde::{Deserialize, Serialize};

/// As every driver installs it; the name without a number comes with headers, which a server has not.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// Between two readings. One takes milliseconds of a thread that does nothing else.
const PACE: Duration = Duration::from_secs(2);
/// What is older is not told.
const STALE: Duration = Duration::from_secs(15);

/// What can hold a GPU back, as it is called here, and the driver's words for it.
pub const REASONS: [(&str, ThrottleReasons); 4] = [
    ("heat", ThrottleReasons::SW_THERMAL_SLOWDOWN.union(ThrottleReasons::HW_THERMAL_SLOWDOWN)),
    ("power_limit", ThrottleReasons::SW_POWER_CAP),
    ("power_brake", ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN),
    ("hardware", ThrottleReasons::HW_SLOWDOWN),
];

/// One GPU. What it does not measure is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Its number among all GPUs that the driver shows.
    pub gpu: u32,
    pub name: String,
    pub temperature_celsius: Option<u32>,
    pub power_watts: Option<f64>,
    pub power_limit_watts: Option<f64>,
    /// Of the multiprocessors.
    pub clock_mhz: Option<u32>,
    pub memory_used: Option<u64>,
    pub memory: Option<u64>,
    /// Names of [`REASONS`]; `power_limit` is what a GPU at full load says.
    pub throttled: Vec<String>,
}

impl Reading {
    /// One line for a person.
    pub fn words(&self) -> String {
        let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
        let mut parts = Vec::new();
        parts.extend(self.temperature_celsius.map(|degrees| format!("{degrees} °C")));
        parts.extend(self.power_watts.map(|watts| match self.power_limit_watts {
            Some(limit) => format!("{watts:.0} of {limit:.0} W"),
            None => format!("{watts:.0} W"),
        }));
        parts.extend(self.clock_mhz.map(|mhz| format!("{mhz} MHz")));
        parts.extend(
            self.memory_used
                .zip(self.memory)
                .map(|(used, all)| format!("{:.1} of {:.1} GiB", gib(used), gib(all))),
        );
        if parts.is_empty() {
            parts.push("it measures nothing".to_owned());
        }
        parts.join(" · ")
    }

    /// What holds it back and should not.
    pub fn troubles(&self) -> impl Iterator<Item = &str> {
        self.throttled.iter().map(String::as_str).filter(|reason| *reason != "power_limit")
    }
}

/// Whoever can read the GPUs of a host.
trait Sensors: Send {
    fn read(&self) -> Vec<Reading>;
}

impl Sensors for Nvml {
    fn read(&self) -> Vec<Reading> {
        (0..self.device_count().unwrap_or(0)).filter_map(|gpu| one(self, gpu).ok()).collect()
    }
}

fn one(nvml: &Nvml, gpu: u32) -> Result<Reading, NvmlError> {
    let device = nvml.device_by_index(gpu)?;
    let memory = device.memory_info().ok();
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let held = device.current_throttle_reasons().unwrap_or(ThrottleReasons::empty());
    Ok(Reading {
        gpu,
        name: device.name()?,
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_watts: device.power_usage().ok().map(watts),
        power_limit_watts: device.enforced_power_limit().ok().map(watts),
        clock_mhz: device.clock_info(Clock::SM).ok(),
        memory_used: memory.as_ref().map(|memory| memory.used),
        memory: memory.as_ref().map(|memory| memory.total),
        throttled: REASONS
            .iter()
            .filter(|(_, flags)| held.intersects(*flags))
            .map(|(name, _)| (*name).to_owned())
            .collect(),
    })
}

/// The last readings. Cheap to clone; the default is a host without a GPU.
#[derive(Clone, Debug, Default)]
pub struct Gpus {
    latest: Arc<Mutex<Option<Look>>>,
}

/// All GPUs at one moment.
#[derive(Debug)]
struct Look {
    at: Instant,
    readings: Vec<Reading>,
}

impl Gpus {
    /// Begins to read this host's, if the driver's library is here.
    pub fn watch() -> Self {
        match Nvml::builder().lib_path(OsStr::new(LIBRARY)).init() {
            Ok(nvml) => Self::of(nvml),
            Err(error) => {
                tracing::debug!("no readings of GPUs: {error}");
                Self::default()
            }
        }
    }

    fn of(sensors: impl Sensors + 'static) -> Self {
        let gpus = Self::default();
        gpus.keep(sensors.read());
        let latest = Arc::downgrade(&gpus.latest);
        let watching = std::thread::Builder::new().name("gpus".to_owned()).spawn(move || {
            // Ends with the last who asks.
            while let Some(latest) = latest.upgrade() {
                Self { latest }.keep(sensors.read());
                std::thread::sleep(PACE);
            }
        });
        if let Err(error) = watching {
            tracing::warn!("GPUs are not watched: no thread: {error}");
        }
        gpus
    }

    fn keep(&self, readings: Vec<Reading>) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Look { at: Instant::now(), readings });
    }

    /// Empty: there are none, or the driver does not answer.
    pub fn now(&self) -> Vec<Reading> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = latest.as_ref().filter(|look| look.at.elapsed() < STALE);
        fresh.map(|look| look.readings.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scripted(Vec<Reading>);

    impl Sensors for Scripted {
        fn read(&self) -> Vec<Reading> {
            self.0.clone()
        }
    }

    fn hot() -> Reading {
        Reading {
            name: "H100".into(),
            temperature_celsius: Some(91),
            power_watts: Some(402.4),
            power_limit_watts: Some(700.0),
            clock_mhz: Some(1200),
            memory_used: Some(60 << 30),
            memory: Some(80 << 30),
            throttled: vec!["heat".into(), "power_limit".into()],
            ..Reading::default()
        }
    }

    #[test]
    fn a_reading_is_one_line_and_what_is_not_measured_is_left_out() {
        assert_eq!(hot().words(), "91 °C · 402 of 700 W · 1200 MHz · 60.0 of 80.0 GiB");
        let vague = Reading { power_watts: Some(30.0), ..Reading::default() };
        assert_eq!(vague.words(), "30 W");
        assert_eq!(Reading::default().words(), "it measures nothing");
        assert_eq!(
            hot().troubles().collect::<Vec<_>>(),
            ["heat"],
            "a limit of power is what full load looks like"
        );
    }

    #[test]
    fn readings_are_told_until_they_are_old() {
        assert_eq!(Gpus::default().now(), []);
        let gpus = Gpus::of(Scripted(vec![hot()]));
        assert_eq!(gpus.now(), [hot()]);
        let old = Gpus::default();
        let Some(before) = Instant::now().checked_sub(STALE) else { return };
        *old.latest.lock().unwrap() = Some(Look { at: before, readings: vec![hot()] });
        assert_eq!(old.now(), [], "a driver that stopped answering is not a cool GPU");
    }
}
