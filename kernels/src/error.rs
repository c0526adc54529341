//! What can go wrong in an operation, in the words of whoever has to act on it.

/// Why an operation of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor does not have the form that the operation needs; always a fault of the calling code.
    #[error("{op}: {operand} has shape {got:?}, but {want} is needed")]
    Shape { op: &'static str, operand: &'static str, got: Vec<usize>, want: String },
    /// An operation would read and write one tensor; always a fault of the calling code.
    #[error("{op}: {operand} shares its memory with an input")]
    Aliased { op: &'static str, operand: &'static str },
    /// The bytes of a matrix do not match its shape.
    #[error("a {dtype} matrix of {rows} x {cols} needs {want} bytes, but {got} were given")]
    Bytes { dtype: &'static str, rows: usize, cols: usize, want: usize, got: usize },
    /// A type without a kernel.
    #[error("{op}: {dtype} is not supported; supported are {supported}")]
    Type { op: &'static str, dtype: String, supported: &'static str },
    /// A matrix whose rows do not divide into quantization blocks. Keep it in its own type.
    #[error(
        "a matrix of {rows} x {cols} cannot be quantized to {kind}: {cols} columns are no multiple of {block}"
    )]
    QuantBlock { kind: &'static str, rows: usize, cols: usize, block: usize },
    #[error("could not get {bytes} bytes of memory")]
    Memory { bytes: usize },
    #[error("core {core} cannot be used: {source}; choose among the cores this process may run on")]
    Core { core: usize, source: std::io::Error },
    #[error("no core was given to compute on; name at least one, or none to use all")]
    NoCores,
    #[error("a thread to compute on could not be started: {0}")]
    Thread(std::io::Error),
    #[error("HEARTH_ISA={0} is not one of scalar, avx2, avx512, amx")]
    UnknownIsa(String),
    #[error(
        "HEARTH_ISA={0} asks for instructions that this processor does not offer; the best it offers is {1}"
    )]
    MissingIsa(&'static str, &'static str),
    /// A kernel panicked. The operation's output is not usable; the threads are.
    #[error("a computing thread panicked: {0}")]
    Panicked(String),
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
