//! A file of kernels as a program, and the cases it is given.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use half::bf16;

const NEEDS_CXX: &str = "g++ builds the emulated kernels (CXX names another compiler)";

pub struct Program(PathBuf);

impl Program {
    /// Compiles `NAME.cc`.
    pub fn build(name: &str) -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulated");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-{name}"));
        // Tests may run beside one another, as threads or as processes.
        let unfinished =
            program.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "g++".into());
        let status = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-g", "-ffp-contract=off"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
            .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-include"])
            .arg(sources.join("emulation.h"))
            .arg(sources.join(format!("{name}.cc")))
            .arg("-o")
            .arg(&unfinished)
            .status()
            .expect(NEEDS_CXX);
        assert!(status.success(), "{name}.cc does not compile");
        std::fs::rename(&unfinished, &program).expect("naming the finished program");
        Self(program)
    }

    pub fn run(&self, arguments: &[&str], input: Vec<u8>) -> Output {
        let mut child = Command::new(&self.0)
            .args(arguments)
            .env("ASAN_OPTIONS", "detect_stack_use_after_return=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting the emulated kernels");
        let mut stdin = child.stdin.take().expect("bug: stdin is piped");
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("running the emulated kernels");
        let _ = writer.join().expect("bug: the writer does not panic");
        output
    }

    /// Runs one case and returns what it answers with. `what` names it when it fails.
    pub fn answer(&self, case: Case, what: &str) -> Vec<u8> {
        let output = self.run(&[], case.into_bytes());
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// [`Program::answer`] in f32.
    pub fn reals(&self, case: Case, what: &str) -> Vec<f32> {
        let bytes = self.answer(case, what);
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()
    }
}

/// What a program reads: numbers, then buffers.
#[derive(Default)]
pub struct Case {
    numbers: Vec<u32>,
    buffers: Vec<Vec<u8>>,
}

impl Case {
    pub fn new(numbers: &[usize]) -> Self {
        let numbers = numbers.iter().map(|n| u32::try_from(*n).expect("a number of 32 bits")).collect();
        Self { numbers, buffers: Vec::new() }
    }

    pub fn real(mut self, value: f32) -> Self {
        self.numbers.push(value.to_bits());
        self
    }

    pub fn bf16(self, values: &[bf16]) -> Self {
        self.raw(values.iter().flat_map(|v| v.to_bits().to_ne_bytes()).collect())
    }

    pub fn f32(self, values: &[f32]) -> Self {
        self.raw(values.iter().flat_map(|v| v.to_ne_bytes()).collect())
    }

    pub fn u32(self, values: &[u32]) -> Self {
        self.raw(values.iter().flat_map(|v| v.to_ne_bytes()).collect())
    }

    /// A buffer to be written: NaN in every type.
    pub fn output(self, bytes: usize) -> Self {
        self.raw(vec![0xff; bytes])
    }

    pub fn raw(mut self, bytes: Vec<u8>) -> Self {
        self.buffers.push(bytes);
        self
    }

    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = (self.numbers.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(self.numbers.iter().flat_map(|n| n.to_ne_bytes()));
        bytes.extend((self.buffers.len() as u32).to_ne_bytes());
        for buffer in &self.buffers {
            bytes.extend((buffer.len() as u64).to_ne_bytes());
            bytes.extend(buffer);
        }
        bytes
    }
}

/// The orders in which the emulation resumes threads: ascending, descending, shuffled, each warp as far as it can.
pub const ORDERS: [usize; 4] = [0, 1, 2, 3];
/// For warps with parts of their own: each is left behind in turn, until no other can go any further.
pub const STRAGGLING: usize = 4;

/// Numbers in [-1, 1), the same for the same `seed`.
pub fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The same as bf16.
pub fn halves(seed: u32, count: usize) -> Vec<bf16> {
    numbers(seed, count).into_iter().map(bf16::from_f32).collect()
}

/// The bits, to compare answers that must be the same.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
