//! Under the feature `cuda`: compiles `cuda/*.cu` with nvcc. Without it nothing here runs, and a build needs no CUDA.
//!
//! Each `cuda/NAME.cu` becomes `OUT_DIR/NAME.fatbin`, embedded by `src/cuda/gpu.rs` through `OUT_DIR/fatbins.rs`, and
//! `OUT_DIR/NAME.resources`, the compiler's report of registers, shared memory and spills.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

/// Machine code for the generations served (A100; A10 and RTX 30; L4, L40S and RTX 40; H100 and H200 with their own
/// instructions), and PTX that the driver compiles for anything later.
const TARGETS: [&str; 5] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_86,code=sm_86",
    "arch=compute_89,code=sm_89",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=compute_80",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    // Not PATH: a build from another shell would compile everything above this crate again.
    for name in ["CUDA_HOME", "CUDA_PATH", "NVCC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=cuda");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("bug: cargo sets OUT_DIR"));
    compile_kernels(&out);
}

fn compile_kernels(out: &Path) {
    let nvcc = nvcc();
    let mut sources: Vec<PathBuf> = fs::read_dir("cuda")
        .expect("bug: kernels/cuda is part of the crate")
        .map(|entry| entry.expect("reading kernels/cuda").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    // The longest first, so that no core ends with one of them alone: formats of packed weights are many kernels a file.
    sources.sort_by_key(|path| (!is_of_formats(path), path.clone()));
    let next = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile(&nvcc, source, out);
                }
            });
        }
    });
    sources.sort();
    let names = sources.iter().map(|source| name_of(source));
    let listed: String = names
        .map(|name| format!("    include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\")),\n"))
        .collect();
    let fatbins = format!("/// Every file of kernels.\nstatic FATBINS: &[&[u8]] = &[\n{listed}];\n");
    fs::write(out.join("fatbins.rs"), fatbins).expect("writing the list of kernels");
}

fn name_of(source: &Path) -> Cow<'_, str> {
    source.file_stem().expect("bug: a .cu file has a name").to_string_lossy()
}

fn is_of_formats(source: &Path) -> bool {
    fs::read_to_string(source).expect("reading a kernel").contains("EACH_FORMAT")
}

fn compile(nvcc: &OsStr, source: &Path, out: &Path) {
    let name = name_of(source);
    let mut command = Command::new(nvcc);
    // A fifth of the size. Drivers since 550 read it; older ones than 580 are refused.
    command.args(["-fatbin", "-O3", "-std=c++17", "--resource-usage", "-compress-mode=size"]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command.arg("-o").arg(out.join(format!("{name}.fatbin"))).arg(source);
    let result = command.output().unwrap_or_else(|error| {
        panic!(
            "the feature `cuda` needs nvcc 13.0, and {nvcc:?} did not start ({error}): \
             eval \"$(packaging/cuda/toolchain.sh)\" puts one on the PATH"
        )
    });
    let report = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "nvcc failed on {}:\n{report}", source.display());
    fs::write(out.join(format!("{name}.resources")), report.as_bytes()).expect("writing the resource report");
}

/// `NVCC`, then `CUDA_HOME`, then whatever `PATH` says.
fn nvcc() -> OsString {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc;
    }
    match env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")) {
        Some(path) if path.is_file() => path.into(),
        _ => "nvcc".into(),
    }
}
