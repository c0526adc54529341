//! The seam to a device, on the emulated one.

use std::sync::Arc;

use half::bf16;
use hearth_kernels::Activation;
use hearth_kernels::cuda::buffer::{Buffer, Host};
use hearth_kernels::cuda::driver::{Device, DeviceError, Driver, Graph, Kernel, Mark};
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::cuda::hopper::Hopper;
use hearth_kernels::cuda::launch::Launch;
use hearth_kernels::cuda::product::{Finish, Product};
use hearth_kernels::cuda::skinny::{Class, Skinny};
use hearth_kernels::cuda::stream::{Stream, number};
use hearth_kernels::cuda::weightonly::{Format, Packed, Weight, WeightOnly};

const ROOM: usize = 1 << 26;

fn device() -> Device {
    Emulated::open(Order::Shuffled, ROOM)
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn numbers_go_to_a_device_and_come_back_through_a_kernel() {
    let device = device();
    let stream = Stream::load(&device).unwrap();
    let made = Buffer::<bf16>::new(&device, 1000).unwrap();
    stream.fill(&made, 3, 0.5).unwrap();
    let expected: Vec<bf16> = (0..1000).map(|i| number(i, 3, 0.5)).collect();
    assert_eq!(made.get().unwrap(), expected);

    let wide: Vec<f32> = expected.iter().map(|v| v.to_f32() + 1e-4).collect();
    let from = Buffer::of(&device, &wide).unwrap();
    stream.narrow(&from, &made, 1000).unwrap();
    let rounded: Vec<bf16> = wide.iter().map(|v| bf16::from_f32(*v)).collect();
    assert_eq!(made.get().unwrap(), rounded);
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn a_graph_does_again_what_was_captured_with_what_lies_there_now() {
    let device = device();
    let (stream, skinny) = (Stream::load(&device).unwrap(), Skinny::load(&device).unwrap());
    let (n, k) = (37, 64);
    let (x, w) = (Buffer::<bf16>::new(&device, k).unwrap(), Buffer::<bf16>::new(&device, n * k).unwrap());
    let y = Buffer::of(&device, &vec![f32::NAN; n]).unwrap();
    stream.fill(&w, 1, 1.0).unwrap();
    stream.fill(&x, 2, 1.0).unwrap();
    let product = || skinny.launch(Class::Warp, (1, n, k), &x, &w, &y);
    let graph = device.capture(&mut || product()).unwrap();
    assert!(y.get().unwrap().iter().all(|v| v.is_nan()), "a capture does nothing");
    for seed in [2, 5] {
        stream.fill(&x, seed, 1.0).unwrap();
        // SAFETY: x, w and y are still there.
        unsafe { device.replay(graph).unwrap() };
        let replayed = y.get().unwrap();
        product().unwrap();
        assert_eq!(replayed, y.get().unwrap());
    }
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn work_is_done_as_late_as_a_gpu_may_do_it() {
    let device = device();
    let there = Buffer::<u32>::of(&device, &[0, 0]).unwrap();
    let mut host = Host::<u32>::new(&device, 2).unwrap();
    let mut back = Host::<u32>::new(&device, 2).unwrap();
    host.copy_from_slice(&[1, 2]);
    // SAFETY: the sizes are equal. The host's memory is changed before the copy, to see it.
    unsafe { device.copy_in(there.address(), host.as_ptr().cast(), 8).unwrap() };
    host[1] = 3;
    // SAFETY: the sizes are equal.
    unsafe { device.copy_out(back.as_mut_ptr().cast(), there.address(), 8).unwrap() };
    let mark = device.mark().unwrap();
    assert_eq!(back[..], [0, 0]);
    device.wait(mark).unwrap();
    assert_eq!(back[..], [1, 3]);
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn what_does_not_fit_and_what_is_not_there_is_told() {
    let device = device();
    let held = Buffer::<u8>::new(&device, ROOM / 2).unwrap();
    let refused = Buffer::<u8>::new(&device, ROOM / 2 + 1).unwrap_err();
    assert_eq!(refused, DeviceError::Memory { wanted: ROOM / 2 + 1, free: ROOM / 2, total: ROOM });
    drop(held);
    assert!(Buffer::<u8>::new(&device, ROOM / 2 + 1).is_ok());
    assert_eq!(device.kernel("no_such", 0), Err(DeviceError::Kernel("no_such".into())));
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn a_row_of_a_product_has_the_same_bits_in_every_bucket() {
    let device = device();
    let (stream, product) = (Stream::load(&device).unwrap(), Product::load(&device).unwrap());
    // Wide enough for every kind of tile on three multiprocessors.
    let (n, k) = (528, 72);
    let x = Buffer::<bf16>::new(&device, 200 * k).unwrap();
    let w = Buffer::<bf16>::new(&device, n * k).unwrap();
    stream.fill(&x, 1, 1.0).unwrap();
    stream.fill(&w, 2, 1.0).unwrap();
    let count = Buffer::of(&device, &[3u32]).unwrap();
    let answers = [5, 30, 100, 200].map(|bucket| {
        let y = Buffer::<f32>::zeros(&device, bucket * n).unwrap();
        let bent = Buffer::<bf16>::zeros(&device, bucket * n / 2).unwrap();
        let launch = |finish| product.launch(bucket, &count, &x, &w, (n, k), None, finish).unwrap();
        launch(Finish::Set(&y));
        launch(Finish::Add(&y));
        launch(Finish::Gate(Activation::Silu, &bent));
        let (y, bent) = (y.get().unwrap(), bent.get().unwrap());
        assert!(y[3 * n..].iter().all(|v| *v == 0.0), "rows beyond the count");
        (y[..3 * n].to_vec(), bent[..3 * n / 2].to_vec())
    });
    assert!(answers[0].0.iter().any(|v| *v != 0.0));
    for other in &answers[1..] {
        assert_eq!(*other, answers[0]);
    }
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn a_packed_weight_multiplies_on_a_device() {
    let device = device();
    let products = WeightOnly::load(&device).unwrap();
    let (n, k) = (48, 256);
    let weight: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.7).sin()).collect();
    let ones = Buffer::of(&device, &vec![bf16::ONE; 2 * k]).unwrap();
    let count = Buffer::of(&device, &[2u32]).unwrap();
    for format in Format::ALL {
        let packed = Packed::of(format, (n, k), &weight);
        let on_device = Weight::of(&device, &packed).unwrap();
        let y = Buffer::of(&device, &vec![1.0; 2 * n]).unwrap();
        products.launch(2, &count, &ones, &on_device, None, Finish::Add(&y)).unwrap();
        for (i, got) in y.get().unwrap().into_iter().enumerate() {
            let want = 1.0 + (0..k).map(|c| packed.number(i % n, c)).sum::<f32>();
            assert!((got - want).abs() < 1e-3, "{} {i}: {got} instead of {want}", format.name());
        }
    }
}

/// A device whose kernels have other names: `None` for those it does not have.
#[derive(Debug)]
struct Other(Device, fn(&str) -> Option<String>);

impl Driver for Other {
    fn kernel(&self, name: &str, shared: u32) -> Result<Kernel, DeviceError> {
        let own = (self.1)(name).ok_or_else(|| DeviceError::Kernel(name.to_owned()))?;
        self.0.kernel(&own, shared)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors()
    }

    fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.0.memory()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.0.allocate(bytes)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        // SAFETY: as promised by the caller, here and below.
        unsafe { self.0.free(address, bytes) }
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DeviceError> {
        self.0.allocate_host(bytes)
    }

    unsafe fn free_host(&self, memory: *mut u8, bytes: usize) {
        // SAFETY: as above.
        unsafe { self.0.free_host(memory, bytes) }
    }

    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.0.copy_in(to, from, bytes) }
    }

    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.0.copy_out(to, from, bytes) }
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.0.launch(launch) }
    }

    fn chains(&self) -> bool {
        self.0.chains()
    }

    fn chain(&self, on: bool) {
        self.0.chain(on);
    }

    fn mark(&self) -> Result<Mark, DeviceError> {
        self.0.mark()
    }

    fn wait(&self, mark: Mark) -> Result<(), DeviceError> {
        self.0.wait(mark)
    }

    fn microseconds(&self, from: Mark, to: Mark) -> Result<f64, DeviceError> {
        self.0.microseconds(from, to)
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.0.finish()
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        self.0.capture(work)
    }

    unsafe fn forget(&self, graph: Graph) {
        // SAFETY: as above.
        unsafe { self.0.forget(graph) }
    }

    unsafe fn replay(&self, graph: Graph) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.0.replay(graph) }
    }
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn the_products_of_hopper_are_used_where_they_are_there_and_come_out_right() {
    let check = |kernels: fn(&str) -> Option<String>| {
        let device: Device = Arc::new(Other(device(), kernels));
        let product = Product::load(&device).unwrap();
        let hopper = Hopper::load(&device).unwrap();
        hopper.map(|hopper| hopper.check(&product).unwrap().map(|differs| differs.to_string()))
    };
    assert_eq!(check(|name| Some(name.to_owned())), Some(None), "as they are");
    assert_eq!(check(|name| (!name.contains("hopper")).then(|| name.to_owned())), None, "another generation");
    // Adds to what is there, where nothing is.
    let wrong = check(|name| Some(name.replace("hopper_256_set", "hopper_256_add")));
    let said = wrong.expect("they are there").expect("they are wrong");
    assert!(said.contains("row 0, column 0, in tiles of 256: NaN instead of"), "{said}");
    let wrong = check(|name| Some(name.replace("hopper_128_silu", "hopper_128_gelu")));
    let said = wrong.expect("they are there").expect("they are wrong");
    assert!(said.contains("in tiles of 128"), "{said}");
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn a_row_of_many_on_hopper_has_the_same_bits_in_every_bucket() {
    let device = device();
    let (stream, hopper) = (Stream::load(&device).unwrap(), Hopper::load(&device).unwrap().unwrap());
    let (n, k) = (400, 72);
    let x = Buffer::<bf16>::new(&device, 600 * k).unwrap();
    let w = Buffer::<bf16>::new(&device, n * k).unwrap();
    stream.fill(&x, 1, 1.0).unwrap();
    stream.fill(&w, 2, 1.0).unwrap();
    assert!(
        !hopper.takes(64, n) && hopper.takes(65, n) && !hopper.takes(128, 256),
        "where there is work for all"
    );
    let count = Buffer::of(&device, &[67u32]).unwrap();
    let answers = [128, 256, 600].map(|bucket| {
        let y = Buffer::<f32>::zeros(&device, bucket * n).unwrap();
        let bent = Buffer::<bf16>::zeros(&device, bucket * n / 2).unwrap();
        let launch = |finish| hopper.launch(bucket, &count, &x, &w, (n, k), None, finish).unwrap();
        launch(Finish::Set(&y));
        launch(Finish::Add(&y));
        launch(Finish::Gate(Activation::GeluTanh, &bent));
        let (y, bent) = (y.get().unwrap(), bent.get().unwrap());
        assert!(y[67 * n..].iter().all(|v| *v == 0.0), "rows beyond the count");
        (y[..67 * n].to_vec(), bent[..67 * n / 2].to_vec())
    });
    assert!(answers[0].0.iter().any(|v| *v != 0.0));
    assert!(answers[1] == answers[0] && answers[2] == answers[0]);
}
