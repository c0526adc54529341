//! A GPU through its driver: a context and a stream of our own, the modules of this build, and memory.
//!
//! Chained launches go out with programmatic stream serialization where that is safe: the function is code made for
//! Hopper or later, as older code has no wait in it (on a device that came after Hopper the driver makes it of PTX for
//! Ampere), and what is enqueued right in front is a launch, not a copy or an event. Under capture the edge between the two
//! becomes a programmatic one, which graphs keep since CUDA 12.3; drivers before CUDA 13 are refused anyway.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{
    CUevent, CUevent_flags, CUfunction, CUfunction_attribute_enum as Attribute, CUgraphExec,
    CUgraphInstantiate_flags, CUlaunchAttribute, CUlaunchAttributeID_enum as AttributeId,
    CUlaunchAttributeValue, CUlaunchConfig, CUmodule, CUstream, CUstreamCaptureMode,
};
use cudarc::driver::{CudaStream, DriverError, result, sys};

use super::driver::{DeviceError, Driver, Graph, Kernel, MARKS, Mark};
use super::find::{self, Absent, Facts};
use super::launch::Launch;

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Does without chained launches where it is `off`: should they fail on a device in a way that the check of a decoder
/// cannot survive.
const CHAIN: &str = "HEARTH_GPU_CHAIN";
/// The oldest PTX whose kernels wait for their past: Hopper's.
const WAITS: i32 = 90;

pub struct Gpu {
    facts: Facts,
    stream: Arc<CudaStream>,
    modules: Vec<CUmodule>,
    /// Whether chained launches may ever begin early.
    can_chain: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    functions: Vec<Function>,
    named: HashMap<String, u32>,
    /// None where one was given back.
    graphs: Vec<Option<CUgraphExec>>,
    events: Vec<CUevent>,
    marks: u64,
    /// Whether chained launches begin early.
    chains: bool,
    /// What was enqueued last is a launch.
    after_launch: bool,
}

#[derive(Clone, Copy)]
struct Function {
    handle: CUfunction,
    /// Whether its code waits for the past, where its source does.
    waits: bool,
}

// SAFETY: the handles are the driver's, which may be used from any thread that has the context; every call below binds it.
unsafe impl Send for Gpu {}
// SAFETY: as above; what changes lies behind a lock.
unsafe impl Sync for Gpu {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.facts.name)
    }
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| DeviceError::Failed { call, reason: error.to_string() }
}

impl Gpu {
    /// Opens device `ordinal` and loads the kernels.
    pub fn open(ordinal: usize) -> Result<Self, Absent> {
        let context = find::context(ordinal)?;
        let open = || -> Result<Self, DriverError> {
            // SAFETY: one stream and one thread use the device, so no allocation is seen by two streams. An event each
            // would cost more than the allocation, and a wait on one from outside a capture breaks the capture.
            unsafe { context.disable_event_tracking() };
            let stream = context.new_stream()?;
            let facts = find::facts(&context)?;
            let modules = FATBINS
                .iter()
                // SAFETY: an image that nvcc wrote, which says itself how long it is.
                .map(|image| unsafe { result::module::load_data(image.as_ptr().cast()) })
                .collect::<Result<_, _>>()?;
            // All at once, so that no step has to make one.
            let event = |_| result::event::create(CUevent_flags::CU_EVENT_DEFAULT);
            let events = (0..MARKS).map(event).collect::<Result<_, _>>()?;
            let can_chain =
                facts.capability.0 >= 9 && std::env::var_os(CHAIN).is_none_or(|chain| chain != "off");
            let state = Mutex::new(State { events, chains: can_chain, ..State::default() });
            Ok(Self { facts, stream, modules, can_chain, state })
        };
        open().map_err(|error| Absent::Device { ordinal, reason: error.to_string() })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream, for a thread that has the context from now on.
    fn bound(&self) -> Result<CUstream, DeviceError> {
        self.stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        Ok(self.stream.cu_stream())
    }

    /// Registers of a kernel and bytes that each thread keeps in local memory: spills, where it has no arrays.
    pub fn resources(&self, kernel: Kernel) -> Result<(i32, i32), DeviceError> {
        self.bound()?;
        let function = self.state().functions[kernel.0 as usize].handle;
        let of = |attribute| attribute_of(function, attribute);
        Ok((of(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?, of(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?))
    }
}

fn attribute_of(function: CUfunction, attribute: Attribute) -> Result<i32, DeviceError> {
    let mut value = 0;
    // SAFETY: a function of a loaded module, and a place for one integer.
    unsafe { sys::cuFuncGetAttribute(&mut value, attribute, function) }
        .result()
        .map(|()| value)
        .map_err(failed("cuFuncGetAttribute"))
}

impl Driver for Gpu {
    fn name(&self) -> &str {
        &self.facts.name
    }

    fn multiprocessors(&self) -> u32 {
        self.facts.multiprocessors as u32
    }

    fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.bound()?;
        result::mem_get_info().map_err(failed("cuMemGetInfo"))
    }

    fn kernel(&self, name: &str, shared: u32) -> Result<Kernel, DeviceError> {
        self.bound()?;
        let state = &mut *self.state();
        let kernel = match state.named.get(name) {
            Some(kernel) => *kernel,
            None => {
                let text = CString::new(name).expect("bug: the name of a kernel has no zero byte");
                // SAFETY: modules stay loaded as long as this is there.
                let find =
                    |module: &CUmodule| unsafe { result::module::get_function(*module, text.clone()) }.ok();
                let found = self.modules.iter().find_map(find);
                let handle = found.ok_or_else(|| DeviceError::Kernel(name.to_owned()))?;
                let waits = attribute_of(handle, Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)? >= WAITS;
                state.functions.push(Function { handle, waits });
                let kernel = state.functions.len() as u32 - 1;
                state.named.insert(name.to_owned(), kernel);
                kernel
            }
        };
        // More than 48 KiB must be asked for.
        if shared > 48 << 10 {
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            unsafe {
                result::function::set_function_attribute(
                    state.functions[kernel as usize].handle,
                    most,
                    shared as i32,
                )
            }
            .map_err(failed("cuFuncSetAttribute"))?;
        }
        Ok(Kernel(kernel))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.bound()?;
        // SAFETY: nobody reads what was not written: the promise of every launch.
        unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = result::mem_get_info().unwrap_or((0, 0));
                DeviceError::Memory { wanted: bytes, free, total }
            }
            _ => failed("cuMemAlloc")(error),
        })
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        // A device that has failed cannot give memory back either; the process ends soon.
        if self.bound().is_ok() {
            // SAFETY: as promised by the caller. The driver waits for work that uses it.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DeviceError> {
        self.bound()?;
        // SAFETY: the memory is written before it is read, by `Host::new`.
        unsafe { result::malloc_host(bytes, 0) }.map(<*mut c_void>::cast).map_err(failed("cuMemHostAlloc"))
    }

    unsafe fn free_host(&self, memory: *mut u8, _bytes: usize) {
        if self.bound().is_ok() {
            // SAFETY: as promised by the caller.
            let _ = unsafe { result::free_host(memory.cast()) };
        }
    }

    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), DeviceError> {
        let stream = self.bound()?;
        self.state().after_launch = false;
        // SAFETY: as promised by the caller.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, stream) }
            .result()
            .map_err(failed("cuMemcpyHtoDAsync"))
    }

    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize) -> Result<(), DeviceError> {
        let stream = self.bound()?;
        self.state().after_launch = false;
        // SAFETY: as promised by the caller.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, stream) }
            .result()
            .map_err(failed("cuMemcpyDtoHAsync"))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        let stream = self.bound()?;
        let (function, begins_early) = {
            let state = &mut *self.state();
            let Function { handle, waits } = state.functions[launch.kernel.0 as usize];
            let is_behind_one = std::mem::replace(&mut state.after_launch, true);
            (handle, launch.is_chained && state.chains && waits && is_behind_one)
        };
        let (values, _) = launch.arguments();
        let mut pointers = [std::ptr::null_mut::<c_void>(); 32];
        for (pointer, value) in pointers.iter_mut().zip(values) {
            *pointer = std::ptr::from_ref(value).cast_mut().cast();
        }
        let [x, y, z] = launch.grid;
        let mut early = CUlaunchAttribute {
            id: AttributeId::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: stream,
            attrs: &mut early,
            numAttrs: begins_early.into(),
        };
        // SAFETY: as promised by the caller; the driver copies the arguments before it returns. One attribute is there,
        // and it is looked at where the kernel waits (a chained launch) and its code too.
        unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed("cuLaunchKernelEx"))
    }

    fn chains(&self) -> bool {
        self.state().chains
    }

    fn chain(&self, on: bool) {
        self.state().chains = on && self.can_chain;
    }

    fn mark(&self) -> Result<Mark, DeviceError> {
        let stream = self.bound()?;
        let state = &mut *self.state();
        state.after_launch = false;
        let mark = state.marks;
        // SAFETY: an event and a stream of this context.
        unsafe { result::event::record(state.events[(mark % MARKS) as usize], stream) }
            .map_err(failed("cuEventRecord"))?;
        state.marks += 1;
        Ok(Mark(mark))
    }

    fn wait(&self, mark: Mark) -> Result<(), DeviceError> {
        self.bound()?;
        let event = {
            let state = self.state();
            assert!(mark.0 + MARKS >= state.marks, "bug: a mark was waited for too late");
            state.events[(mark.0 % MARKS) as usize]
        };
        // SAFETY: an event of this context that was recorded.
        unsafe { result::event::synchronize(event) }.map_err(failed("cuEventSynchronize"))
    }

    fn microseconds(&self, from: Mark, to: Mark) -> Result<f64, DeviceError> {
        self.bound()?;
        let state = self.state();
        let event = |mark: Mark| state.events[(mark.0 % MARKS) as usize];
        // SAFETY: both were recorded, and the later one was reached.
        unsafe { result::event::elapsed(event(from), event(to)) }
            .map(|ms| f64::from(ms) * 1e3)
            .map_err(failed("cuEventElapsedTime"))
    }

    fn finish(&self) -> Result<(), DeviceError> {
        let stream = self.bound()?;
        // SAFETY: the stream is candle's and there.
        unsafe { result::stream::synchronize(stream) }.map_err(failed("cuStreamSynchronize"))
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        let stream = self.bound()?;
        self.state().after_launch = false;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is candle's own, not the legacy one, and nothing is being captured.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(failed("cuStreamBeginCapture"))?;
        let worked = work();
        // Ended even if a launch failed: the stream takes no other work before.
        // SAFETY: begun above.
        let captured = unsafe { result::stream::end_capture(stream) };
        worked?;
        let graph = captured.map_err(failed("cuStreamEndCapture"))?;
        // SAFETY: a graph just captured; what is instantiated does not need it any more.
        let instantiated = unsafe {
            let instantiated = result::graph::instantiate(graph, CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            instantiated
        };
        let graph = instantiated.map_err(failed("cuGraphInstantiate"))?;
        // SAFETY: both are there.
        unsafe { result::graph::upload(graph, stream) }.map_err(failed("cuGraphUpload"))?;
        let state = &mut *self.state();
        state.after_launch = false;
        state.graphs.push(Some(graph));
        Ok(Graph(state.graphs.len() as u32 - 1))
    }

    unsafe fn forget(&self, graph: Graph) {
        if self.bound().is_ok()
            && let Some(graph) = self.state().graphs[graph.0 as usize].take()
        {
            // SAFETY: instantiated by this driver and taken out; the caller promises that it is at rest.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }

    unsafe fn replay(&self, graph: Graph) -> Result<(), DeviceError> {
        let stream = self.bound()?;
        let graph = {
            let state = &mut *self.state();
            state.after_launch = false;
            state.graphs[graph.0 as usize].expect("bug: a graph was replayed after it was given back")
        };
        // SAFETY: captured by this driver; the places that it uses are the caller's promise.
        unsafe { result::graph::launch(graph, stream) }.map_err(failed("cuGraphLaunch"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.finish().is_err() {
            return;
        }
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nothing is under way, and nobody can name any of these any more.
        unsafe {
            state.graphs.drain(..).flatten().for_each(|graph| _ = result::graph::exec_destroy(graph));
            state.events.drain(..).for_each(|event| _ = result::event::destroy(event));
            self.modules.drain(..).for_each(|module| _ = result::module::unload(module));
        }
    }
}
