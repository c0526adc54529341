//! The device that is this host's processor: `cuda/*.cu` compiled as C++ through the emulation of `tests/emulated`. For
//! tests; thousands of times slower than a GPU.
//!
//! As late as a GPU could be: work is only done when somebody waits for it, so that memory which the host changes too
//! early, or reads too early, shows as a wrong result.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::transmute;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::driver::{Device, DeviceError, Driver, Graph, Kernel, Mark};
use super::launch::Launch;

/// How the threads of a block take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
    Shuffled,
    WarpByWarp,
}

#[derive(Clone, Copy)]
#[allow(clippy::large_enum_variant, reason = "most work is a launch")]
enum Work {
    Launch(Launch),
    Copy { to: *mut u8, from: *const u8, bytes: usize },
    Replay(Graph),
}

// SAFETY: the pointers are those of the driver's callers, who promise that they stay.
unsafe impl Send for Work {}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    /// Pieces of work ever done.
    done: u64,
    /// Seconds spent on them.
    spent: f64,
    /// By piece of work, what was spent when it was done, for marks.
    times: Vec<f64>,
    graphs: Vec<Vec<Work>>,
    capturing: Option<Vec<Work>>,
    /// Bytes that are taken, by whatever takes any.
    allocated: usize,
    /// How often each kernel was launched; a driver loads it the first time.
    launched: HashMap<u32, u64>,
    /// How often memory was taken, of the device or of the host.
    allocations: u64,
    /// Whether a decoder is told that chained launches begin early. Their rules are watched in any case.
    chains: bool,
    /// What was enqueued last is a launch.
    after_launch: bool,
    /// Chained launches to come before one of them does nothing, once.
    lost: Option<u64>,
}

impl Queue {
    fn take(&mut self, bytes: usize, total: usize) -> Result<(), DeviceError> {
        let free = total - self.allocated.min(total);
        if bytes > free {
            return Err(DeviceError::Memory { wanted: bytes, free, total });
        }
        self.allocated += bytes;
        self.allocations += 1;
        Ok(())
    }

    /// Counts a launch.
    fn load(&mut self, kernel: Kernel, total: usize) -> Result<(), DeviceError> {
        let times = self.launched.entry(kernel.0).or_default();
        *times += 1;
        if *times == 1 { self.take(CODE, total) } else { Ok(()) }
    }
}

/// What a kernel takes once it was launched, and a launch once it was captured: about what a GPU's do, so that a sum of
/// buffers alone is not all.
const CODE: usize = 64 << 10;
/// Bytes of a page of this processor.
const PAGE: usize = 4096;
const NODE: usize = 1 << 10;

struct Library {
    find: unsafe extern "C" fn(*const c_char) -> c_int,
    arguments: unsafe extern "C" fn(c_int, *mut c_uint) -> c_uint,
    launch: unsafe extern "C" fn(c_int, *const c_uint, c_uint, c_uint, c_uint, *const u64, c_uint, u64),
    watch: unsafe extern "C" fn(u64, u64, u64),
    forget: unsafe extern "C" fn(u64),
}

pub struct Emulated {
    library: &'static Library,
    order: Order,
    /// Bytes it says it has.
    memory: usize,
    queue: Mutex<Queue>,
}

impl fmt::Debug for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Emulated")
    }
}

/// Blocks run one after another and share static memory, so one launch at a time in the whole process.
static TURN: Mutex<()> = Mutex::new(());

impl Emulated {
    /// Compiles the kernels, once a process, and opens them. Needs g++ (CXX names another compiler). `memory` is what
    /// the device says it has.
    pub fn open(order: Order, memory: usize) -> Device {
        Self::new(order, memory)
    }

    /// The same, for who asks it for more than a device can tell.
    pub fn new(order: Order, memory: usize) -> Arc<Self> {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| Library::load(&compile()));
        Arc::new(Self { library, order, memory, queue: Mutex::default() })
    }

    /// How often memory was taken so far, on the device or on the host for it; captured steps and kernels that were loaded
    /// count.
    pub fn allocations(&self) -> u64 {
        self.queue().allocations
    }

    /// How often a kernel was enqueued so far, or captured.
    pub fn launches(&self, name: &str) -> u64 {
        let kernel = self.kernel(name, 0);
        kernel.map_or(0, |kernel| self.queue().launched.get(&kernel.0).copied().unwrap_or(0))
    }

    /// What its memory is known by, where several devices are emulated.
    fn id(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }

    /// From now on, the chained launch that comes after `count` others does nothing: as one that began before what it
    /// reads was there. Only while chained launches begin early ([`Driver::chain`]).
    pub fn lose(&self, count: u64) {
        self.queue().lost = Some(count);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, mut work: Work) {
        let queue = &mut *self.queue();
        // As on a GPU, chained to launches alone.
        let is_behind_one = std::mem::replace(&mut queue.after_launch, matches!(work, Work::Launch(_)));
        if let Work::Launch(launch) = &mut work {
            launch.is_chained &= is_behind_one;
            if launch.is_chained && queue.chains {
                queue.lost = match queue.lost {
                    Some(0) => {
                        launch.grid = [0; 3];
                        None
                    }
                    left => left.map(|left| left - 1),
                };
            }
        }
        match &mut queue.capturing {
            Some(captured) => captured.push(work),
            None => queue.work.push_back(work),
        }
    }

    /// Does what is enqueued until `done` pieces of work are done in all.
    fn work_off(&self, until: u64) {
        let queue = &mut *self.queue();
        assert!(queue.capturing.is_none(), "bug: waited for work that is being captured");
        while queue.done < until {
            let work = queue.work.pop_front().expect("bug: waited for work that nobody enqueued");
            queue.done += 1;
            let begin = Instant::now();
            match work {
                Work::Replay(Graph(graph)) => {
                    queue.graphs[graph as usize].iter().for_each(|work| self.run(work))
                }
                work => self.run(&work),
            }
            queue.spent += begin.elapsed().as_secs_f64();
            let spent = queue.spent;
            queue.times.push(spent);
        }
    }

    fn run(&self, work: &Work) {
        match work {
            Work::Launch(launch) => {
                let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
                let Launch { kernel, grid, threads, shared, is_chained, .. } = launch;
                let (values, _) = launch.arguments();
                // SAFETY: the kernel's own arguments (checked at the launch); what they point to is the caller's promise.
                unsafe {
                    let order = self.order as c_uint;
                    (self.library.launch)(
                        kernel.0 as c_int,
                        grid.as_ptr(),
                        *threads,
                        *shared,
                        order,
                        values.as_ptr(),
                        (*is_chained).into(),
                        self.id(),
                    );
                }
            }
            // SAFETY: both places are the caller's promise.
            Work::Copy { to, from, bytes } => unsafe { from.copy_to_nonoverlapping(*to, *bytes) },
            Work::Replay(_) => unreachable!("bug: a graph inside a graph"),
        }
    }
}

/// Whole pages: what a chained launch may touch before it waits is watched by them.
fn layout(bytes: usize) -> Layout {
    let pages = bytes.next_multiple_of(PAGE);
    Layout::from_size_align(pages, PAGE).expect("bug: an allocation of an impossible size")
}

impl Driver for Emulated {
    fn name(&self) -> &str {
        "this processor, emulating a GPU"
    }

    fn multiprocessors(&self) -> u32 {
        3
    }

    fn memory(&self) -> Result<(usize, usize), DeviceError> {
        Ok((self.memory - self.queue().allocated.min(self.memory), self.memory))
    }

    fn kernel(&self, name: &str, _shared: u32) -> Result<Kernel, DeviceError> {
        let text = CString::new(name).expect("bug: the name of a kernel has no zero byte");
        // SAFETY: a terminated string.
        let found = unsafe { (self.library.find)(text.as_ptr()) };
        u32::try_from(found).map(Kernel).map_err(|_| DeviceError::Kernel(name.to_owned()))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.queue().take(bytes, self.memory)?;
        // SAFETY: the layout is of at least one byte. Filled with NaN in every type: nothing there counts as written.
        let memory = unsafe {
            let memory = alloc(layout(bytes));
            memory.write_bytes(0xff, bytes);
            (self.library.watch)(self.id(), memory as u64, layout(bytes).size() as u64);
            memory
        };
        Ok(memory as u64)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        let _ = self.finish();
        self.queue().allocated -= bytes;
        // SAFETY: watched since it was allocated.
        unsafe { (self.library.forget)(address) };
        // SAFETY: allocated above with this layout; the caller promises the rest.
        unsafe { dealloc(address as *mut u8, layout(bytes)) };
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DeviceError> {
        self.queue().allocations += 1;
        // SAFETY: the layout is of at least one byte.
        Ok(unsafe { alloc(layout(bytes)) })
    }

    unsafe fn free_host(&self, memory: *mut u8, bytes: usize) {
        let _ = self.finish();
        // SAFETY: allocated above with this layout; the caller promises the rest.
        unsafe { dealloc(memory, layout(bytes)) };
    }

    unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), DeviceError> {
        self.enqueue(Work::Copy { to: to as *mut u8, from, bytes });
        Ok(())
    }

    unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.enqueue(Work::Copy { to, from: from as *const u8, bytes });
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        let mut sizes = [0; 32];
        // SAFETY: the kernel was looked up in this library, and there is room for 32 sizes.
        let count = unsafe { (self.library.arguments)(launch.kernel.0 as c_int, sizes.as_mut_ptr()) };
        let given: Vec<c_uint> = launch.arguments().1.iter().map(|size| (*size).into()).collect();
        assert_eq!(&sizes[..count as usize], given, "bug: not the arguments of the kernel: {launch:?}");
        self.queue().load(launch.kernel, self.memory)?;
        self.enqueue(Work::Launch(*launch));
        Ok(())
    }

    fn chains(&self) -> bool {
        self.queue().chains
    }

    fn chain(&self, on: bool) {
        self.queue().chains = on;
    }

    fn mark(&self) -> Result<Mark, DeviceError> {
        let mut queue = self.queue();
        queue.after_launch = false;
        Ok(Mark(queue.done + queue.work.len() as u64))
    }

    fn wait(&self, mark: Mark) -> Result<(), DeviceError> {
        self.work_off(mark.0);
        Ok(())
    }

    fn microseconds(&self, from: Mark, to: Mark) -> Result<f64, DeviceError> {
        let queue = self.queue();
        let at = |mark: Mark| mark.0.checked_sub(1).map_or(0.0, |i| queue.times[i as usize]);
        Ok((at(to) - at(from)) * 1e6)
    }

    fn finish(&self) -> Result<(), DeviceError> {
        let mark = self.mark()?;
        self.wait(mark)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        {
            let queue = &mut *self.queue();
            (queue.capturing, queue.after_launch) = (Some(Vec::new()), false);
        }
        let result = work();
        let queue = &mut *self.queue();
        let captured = queue.capturing.take().expect("bug: a capture inside a capture");
        result?;
        queue.after_launch = false;
        queue.take(captured.len() * NODE, self.memory)?;
        queue.graphs.push(captured);
        Ok(Graph(queue.graphs.len() as u32 - 1))
    }

    unsafe fn forget(&self, Graph(graph): Graph) {
        let queue = &mut *self.queue();
        let captured = std::mem::take(&mut queue.graphs[graph as usize]);
        queue.allocated -= captured.len() * NODE;
    }

    unsafe fn replay(&self, graph: Graph) -> Result<(), DeviceError> {
        self.enqueue(Work::Replay(graph));
        Ok(())
    }
}

impl Library {
    fn load(path: &Path) -> Self {
        let name = CString::new(path.to_str().expect("a path in UTF-8")).expect("a path without a zero byte");
        // SAFETY: the name is terminated; the library's initialisers fill its table and nothing else.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{} does not open", path.display());
        let symbol = |name: &str| -> *mut c_void {
            let text = CString::new(name).expect("bug: a symbol has no zero byte");
            // SAFETY: an open library and a terminated name.
            let found = unsafe { libc::dlsym(handle, text.as_ptr()) };
            assert!(!found.is_null(), "bug: {name} is not in the library");
            found
        };
        // SAFETY: the signatures are those of library.cc.
        unsafe {
            Self {
                find: transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> c_int>(symbol(
                    "emulated_kernel",
                )),
                arguments: transmute::<*mut c_void, unsafe extern "C" fn(c_int, *mut c_uint) -> c_uint>(
                    symbol("emulated_arguments"),
                ),
                launch: transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(
                        c_int,
                        *const c_uint,
                        c_uint,
                        c_uint,
                        c_uint,
                        *const u64,
                        c_uint,
                        u64,
                    ),
                >(symbol("emulated_launch")),
                watch: transmute::<*mut c_void, unsafe extern "C" fn(u64, u64, u64)>(symbol(
                    "emulated_watch",
                )),
                forget: transmute::<*mut c_void, unsafe extern "C" fn(u64)>(symbol("emulated_forget")),
            }
        }
    }
}

/// Compiles the library, unless this build has one of the same sources already.
fn compile() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulated");
    let files = |folder: &Path| -> Vec<PathBuf> {
        let entries = folder.read_dir().expect("bug: the crate has its sources");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("reading the sources").path()).collect();
        files.retain(|path| path.is_file());
        files.sort();
        files
    };
    let sources = files(&tests.join("library"));
    let kernels = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda"));
    let mut hash = DefaultHasher::new();
    let headers = ["emulation.h", "warpgroup.h", "past.h"].map(|name| tests.join(name));
    for path in sources.iter().chain(&kernels).chain(&headers) {
        std::fs::read(path).expect("reading a source of the emulated kernels").hash(&mut hash);
    }
    let name = format!("emulated-{:016x}", hash.finish());
    let library = Path::new(env!("OUT_DIR")).join(&name).with_extension("so");
    if library.is_file() {
        return library;
    }
    let unfinished = library.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&unfinished).expect("making a folder for the emulated kernels");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "g++".into());
    let run = |command: &mut Command| {
        let status = command.status().expect("g++ builds the emulated kernels (CXX names another compiler)");
        assert!(status.success(), "{command:?} failed");
    };
    let units = sources.iter().filter(|path| path.extension().is_some_and(|e| e == "cc"));
    let units: Vec<(&PathBuf, PathBuf)> = units
        .map(|source| (source, unfinished.join(source.file_name().expect("bug: a file")).with_extension("o")))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let (units, compiler, tests, run) = (&units, &compiler, &tests, &run);
            scope.spawn(move || {
                for (source, object) in units.iter().skip(first).step_by(threads) {
                    let mut command = Command::new(compiler);
                    command.args(["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]);
                    command.args(["-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas", "-include"]);
                    command.arg(tests.join("emulation.h")).arg("-c").arg(source).arg("-o").arg(object);
                    run(&mut command);
                }
            });
        }
    });
    let linked = unfinished.join("library.so");
    run(Command::new(&compiler).arg("-shared").args(units.iter().map(|(_, o)| o)).arg("-o").arg(&linked));
    std::fs::rename(&linked, &library).expect("naming the finished library");
    let _ = std::fs::remove_dir_all(&unfinished);
    library
}
