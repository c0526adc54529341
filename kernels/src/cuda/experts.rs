//! Mixture of experts (`cuda/experts.cu`): the router, and the feed-forward layers of the experts that rows go to.
//!
//! `count` is the number of rows on the device, at most the `bucket` that a launch is captured for. Pairs are those of a
//! row and one of its experts; a row's pairs stand side by side, experts ascending.

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::expert_product::ExpertProduct;
use super::hopper::Differs;
use super::hopper_experts::HopperExperts;
use super::launch::Launch;
use super::packed_experts::PackedExperts;
use super::product::Finish;
use super::weightonly::{self, Format, Weight};
use crate::gate::Activation;

/// Rows up to which every pair is a product of its own: beyond, too many pairs share an expert and would read it again.
/// Packed weights: [`Stack::direct_rows`].
pub const DIRECT_ROWS: usize = 4;
/// Experts of a layer at most.
pub const MAX_EXPERTS: usize = 64;

const ROUTE_THREADS: u32 = 64;
const GROUP_THREADS: u32 = 1024;

/// What the experts of a layer are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub experts: usize,
    pub top_k: usize,
    pub width: usize,
    pub ffn: usize,
}

impl Shape {
    pub fn check(&self) {
        let Shape { experts, top_k, width, ffn } = *self;
        assert!((1..=MAX_EXPERTS).contains(&experts) && (1..=experts).contains(&top_k), "bug: {self:?}");
        assert!(
            width > 0 && width.is_multiple_of(8) && ffn > 0 && ffn.is_multiple_of(8),
            "bug: {self:?}: k is no multiple of 8"
        );
    }
}

/// Where rows go, on the device: made once for the largest step, filled by [`Experts::route`] and, for
/// grouped rows, by [`Experts::grouped`].
#[derive(Debug)]
pub struct Routes {
    shape: Shape,
    rows: usize,
    /// Per pair its expert and how much it counts.
    chosen: Buffer<u32>,
    weights: Buffer<f32>,
    /// Where each expert's pairs begin in `order`; one more than experts.
    starts: Buffer<u32>,
    /// Pairs by expert, and per pair its place among them.
    order: Buffer<u32>,
    places: Buffer<u32>,
}

impl Routes {
    pub fn new(device: &Device, shape: Shape, rows: usize) -> Result<Self, DeviceError> {
        shape.check();
        let pairs = rows * shape.top_k;
        Ok(Self {
            shape,
            rows,
            chosen: Buffer::new(device, pairs)?,
            weights: Buffer::new(device, pairs)?,
            starts: Buffer::new(device, shape.experts + 1)?,
            order: Buffer::new(device, pairs)?,
            places: Buffer::new(device, pairs)?,
        })
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn check(&self, bucket: usize, count: &Buffer<u32>) {
        assert!(
            (1..=self.rows).contains(&bucket) && !count.is_empty(),
            "bug: {bucket} rows of {}",
            self.rows
        );
    }
}

/// The weights of a layer's experts, one behind the other.
#[derive(Debug)]
pub enum Stack {
    Wide(Buffer<bf16>),
    /// `n` and `k` are those of one, whose panels stand before those of the next, and so do their scales.
    Packed(Weight),
}

impl Stack {
    /// Rows up to which [`Experts::direct`] takes gate and up with `down`. Where weights are packed, rows that share an
    /// expert share the reading of it too; where half of them are, as their widths divide into blocks, none are taken.
    pub fn direct_rows(&self, down: &Stack) -> usize {
        match (self, down) {
            (Stack::Wide(_), Stack::Wide(_)) => DIRECT_ROWS,
            (Stack::Packed(_), Stack::Packed(_)) => weightonly::MAX_ROWS,
            _ => 0,
        }
    }
}

/// What few rows go through their experts with.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirectRows<'a> {
    pub bucket: usize,
    pub count: &'a Buffer<u32>,
    pub chosen: &'a Buffer<u32>,
    pub weights: &'a Buffer<f32>,
    pub x: &'a Buffer<bf16>,
    pub middle: &'a Buffer<bf16>,
    pub residual: &'a Buffer<f32>,
    pub shape: Shape,
}

/// Memory of grouped rows, a row a pair.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    /// `[pairs, width]`.
    pub gathered: &'a Buffer<bf16>,
    /// `[pairs, ffn]`.
    pub middle: &'a Buffer<bf16>,
    /// `[pairs, width]`.
    pub results: &'a Buffer<f32>,
}

#[derive(Debug)]
pub struct Experts {
    device: Device,
    route: Kernel,
    gate_up: [Kernel; 2],
    down: Kernel,
    group: Kernel,
    gather: Kernel,
    combine: Kernel,
    product: ExpertProduct,
    /// For many rows an expert, once it was asked for.
    hopper: Option<HopperExperts>,
    /// For packed weights.
    packed: Option<PackedExperts>,
}

impl Experts {
    /// With the kernels for weights of `format` too, if there is one.
    pub fn load(device: &Device, format: Option<Format>) -> Result<Self, DeviceError> {
        let kernel = |name: &str| device.kernel(name, 0);
        Ok(Self {
            route: kernel("route")?,
            gate_up: [kernel("direct_gate_up_silu")?, kernel("direct_gate_up_gelu")?],
            down: kernel("direct_down")?,
            group: kernel("group")?,
            gather: kernel("gather")?,
            combine: kernel("combine")?,
            product: ExpertProduct::load(device)?,
            hopper: None,
            packed: format.map(|format| PackedExperts::load(device, format)).transpose()?,
            device: device.clone(),
        })
    }

    /// From here on experts with many rows take the products that Hopper alone has, where the device has them and they
    /// come out right.
    pub fn take_hopper(&mut self) -> Result<Option<Differs>, DeviceError> {
        let Some(hopper) = HopperExperts::load(&self.device)? else { return Ok(None) };
        let differs = hopper.check(&self.product)?;
        self.hopper = differs.is_none().then_some(hopper);
        Ok(differs)
    }

    /// Sends each row to its experts by `logits` `[bucket, experts]`, as [`crate::route`] does.
    pub fn route(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        logits: &Buffer<f32>,
        renormalise: bool,
        routes: &Routes,
    ) -> Result<(), DeviceError> {
        let Shape { experts, top_k, .. } = routes.shape;
        routes.check(bucket, count);
        assert!(logits.len() >= bucket * experts, "bug: a buffer is smaller than its shape");
        let launch =
            Launch::new(self.route, bucket.div_ceil(ROUTE_THREADS as usize), ROUTE_THREADS).chained();
        let launch = launch.buffer(count).buffer(logits).buffer(&routes.chosen).buffer(&routes.weights);
        let launch = launch.count(experts).count(top_k).number(renormalise.into());
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above and made so).
        unsafe { launch.on(&*self.device) }
    }

    fn packed(&self) -> &PackedExperts {
        self.packed.as_ref().expect("bug: packed experts without their kernels")
    }

    /// The feed-forward layers of at most [`Stack::direct_rows`] rows, added to the residual: `x` is `[bucket, width]`,
    /// `gate_up` `[experts][2 ffn][width]` with eight rows of gate and eight of up taking turns, `down`
    /// `[experts][width][ffn]`; `middle` is room for `bucket * top_k * ffn` numbers.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn direct(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        routes: &Routes,
        x: &Buffer<bf16>,
        gate_up: &Stack,
        down: &Stack,
        activation: Activation,
        middle: &Buffer<bf16>,
        residual: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let Shape { experts, top_k, width, ffn } = routes.shape;
        routes.check(bucket, count);
        assert!(bucket <= gate_up.direct_rows(down), "bug: {bucket} rows one by one");
        assert!(
            x.len() >= bucket * width
                && middle.len() >= bucket * top_k * ffn
                && residual.len() >= bucket * width,
            "bug: a buffer is smaller than its shape"
        );
        let (gate_up, down) = match (gate_up, down) {
            (Stack::Wide(gate_up), Stack::Wide(down)) => (gate_up, down),
            (Stack::Packed(gate_up), Stack::Packed(down)) => {
                let (chosen, weights, shape) = (&routes.chosen, &routes.weights, routes.shape);
                let rows = DirectRows { bucket, count, chosen, weights, x, middle, residual, shape };
                return self.packed().direct(rows, gate_up, down, activation);
            }
            _ => unreachable!("bug: half of a layer's weights are packed, and their rows are not taken"),
        };
        assert!(
            gate_up.len() >= experts * 2 * ffn * width && down.len() >= experts * width * ffn,
            "bug: a buffer is smaller than its shape"
        );
        let kernel = match activation {
            Activation::Silu => self.gate_up[0],
            Activation::GeluTanh => self.gate_up[1],
        };
        // A warp has two numbers of the middle, a block eight warps.
        let launch = Launch::new(kernel, ffn.div_ceil(16), 256).chained().by(bucket * top_k, 1);
        let launch = launch.buffer(count).buffer(&routes.chosen).buffer(x).buffer(gate_up).buffer(middle);
        let launch = launch.count(width).count(ffn).count(top_k);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above); `route` chose only
        // experts that there are.
        unsafe { launch.on(&*self.device)? };
        let launch = Launch::new(self.down, width / 4, 128).chained().by(bucket, 1);
        let launch = launch.buffer(count).buffer(&routes.chosen).buffer(&routes.weights).buffer(middle);
        let launch = launch.buffer(down).buffer(residual).count(width).count(ffn).count(top_k);
        // SAFETY: as above.
        unsafe { launch.on(&*self.device) }
    }

    /// The same for any number of rows: rows are put in order of experts, and each expert's weight is read once for all
    /// of its rows. `room` is for `bucket * top_k` rows.
    #[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
    pub fn grouped(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        routes: &Routes,
        x: &Buffer<bf16>,
        gate_up: &Stack,
        down: &Stack,
        activation: Activation,
        room: Room<'_>,
        residual: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let Shape { experts, top_k, width, ffn } = routes.shape;
        let (pairs, starts) = (bucket * top_k, &routes.starts);
        self.group(count, routes)?;
        self.gather(bucket, count, routes, x, room.gathered)?;
        let bent = Finish::Gate(activation, room.middle);
        self.multiply(pairs, starts, room.gathered, gate_up, experts, (2 * ffn, width), bent)?;
        let set = Finish::Set(room.results);
        self.multiply(pairs, starts, room.middle, down, experts, (width, ffn), set)?;
        self.combine(bucket, count, routes, room.results, residual)
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    fn multiply(
        &self,
        rows: usize,
        starts: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Stack,
        experts: usize,
        shape: (usize, usize),
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        match (w, &self.hopper) {
            (Stack::Wide(w), Some(hopper)) if hopper.takes(rows, experts, shape.0) => {
                hopper.launch(rows, starts, x, w, experts, shape, finish)
            }
            (Stack::Wide(w), _) => self.product.launch(rows, starts, x, w, experts, shape, finish),
            (Stack::Packed(w), _) => {
                assert_eq!((w.n, w.k), shape, "bug: weights of another shape");
                self.packed().product(rows, starts, x, w, experts, finish)
            }
        }
    }

    /// Puts the pairs of all rows in order of experts.
    fn group(&self, count: &Buffer<u32>, routes: &Routes) -> Result<(), DeviceError> {
        let Shape { experts, top_k, .. } = routes.shape;
        routes.check(1, count);
        let launch = Launch::new(self.group, 1, GROUP_THREADS);
        let launch = launch.buffer(count).buffer(&routes.chosen).buffer(&routes.starts);
        let launch = launch.buffer(&routes.order).buffer(&routes.places).count(experts).count(top_k);
        // SAFETY: the arguments are the kernel's, the routes hold all pairs of their rows, and the count is at most those.
        unsafe { launch.on(&*self.device) }
    }

    /// Copies the rows of `x` `[bucket, width]` to `gathered` `[bucket * top_k, width]`, those of an expert side by side.
    fn gather(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        routes: &Routes,
        x: &Buffer<bf16>,
        gathered: &Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let Shape { top_k, width, .. } = routes.shape;
        routes.check(bucket, count);
        assert!(
            x.len() >= bucket * width && gathered.len() >= bucket * top_k * width,
            "bug: a buffer is smaller than its shape"
        );
        let launch = Launch::new(self.gather, bucket * top_k, 256);
        let launch = launch.buffer(count).buffer(&routes.order).buffer(x).buffer(gathered);
        let launch = launch.count(width).count(top_k);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above); `group` wrote the order.
        unsafe { launch.on(&*self.device) }
    }

    /// Adds the weighted `results` `[bucket * top_k, width]`, in the order of [`Experts::gather`], to the residual.
    fn combine(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        routes: &Routes,
        results: &Buffer<f32>,
        residual: &Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let Shape { top_k, width, .. } = routes.shape;
        routes.check(bucket, count);
        assert!(
            results.len() >= bucket * top_k * width && residual.len() >= bucket * width,
            "bug: a buffer is smaller than its shape"
        );
        let launch = Launch::new(self.combine, bucket, 256);
        let launch = launch.buffer(count).buffer(&routes.places).buffer(&routes.weights).buffer(results);
        let launch = launch.buffer(residual).count(width).count(top_k);
        // SAFETY: the arguments are the kernel's and the buffers hold the shape (asserted above); `group` wrote the places.
        unsafe { launch.on(&*self.device) }
    }
}
