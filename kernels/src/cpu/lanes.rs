//! Sixteen f32 side by side, as the instructions of the processor offer them.
//!
//! Kernels are written once, over [`Lanes`], and compiled for each instruction set by [`dispatch`]. As every operation
//! here rounds alike in all sets, so does every kernel: bits do not depend on the processor.
//!
//! All functions are unsafe for two reasons that hold throughout the file: the processor must offer the instructions
//! (a [`Context`] exists only for sets that were found), and pointers must be valid for the 16 lanes they name.

#![allow(unsafe_op_in_unsafe_fn)]

use crate::Context;
use crate::cpu::detect::Isa;

/// Work to be compiled for each instruction set. `run` must be `#[inline(always)]`, and so must be all it calls with
/// `L`, or they miss the instructions.
pub(crate) trait Kernel {
    /// # Safety
    /// The processor offers `L`.
    unsafe fn run<L: Lanes>(self);
}

/// Runs a kernel with the instructions of the context.
pub(crate) fn dispatch(ctx: &Context, kernel: impl Kernel) {
    // SAFETY: a context is only made for instructions that the processor offers.
    unsafe {
        match ctx.isa() {
            Isa::Scalar => kernel.run::<Scalar>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => x86::avx512(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run::<Scalar>(),
        }
    }
}

pub(crate) trait Lanes: Copy {
    type V: Copy;
    /// Rows that share one pass over a weight: as many as have room for their sums in registers.
    const ROWS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is no number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is no number.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `2^v` for integers from -126 to 127.
    unsafe fn power(v: Self::V) -> Self::V;
    /// 32 bf16: those at even and those at odd places.
    unsafe fn pairs(from: *const u16) -> (Self::V, Self::V);
    /// 16 f16.
    unsafe fn f16(from: *const u16) -> Self::V;
    unsafe fn prefetch<T>(at: *const T);

    /// `e^v` within 1.5e-7 of it, exactly 1 at 0, between 1.2e-38 and 2.4e38; not a number for none.
    #[inline(always)]
    unsafe fn exp(v: Self::V) -> Self::V {
        let v = Self::min(Self::splat(88.3), Self::max(Self::splat(-87.3), v));
        let n = Self::round(Self::mul(v, Self::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first exact in few bits.
        let r = Self::fma(n, Self::splat(-0.693_359_4), v);
        let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = Self::fma(p, r, Self::splat(c));
        }
        Self::mul(p, Self::power(n))
    }

    /// The sum of the lanes, halves first.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut all = [0.0f32; 16];
        Self::store(all.as_mut_ptr(), v);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                all[i] += all[i + half];
            }
        }
        all[0]
    }

    /// The largest lane; if any is no number, any.
    #[inline(always)]
    unsafe fn top(v: Self::V) -> f32 {
        let mut all = [0.0f32; 16];
        Self::store(all.as_mut_ptr(), v);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                all[i] = if all[i] > all[i + half] { all[i] } else { all[i + half] };
            }
        }
        all[0]
    }

    /// The first `count` numbers, then zeroes.
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> Self::V {
        if count == 16 {
            return Self::load(from);
        }
        let mut all = [0.0f32; 16];
        std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), count);
        Self::load(all.as_ptr())
    }

    #[inline(always)]
    unsafe fn store_some(to: *mut f32, count: usize, v: Self::V) {
        if count == 16 {
            return Self::store(to, v);
        }
        let mut all = [0.0f32; 16];
        Self::store(all.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(all.as_ptr(), to, count);
    }
}

/// Any processor: slow, and correct. Its operations are calls, or unrolled kernels would be mostly this code.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Scalar {
    #[inline(always)]
    fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
        std::array::from_fn(f)
    }
}

impl Lanes for Scalar {
    type V = [f32; 16];
    const ROWS: usize = 4;

    #[inline(never)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 16]
    }

    #[inline(never)]
    unsafe fn load(from: *const f32) -> Self::V {
        from.cast::<[f32; 16]>().read_unaligned()
    }

    #[inline(never)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        to.cast::<[f32; 16]>().write_unaligned(v);
    }

    #[inline(never)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|i| a[i] + b[i])
    }

    #[inline(never)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|i| a[i] - b[i])
    }

    #[inline(never)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|i| a[i] * b[i])
    }

    #[inline(never)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|i| a[i] / b[i])
    }

    #[inline(never)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        Self::each(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(never)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(never)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        Self::each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(never)]
    unsafe fn round(v: Self::V) -> Self::V {
        Self::each(|i| v[i].round_ties_even())
    }

    #[inline(never)]
    unsafe fn power(v: Self::V) -> Self::V {
        Self::each(|i| f32::from_bits(((v[i] as i32 + 127) as u32) << 23))
    }

    #[inline(never)]
    unsafe fn pairs(from: *const u16) -> (Self::V, Self::V) {
        let all = from.cast::<[u16; 32]>().read_unaligned();
        let wide = |x: u16| f32::from_bits(u32::from(x) << 16);
        (Self::each(|i| wide(all[2 * i])), Self::each(|i| wide(all[2 * i + 1])))
    }

    #[inline(never)]
    unsafe fn f16(from: *const u16) -> Self::V {
        let all = from.cast::<[u16; 16]>().read_unaligned();
        Self::each(|i| half::f16::from_bits(all[i]).to_f32_const())
    }

    #[inline(never)]
    unsafe fn prefetch<T>(_at: *const T) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, Lanes};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn avx2(kernel: impl Kernel) {
        kernel.run::<Avx2>();
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub unsafe fn avx512(kernel: impl Kernel) {
        kernel.run::<Avx512>();
    }

    #[derive(Clone, Copy)]
    pub struct Avx512;

    impl Lanes for Avx512 {
        type V = __m512;
        const ROWS: usize = 8;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            _mm512_set1_ps(x)
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            _mm512_loadu_ps(from)
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, v: Self::V) {
            _mm512_storeu_ps(to, v);
        }

        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            _mm512_add_ps(a, b)
        }

        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            _mm512_sub_ps(a, b)
        }

        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            _mm512_mul_ps(a, b)
        }

        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            _mm512_div_ps(a, b)
        }

        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            _mm512_fmadd_ps(a, b, c)
        }

        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            _mm512_max_ps(a, b)
        }

        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            _mm512_min_ps(a, b)
        }

        #[inline(always)]
        unsafe fn round(v: Self::V) -> Self::V {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
        }

        #[inline(always)]
        unsafe fn power(v: Self::V) -> Self::V {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }

        #[inline(always)]
        unsafe fn pairs(from: *const u16) -> (Self::V, Self::V) {
            let all = _mm512_loadu_si512(from.cast());
            let odd = _mm512_and_si512(all, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(all)), _mm512_castsi512_ps(odd))
        }

        #[inline(always)]
        unsafe fn top(v: Self::V) -> f32 {
            _mm512_reduce_max_ps(v)
        }

        #[inline(always)]
        unsafe fn f16(from: *const u16) -> Self::V {
            _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
        }

        #[inline(always)]
        unsafe fn prefetch<T>(at: *const T) {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2;

    #[derive(Clone, Copy)]
    pub struct Halves(__m256, __m256);

    impl Lanes for Avx2 {
        type V = Halves;
        const ROWS: usize = 2;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            Halves(_mm256_set1_ps(x), _mm256_set1_ps(x))
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            Halves(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, v: Self::V) {
            _mm256_storeu_ps(to, v.0);
            _mm256_storeu_ps(to.add(8), v.1);
        }

        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            Halves(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1))
        }

        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            Halves(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1))
        }

        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            Halves(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1))
        }

        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            Halves(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1))
        }

        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            Halves(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1))
        }

        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            Halves(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1))
        }

        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            Halves(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1))
        }

        #[inline(always)]
        unsafe fn round(v: Self::V) -> Self::V {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            Halves(_mm256_round_ps::<NEAREST>(v.0), _mm256_round_ps::<NEAREST>(v.1))
        }

        #[inline(always)]
        unsafe fn power(v: Self::V) -> Self::V {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(v.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(v.1), bias));
            Halves(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }

        #[inline(always)]
        unsafe fn pairs(from: *const u16) -> (Self::V, Self::V) {
            let (low, high) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()));
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
            let odd = |x| _mm256_castsi256_ps(_mm256_and_si256(x, mask));
            (Halves(even(low), even(high)), Halves(odd(low), odd(high)))
        }

        #[inline(always)]
        unsafe fn f16(from: *const u16) -> Self::V {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast()));
            Halves(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }

        #[inline(always)]
        unsafe fn prefetch<T>(at: *const T) {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a> {
        from: &'a [f32; 16],
        to: &'a mut [f32; 16],
    }

    impl Kernel for Exp<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            L::store(self.to.as_mut_ptr(), L::exp(L::load(self.from.as_ptr())));
        }
    }

    #[test]
    fn exp_is_near_the_exact_one_and_the_same_on_all_instruction_sets() {
        let contexts: Vec<Context> =
            Isa::ALL.into_iter().filter_map(|isa| Context::cpu_with(isa, 1).ok()).collect();
        for i in -6000..6000 {
            let from: [f32; 16] = std::array::from_fn(|lane| (i * 16 + lane as i32) as f32 * 9e-4);
            let mut results = vec![];
            for ctx in &contexts {
                let mut to = [0.0; 16];
                dispatch(ctx, Exp { from: &from, to: &mut to });
                results.push(to.map(f32::to_bits));
            }
            assert!(results.iter().all(|bits| *bits == results[0]), "at {}", from[0]);
            for (x, y) in from.iter().zip(results[0]) {
                let want = f64::from(x.clamp(-87.3, 88.3)).exp();
                let error = (f64::from(f32::from_bits(y)) / want - 1.0).abs();
                assert!(error < 1.5e-7, "exp({x}) is off by {error}");
            }
        }
        for ctx in &contexts {
            let mut to = [7.0; 16];
            let mut from = [0.0; 16];
            from[3] = f32::NAN;
            dispatch(ctx, Exp { from: &from, to: &mut to });
            assert!(to[0] == 1.0 && to[3].is_nan(), "{:?}", ctx.isa());
        }
    }
}
