//! The CUDA kernels on the CPU: `cuda/*.cu`, unchanged, compiled by the C++ compiler through `emulated/emulation.h` and
//! compared with a reference. Finds wrong indices, missing barriers and wrong arithmetic where there is no GPU.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use half::bf16;

const NEEDS_CXX: &str = "g++ builds the emulated kernels (CXX names another compiler)";

fn build(name: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulated");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-{name}"));
    // Tests may run in processes of their own, side by side.
    let unfinished = program.with_extension(std::process::id().to_string());
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "g++".into());
    let status = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-include"])
        .arg(sources.join("emulation.h"))
        .arg(sources.join(format!("{name}.cc")))
        .arg("-o")
        .arg(&unfinished)
        .status()
        .expect(NEEDS_CXX);
    assert!(status.success(), "{name}.cc does not compile");
    std::fs::rename(&unfinished, &program).expect("naming the finished program");
    program
}

fn run(program: &Path, arguments: &[&str], input: Vec<u8>) -> Output {
    let mut child = Command::new(program)
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

#[derive(Clone, Copy, Debug)]
struct Case {
    /// 0: a warp has the whole of k; 1: the warps of a block share it.
    class: u32,
    order: u32,
    m: usize,
    n: usize,
    k: usize,
}

/// Numbers in [-1, 1) with the spread of weights, the same for the same `seed`.
fn numbers(seed: u32, count: usize) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_f32((state >> 8) as f32 / 8_388_608.0 - 1.0)
        })
        .collect()
}

fn skinny(program: &Path, case: Case, x: &[bf16], w: &[bf16]) -> Vec<f32> {
    let mut input = Vec::new();
    for head in [case.class, case.order, 11, case.m as u32, case.n as u32, case.k as u32] {
        input.extend(head.to_ne_bytes());
    }
    input.extend(x.iter().chain(w).flat_map(|v| v.to_bits().to_ne_bytes()));
    let output = run(program, &[], input);
    assert!(output.status.success(), "{case:?}: {}", String::from_utf8_lossy(&output.stderr));
    let y: Vec<f32> =
        output.stdout.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(y.len(), case.m * case.n, "{case:?}");
    y
}

fn assert_product(case: Case, x: &[bf16], w: &[bf16], y: &[f32]) {
    for row in 0..case.m {
        for n in 0..case.n {
            let terms = x[row * case.k..][..case.k].iter().zip(&w[n * case.k..][..case.k]);
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), (x, w)| {
                let term = x.to_f64() * w.to_f64();
                (sum + term, size + term.abs())
            });
            let got = f64::from(y[row * case.n + n]);
            // f32 sums of at most k terms: far inside k half-ulps of the sum of magnitudes. NaN (unwritten) fails.
            let allowed = size * case.k as f64 * f64::from(f32::EPSILON) / 16.0;
            assert!((got - sum).abs() <= allowed, "{case:?} row {row} n {n}: {got} instead of {sum}");
        }
    }
}

/// Shapes: whole tiles and rounds, a partial last tile, rows shorter than a warp's stride, an odd number of rounds.
const SHAPES: [(usize, usize); 5] = [(32, 2048), (37, 1024), (3, 8), (5, 1288), (66, 520)];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_skinny_product_is_right_for_every_row_count_and_ragged_shape() {
    let program = build("skinny");
    for (n, k) in SHAPES {
        for m in 1..=8 {
            let (x, w) = (numbers(1, m * k), numbers(2, n * k));
            for class in [0, 1] {
                let case = Case { class, order: 0, m, n, k };
                assert_product(case, &x, &w, &skinny(&program, case, &x, &w));
            }
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_has_the_same_bits_alone_in_a_batch_and_in_every_order_of_threads() {
    let program = build("skinny");
    let (n, k) = (37, 2056);
    let (x, w) = (numbers(3, 8 * k), numbers(4, n * k));
    for class in [0, 1] {
        let together = skinny(&program, Case { class, order: 0, m: 8, n, k }, &x, &w);
        for order in [1, 2] {
            let again = skinny(&program, Case { class, order, m: 8, n, k }, &x, &w);
            assert!(
                again.iter().map(|v| v.to_bits()).eq(together.iter().map(|v| v.to_bits())),
                "order {order}"
            );
        }
        for row in 0..8 {
            let alone = skinny(&program, Case { class, order: 0, m: 1, n, k }, &x[row * k..][..k], &w);
            let there = &together[row * n..][..n];
            assert!(alone.iter().map(|v| v.to_bits()).eq(there.iter().map(|v| v.to_bits())), "row {row}");
        }
    }
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn the_emulation_notices_planted_faults() {
    let program = build("faults");
    let sums = |fault: &str| {
        let output = run(&program, &[fault], Vec::new());
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.stderr)
    };
    assert_eq!(sums("none").1, "64 64 64");
    assert_eq!(sums("missing barrier").1, "32 64 64", "the result depends on the order");
    let (ended_well, _, report) = sums("barrier under if");
    assert!(!ended_well && String::from_utf8_lossy(&report).contains("a barrier that not all threads reach"));
    let (ended_well, _, report) = sums("one too far");
    assert!(!ended_well && String::from_utf8_lossy(&report).contains("heap-buffer-overflow"));
}
