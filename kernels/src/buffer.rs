//! Memory: aligned buffers of our own, and the view of a candle tensor as rows of f32.
//!
//! Tensors are whole buffers of `[capacity, width]`; an operation names how many rows of them it uses. Reading and
//! writing one takes candle's lock on it and allocates nothing.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;

use candle_core::{CpuStorage, InplaceOp1, Storage, StorageRef, Tensor};

use crate::Error;

/// Buffers from this size on are aligned to huge pages and ask for them: streaming weights through 4 KiB pages costs
/// more in address translation than in memory.
const HUGE: usize = 2 << 20;

/// Zeroed memory for plain numbers, aligned to cache lines. Pages are touched first by whoever writes them first.
pub(crate) struct Aligned<T: Copy> {
    start: *mut T,
    len: usize,
    layout: Option<Layout>,
    of: PhantomData<T>,
}

// SAFETY: an `Aligned` owns its memory like a `Vec` does; `T` is a plain number.
unsafe impl<T: Copy + Send> Send for Aligned<T> {}
// SAFETY: shared access gives shared slices only; writing needs `&mut`.
unsafe impl<T: Copy + Sync> Sync for Aligned<T> {}

impl<T: Copy> Aligned<T> {
    pub fn empty() -> Self {
        Self { start: std::ptr::dangling_mut(), len: 0, layout: None, of: PhantomData }
    }

    /// `T` must be a number type: all-zero bytes are its zero.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        if len == 0 {
            return Ok(Self::empty());
        }
        let no_memory = || Error::Memory { bytes: len.saturating_mul(size_of::<T>()) };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(no_memory)?;
        let layout =
            Layout::from_size_align(bytes, if bytes >= HUGE { HUGE } else { 64 }).map_err(|_| no_memory())?;
        // SAFETY: `layout` is not of size zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(no_memory());
        }
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: the range is memory that was just allocated; the advice does not change its content, and a
            // kernel that refuses it leaves small pages, which work as well.
            unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { start: start.cast(), len, layout: Some(layout), of: PhantomData })
    }

    /// Makes room for `len` numbers at least and forgets the content when it has to grow.
    pub fn reserve(&mut self, len: usize) -> Result<(), Error> {
        if self.len < len {
            *self = Self::empty();
            *self = Self::zeroed(len.next_power_of_two())?;
        }
        Ok(())
    }
}

impl<T: Copy> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` points to `len` initialised numbers (zeroed at first), or is dangling with `len` 0.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Copy> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T: Copy> Drop for Aligned<T> {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: `start` came from `alloc_zeroed` with this layout.
            unsafe { dealloc(self.start.cast(), layout) };
        }
    }
}

/// A pointer that tasks of one job write through, each to its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever dereferences it promises that no two tasks touch the same element.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// # Safety
    /// `at` lies in the slice this was made of.
    pub unsafe fn at(self, at: usize) -> *mut T {
        // SAFETY: the caller keeps `at` inside.
        unsafe { self.0.add(at) }
    }

    /// # Safety
    /// The range lies in the slice this was made of, nobody else uses it meanwhile, and that slice outlives `'a`.
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Which tensor of which operation is meant, for errors.
pub(crate) type Name = (&'static str, &'static str);

/// A tensor held for reading.
pub(crate) struct Reading<'a> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
}

impl Deref for Reading<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(all)) => &all[self.start..self.start + self.len],
            _ => unreachable!("bug: the type of a tensor changed while it was held"),
        }
    }
}

/// The first `rows` rows of a tensor of width `width`.
pub(crate) fn read<'a>(
    name: Name,
    tensor: &'a Tensor,
    rows: usize,
    width: usize,
) -> Result<Reading<'a>, Error> {
    check(name, tensor, rows, width)?;
    let (storage, layout) = tensor.storage_and_layout();
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        return Err(not_f32(name, tensor));
    }
    Ok(Reading { storage, start: layout.start_offset(), len: rows * width })
}

/// A vector of `width` numbers, for example a bias.
pub(crate) fn read_vector<'a>(name: Name, tensor: &'a Tensor, width: usize) -> Result<Reading<'a>, Error> {
    if tensor.dims() != [width] || !tensor.is_contiguous() {
        return Err(Error::Shape {
            op: name.0,
            operand: name.1,
            got: tensor.dims().to_vec(),
            want: format!("a contiguous [{width}]"),
        });
    }
    let (storage, layout) = tensor.storage_and_layout();
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        return Err(not_f32(name, tensor));
    }
    Ok(Reading { storage, start: layout.start_offset(), len: width })
}

/// Gives the first `rows` rows of a tensor of width `width` to `fill`. `held` are the tensors that the operation reads
/// meanwhile: writing to one of them is refused, where candle's lock would wait forever.
pub(crate) fn write<R>(
    name: Name,
    tensor: &Tensor,
    rows: usize,
    width: usize,
    held: &[&Reading<'_>],
    fill: impl FnOnce(&mut [f32]) -> Result<R, Error>,
) -> Result<R, Error> {
    check(name, tensor, rows, width)?;
    if tensor.dtype() != candle_core::DType::F32 {
        return Err(not_f32(name, tensor));
    }
    {
        let (storage, _) = tensor.storage_and_layout();
        if held.iter().any(|held| std::ptr::eq(&*held.storage, &*storage)) {
            return Err(Error::Aliased { op: name.0, operand: name.1 });
        }
    }
    let op = Fill { name: name.0, len: rows * width, fill: Cell::new(Some(fill)), result: Cell::new(None) };
    tensor.inplace_op1(&op)?;
    op.result.into_inner().expect("bug: candle did not run an operation in place")
}

struct Fill<F, R> {
    name: &'static str,
    len: usize,
    fill: Cell<Option<F>>,
    result: Cell<Option<Result<R, Error>>>,
}

impl<F: FnOnce(&mut [f32]) -> Result<R, Error>, R> InplaceOp1 for Fill<F, R> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &candle_core::Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(all) = storage else { candle_core::bail!("{}: f32 is needed", self.name) };
        let fill = self.fill.take().expect("bug: candle ran an operation in place twice");
        let start = layout.start_offset();
        self.result.set(Some(fill(&mut all[start..start + self.len])));
        Ok(())
    }
}

fn check(name: Name, tensor: &Tensor, rows: usize, width: usize) -> Result<(), Error> {
    match tensor.dims() {
        [capacity, w] if *capacity >= rows && *w == width && tensor.is_contiguous() => Ok(()),
        dims => Err(Error::Shape {
            op: name.0,
            operand: name.1,
            got: dims.to_vec(),
            want: format!("a contiguous [at least {rows}, {width}]"),
        }),
    }
}

fn not_f32(name: Name, tensor: &Tensor) -> Error {
    let dtype = format!("{} in {:?}", name.1, tensor.dtype());
    Error::Type { op: name.0, dtype, supported: "f32 on the CPU" }
}
