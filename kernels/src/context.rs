//! Where operations run: the device, the threads pinned to its cores, and the memory they compute in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Device;

use crate::Error;
use crate::buffer::Aligned;
use crate::cpu::attend::Memory;
use crate::cpu::detect::Isa;
use crate::cpu::pool::Pool;
use crate::cpu::product::Staging;

/// A device and the threads that compute on it; cheap to clone. Operations on clones of one context take turns.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
}

struct Shared {
    device: Device,
    isa: Isa,
    pool: Pool,
    scratch: Mutex<Scratch>,
}

/// Memory of operations in flight. It grows to the largest step seen and stays.
pub(crate) struct Scratch {
    pub staging: Staging,
    /// Rows of a mixture's expert: gate and up, product of both, output.
    pub expert: [Aligned<f32>; 3],
    pub attention: Memory,
}

impl Context {
    /// The CPU. The calling thread computes too, so one thread less than cores is started. Without `cores`, as many
    /// threads as the process may use at once (affinity and control group quota), pinned when that is every core it
    /// may run on.
    pub fn cpu(cores: Option<Vec<usize>>) -> Result<Self, Error> {
        Ok(Self::with(Isa::chosen()?, Pool::on(cores)?))
    }

    /// The CPU with instructions up to `isa` and a number of threads that are not pinned: for tests and comparisons.
    pub fn cpu_with(isa: Isa, threads: usize) -> Result<Self, Error> {
        if isa > Isa::best() {
            return Err(Error::MissingIsa(isa.name(), Isa::best().name()));
        }
        Ok(Self::with(isa, Pool::unpinned(threads)?))
    }

    fn with(isa: Isa, pool: Pool) -> Self {
        let scratch = Scratch {
            staging: Staging::empty(),
            expert: std::array::from_fn(|_| Aligned::empty()),
            attention: Memory::empty(),
        };
        Self { shared: Arc::new(Shared { device: Device::Cpu, isa, pool, scratch: Mutex::new(scratch) }) }
    }

    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.shared.pool.threads()
    }

    pub fn isa(&self) -> Isa {
        self.shared.isa
    }

    /// Pins the calling thread to the first core of this context, where the pool has left room for it. The thread
    /// that drives a model calls this once.
    pub fn pin_caller(&self) -> Result<(), Error> {
        self.shared.pool.pin_caller()
    }

    /// Runs `task(i)` for all `i` below `tasks`, on all threads; see [`Pool::run`].
    pub(crate) fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) -> Result<(), Error> {
        self.shared.pool.run(tasks, &task)
    }

    pub(crate) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // A panic leaves numbers behind that nobody reads again.
        self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
