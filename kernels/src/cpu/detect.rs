//! Which instructions this processor offers, asked once when a context is made.

use crate::Error;
#[cfg(target_arch = "x86_64")]
use crate::cpu::amx;

/// The instruction sets that kernels are written for, each including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 and AMX tiles of bf16.
    Amx,
}

impl Isa {
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// The best set of this processor that the operating system lets this process use.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if !(is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c"))
            {
                return Isa::Scalar;
            }
            if !(is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl"))
            {
                return Isa::Avx2;
            }
            if amx::offered() { Isa::Amx } else { Isa::Avx512 }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Scalar
    }

    /// The best set, or the one that the environment variable `HEARTH_ISA` names (for tests and comparisons).
    pub fn chosen() -> Result<Isa, Error> {
        match std::env::var_os("HEARTH_ISA").filter(|name| !name.is_empty()) {
            None => Ok(Isa::best()),
            Some(name) => Isa::named(&name.to_string_lossy(), Isa::best()),
        }
    }

    fn named(name: &str, best: Isa) -> Result<Isa, Error> {
        let isa = Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| Error::UnknownIsa(name.to_owned()))?;
        if isa > best { Err(Error::MissingIsa(isa.name(), best.name())) } else { Ok(isa) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_chosen_by_name_and_refused_when_unknown_or_missing() {
        assert_eq!(Isa::named("avx2", Isa::Avx512).unwrap(), Isa::Avx2);
        assert_eq!(
            Isa::named("amx", Isa::Avx512).unwrap_err().to_string(),
            "HEARTH_ISA=amx asks for instructions that this processor does not offer; the best it offers is avx512"
        );
        let error = Isa::named("sse9", Isa::Avx512).unwrap_err();
        assert_eq!(error.to_string(), "HEARTH_ISA=sse9 is not one of scalar, avx2, avx512, amx");
    }
}
