//! Experts whose weights have 8 or 4 bits: up to eight rows by the way of few rows (`cuda/expert_weightonly.cu`), any number
//! of rows grouped by expert on the tensor cores (`cuda/expert_narrow.cu`).

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::expert_product::tiles;
use super::experts::{DirectRows, Shape};
use super::launch::Launch;
use super::narrow::TILES;
use super::product::{CHUNK, EPILOGUES, Finish};
use super::weightonly::{Format, MAX_ROWS, PANEL, Weight};
use crate::gate::Activation;

/// Panels of a block of gate and up; a block of down has one.
const GATE_PANELS: usize = 2;

#[derive(Debug)]
pub struct PackedExperts {
    device: Device,
    format: Format,
    gate_up: [Kernel; 2],
    down: Kernel,
    /// By tile and epilogue; empty for a tile that the device has no room for.
    grouped: Vec<Vec<Kernel>>,
}

impl PackedExperts {
    pub fn load(device: &Device, format: Format) -> Result<Self, DeviceError> {
        let direct = |what: &str| device.kernel(&format!("expert_weightonly_{}_{what}", format.name()), 0);
        let mut grouped = Vec::new();
        for tile in &TILES {
            let name = |epilogue: &&str| {
                // Nothing is added to what is there: a row's experts are weighted first.
                let epilogue = if *epilogue == "add" { "set" } else { epilogue };
                let name = format!("expert_narrow_{}_{}_{epilogue}", format.name(), tile.name);
                device.kernel(&name, tile.shared(format))
            };
            grouped.push(match EPILOGUES.iter().map(name).collect() {
                // Devices before and beside the A100 have 99 KiB a block.
                Err(DeviceError::Failed { .. }) if tile.rows == 128 => Vec::new(),
                found => found?,
            });
        }
        Ok(Self {
            gate_up: [direct("silu")?, direct("gelu")?],
            down: direct("down")?,
            grouped,
            format,
            device: device.clone(),
        })
    }

    /// Panics unless `w` has the weights of so many experts, `[n, k]` each.
    fn check(&self, w: &Weight, experts: usize, (n, k): (usize, usize)) {
        let (panels, (bytes, scale_bytes)) = (experts * n.div_ceil(PANEL), self.format.panel_bytes(k));
        assert!((w.format, w.n, w.k) == (self.format, n, k), "bug: other weights than {n} x {k}: {w:?}");
        assert!(
            n.is_multiple_of(CHUNK) && k.is_multiple_of(CHUNK),
            "bug: {n} x {k} numbers are no whole chunks"
        );
        assert!(
            w.numbers.len() >= panels * bytes && w.scales.len() >= panels * scale_bytes,
            "bug: a buffer is smaller than its shape"
        );
    }

    /// What [`Experts::direct`](super::experts::Experts::direct) does; the sizes of all buffers but the weights' are its.
    pub(super) fn direct(
        &self,
        rows: DirectRows<'_>,
        gate_up: &Weight,
        down: &Weight,
        activation: Activation,
    ) -> Result<(), DeviceError> {
        let DirectRows { bucket, count, chosen, weights, x, middle, residual, shape } = rows;
        let Shape { experts, top_k, width, ffn } = shape;
        assert!(bucket <= MAX_ROWS, "bug: {bucket} rows one by one");
        self.check(gate_up, experts, (2 * ffn, width));
        self.check(down, experts, (width, ffn));
        let kernel = match activation {
            Activation::Silu => self.gate_up[0],
            Activation::GeluTanh => self.gate_up[1],
        };
        let panels = (2 * ffn).div_ceil(PANEL);
        let launch = Launch::new(kernel, panels.div_ceil(GATE_PANELS), 256).by(bucket * top_k, 1);
        let launch = launch.buffer(count).buffer(chosen).buffer(x);
        let launch = launch.buffer(&gate_up.numbers).buffer(&gate_up.scales).buffer(middle);
        let launch = launch.count(width).count(ffn).count(top_k);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above and by the caller); `route`
        // chose only experts that there are.
        unsafe { launch.on(&*self.device)? };
        let launch = Launch::new(self.down, width.div_ceil(PANEL), 256);
        let launch = launch.buffer(count).buffer(chosen).buffer(weights).buffer(middle);
        let launch = launch.buffer(&down.numbers).buffer(&down.scales).buffer(residual);
        // SAFETY: as above.
        unsafe { launch.count(width).count(ffn).count(top_k).on(&*self.device) }
    }

    /// Multiplies rows `starts[e]..starts[e + 1]` of `x` `[rows, k]` with weight `e` of `w`. `rows` is the most that there
    /// can be; the output is as long.
    pub(super) fn product(
        &self,
        rows: usize,
        starts: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Weight,
        experts: usize,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        let (n, k) = (w.n, w.k);
        self.check(w, experts, (n, k));
        assert!(rows > 0 && experts > 0, "bug: {rows} rows, {experts} experts");
        assert!(!matches!(finish, Finish::Add(_)), "bug: results of experts are not added");
        assert!(starts.len() > experts && x.len() >= rows * k, "bug: a buffer is smaller than its shape");
        let y = finish.room(rows, n);
        let index = match rows.div_ceil(experts) {
            0..=8 => 0,
            9..=64 => 1,
            _ if self.grouped[2].is_empty() => 1,
            _ => 2,
        };
        let tile = &TILES[index];
        let launch =
            Launch::new(self.grouped[index][finish.index()], tiles(tile.rows, rows, experts), tile.threads);
        let launch = launch.by(n.div_ceil(tile.columns), 1).shared(tile.shared(self.format));
        let launch = launch.buffer(starts).buffer(x).buffer(&w.numbers).buffer(&w.scales).address(y);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape (asserted above), and the last of `starts` is
        // at most `rows`, the promise of who grouped them.
        unsafe { launch.count(experts).count(n).count(k).on(&*self.device) }
    }
}
