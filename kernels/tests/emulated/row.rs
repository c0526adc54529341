//! `cuda/row.cu`.

use half::bf16;

use crate::program::{Case, ORDERS, Program, halves, numbers};

const EMBED: usize = 0;
const ADD_NORM: usize = 1;
const PICK_NORM: usize = 2;
const TURN_BF16: usize = 3;
const TURN_E4M3: usize = 4;
const CLEAR: usize = 5;

const PENDING: u32 = 1 << 31;

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()
}

fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_bits(u16::from_ne_bytes(*b))).collect()
}

/// What the emulation fills outputs with.
fn untouched(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0xff)
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn tokens_known_on_the_host_or_drawn_last_become_scaled_rows() {
    let program = Program::build("row");
    let mut cases = 0;
    for (width, scale) in [(8, 1.0), (2048, 45.25), (4104, 1.0), (6144, 55.4)] {
        let vocabulary = 11;
        let table = halves(3, vocabulary * width);
        // The last is beyond the table: the first row, and no reading elsewhere.
        let (tokens, drawn) = ([10, PENDING | 1, 0, PENDING, 4, 11], [7u32, 3]);
        let meant = [10, 3, 0, 7, 4, 0];
        for (rows, order) in [1, 5, 6].into_iter().flat_map(|rows| ORDERS.map(|order| (rows, order))) {
            let case = Case::new(&[EMBED, order, tokens.len(), width, vocabulary])
                .real(scale)
                .u32(&[rows as u32])
                .u32(&tokens)
                .u32(&drawn)
                .bf16(&table)
                .output(4 * tokens.len() * width);
            let answer = program.answer(case, &format!("width {width}, {rows} rows"));
            let (written, rest) = answer.split_at(4 * rows * width);
            let want: Vec<f32> = meant[..rows]
                .iter()
                .flat_map(|token| table[token * width..][..width].iter().map(|x| x.to_f32() * scale))
                .collect();
            assert_eq!(f32s(written), want);
            assert!(untouched(rest), "rows beyond the count are left alone");
            cases += 1;
        }
    }
    eprintln!("embed: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn the_rows_that_there_are_become_zero_and_no_others() {
    let program = Program::build("row");
    let mut cases = 0;
    for width in [4, 1020, 1024, 6144] {
        for (rows, order) in [1, 5, 6].into_iter().flat_map(|rows| ORDERS.map(|order| (rows, order))) {
            let case = Case::new(&[CLEAR, order, 6, width]).u32(&[rows as u32]).output(4 * 6 * width);
            let answer = program.answer(case, &format!("width {width}, {rows} rows"));
            let (written, rest) = answer.split_at(4 * rows * width);
            assert!(written.iter().all(|byte| *byte == 0), "width {width}, {rows} rows, order {order}");
            assert!(untouched(rest), "rows beyond the count are left alone");
            cases += 1;
        }
    }
    eprintln!("clear: {cases} cases");
}

struct Normed {
    residual: Vec<f32>,
    out: Vec<u8>,
}

/// Runs a norm over `grid` blocks, of which the device counts `rows`.
#[allow(clippy::too_many_arguments, reason = "a case of a kernel with as many operands")]
fn normed(
    program: &Program,
    order: usize,
    (grid, rows): (usize, usize),
    picked: Option<&[u32]>,
    residual: &[f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    unit_offset: bool,
) -> Normed {
    let width = weight.len();
    let kernel = if picked.is_some() { PICK_NORM } else { ADD_NORM };
    let case = Case::new(&[kernel, order, grid, width])
        .real(1e-5)
        .real(if unit_offset { 1.0 } else { 0.0 })
        .u32(&[rows as u32])
        .f32(residual)
        .f32(delta.unwrap_or(&[]))
        .f32(weight)
        .output(2 * grid * width)
        .u32(picked.unwrap_or(&[]));
    let answer = program.answer(case, &format!("width {width}, {rows} rows, order {order}"));
    let (after, out) = answer.split_at(4 * residual.len());
    Normed { residual: f32s(after), out: out.to_vec() }
}

fn assert_normed(x: &[f32], weight: &[f32], unit_offset: bool, out: &[bf16], what: &str) {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    for (i, (x, w)) in x.iter().zip(weight).enumerate() {
        let w = f64::from(*w) + if unit_offset { 1.0 } else { 0.0 };
        let want = f64::from(*x) / (mean + 1e-5).sqrt() * w;
        let got = out[i].to_f64();
        // Half a unit of bf16, and what f32 loses before.
        assert!((got - want).abs() <= want.abs() * 1.001 / 256.0 + 1e-12, "{what} {i}: {got} for {want}");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_residual_takes_its_delta_and_is_normed_for_every_width() {
    let program = Program::build("row");
    let mut cases = 0;
    // Widths of the supported models, the ends of each variant, and a row that most threads have no part of.
    for (width, order) in [
        (8, 0),
        (192, 1),
        (2048, 2),
        (2056, 0),
        (3072, 1),
        (4096, 2),
        (5120, 0),
        (6144, 1),
        (7168, 2),
        (8192, 0),
    ] {
        let (grid, rows) = (3, 2);
        let residual: Vec<f32> = numbers(4, grid * width).iter().map(|x| 3.0 * x + 0.1).collect();
        let (delta, weight) = (numbers(5, grid * width), numbers(6, width));
        for unit_offset in [false, true] {
            for delta in [None, Some(&delta[..])] {
                let what = format!("width {width}, offset {unit_offset}, delta {}", delta.is_some());
                let sum: Vec<f32> = match delta {
                    Some(delta) => residual.iter().zip(delta).map(|(x, y)| x + y).collect(),
                    None => residual.clone(),
                };
                let got = normed(&program, order, (grid, rows), None, &residual, delta, &weight, unit_offset);
                assert_eq!(got.residual[..rows * width], sum[..rows * width], "{what}");
                assert_eq!(got.residual[rows * width..], residual[rows * width..], "{what}");
                let (written, rest) = got.out.split_at(2 * rows * width);
                assert!(untouched(rest), "{what}");
                for (row, out) in bf16s(written).chunks_exact(width).enumerate() {
                    assert_normed(&sum[row * width..][..width], &weight, unit_offset, out, &what);
                }

                let list = [2, 0, 1];
                let picked =
                    normed(&program, order, (3, 2), Some(&list), &residual, delta, &weight, unit_offset);
                assert_eq!(picked.residual, residual, "{what}: a picked row is read alone");
                let out = bf16s(&picked.out);
                assert_normed(&sum[2 * width..], &weight, unit_offset, &out[..width], &what);
                assert_eq!(out[width..2 * width], bf16s(&got.out)[..width], "{what}: picked = in its place");
                assert!(untouched(&picked.out[4 * width..]), "{what}");
                cases += 2;
            }
        }
    }
    eprintln!("norms: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_normed_row_has_the_same_bits_alone_in_a_batch_and_in_every_order_of_threads() {
    let program = Program::build("row");
    for width in [2048, 5120] {
        let (residual, delta) = (numbers(7, 4 * width), numbers(8, 4 * width));
        let weight = numbers(9, width);
        let run = |order, from: usize, rows: usize| {
            let range = from * width..(from + rows) * width;
            let delta = Some(&delta[range.clone()]);
            normed(&program, order, (rows, rows), None, &residual[range], delta, &weight, false).out
        };
        let together = run(0, 0, 4);
        for order in ORDERS {
            assert_eq!(run(order, 0, 4), together, "order {order}");
        }
        for row in 0..4 {
            assert_eq!(run(0, row, 1), together[2 * row * width..][..2 * width], "row {row}");
        }
    }
}

/// The e4m3 nearest to a number, ties to the even code; the largest beyond it.
fn e4m3(value: f32) -> u8 {
    let size = f64::from(value.abs()).min(448.0);
    let of = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 3), f64::from(code & 7));
        if exponent == 0 { mantissa * 2f64.powi(-9) } else { (8.0 + mantissa) * 2f64.powi(exponent - 10) }
    };
    let near = |a: &u8, b: &u8| {
        let (far_a, far_b) = ((of(*a) - size).abs(), (of(*b) - size).abs());
        far_a.total_cmp(&far_b).then((a & 1).cmp(&(b & 1)))
    };
    let code = (0..=0x7e).min_by(near).expect("bug: there are codes");
    code | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// One step of queries, keys and values, and where they go.
struct Turning {
    q: usize,
    kv: usize,
    dim: usize,
}

impl Turning {
    fn check(&self, program: &Program, order: usize, packed: bool) {
        let Turning { q, kv, dim } = *self;
        let what = format!("{q} + {kv} heads of {dim}, order {order}, e4m3 {packed}");
        let (capacity, rows, blocks, context) = (6, 5, 3, 50);
        let heads = q + 2 * kv;
        let qkv: Vec<f32> = numbers(10, capacity * heads * dim).iter().map(|x| 20.0 * x).collect();
        let turns: Vec<f32> = (0..context)
            .flat_map(|at| {
                let angle = move |i: usize| at as f32 / (1.0 + i as f32);
                (0..dim / 2).map(move |i| angle(i).cos()).chain((0..dim / 2).map(move |i| angle(i).sin()))
            })
            .collect();
        // The first and last slot of a page, neighbours in a page, another page.
        let (positions, slots) = ([0, 49, 17, 18, 3, 1], [47, 16, 31, 30, 0, 1]);
        let scales: Vec<f32> = (0..2 * kv).map(|i| [1.0, 0.25, 40.0][i % 3]).collect();
        let page = blocks * kv * 16 * dim;
        let (kernel, size) = if packed { (TURN_E4M3, 1) } else { (TURN_BF16, 2) };
        let grid = (capacity * heads * dim / 8).div_ceil(256);
        let case = Case::new(&[kernel, order, grid, dim, q, kv])
            .u32(&[rows as u32])
            .f32(&qkv)
            .f32(&turns)
            .u32(&positions)
            .u32(&slots)
            .f32(&scales)
            .output(2 * capacity * q * dim)
            .output(size * page)
            .output(size * page);
        let answer = program.answer(case, &what);

        let (mut want_q, mut want_pages) =
            (vec![0xff; 2 * capacity * q * dim], [vec![0xff; size * page], vec![0xff; size * page]]);
        for row in 0..rows {
            for head in 0..heads {
                let x = &qkv[(row * heads + head) * dim..][..dim];
                let (cos, sin) = turns[positions[row] as usize * dim..][..dim].split_at(dim / 2);
                // The CPU's arithmetic, number for number.
                let turned: Vec<f32> = (0..dim)
                    .map(|d| {
                        let i = d % (dim / 2);
                        let (a, b) = (x[i], x[i + dim / 2]);
                        match (head < q + kv, d < dim / 2) {
                            (false, _) => x[d],
                            (true, true) => a * cos[i] - b * sin[i],
                            (true, false) => b * cos[i] + a * sin[i],
                        }
                    })
                    .collect();
                let bytes = |scale: f32| -> Vec<u8> {
                    let halves = || turned.iter().flat_map(|x| bf16::from_f32(*x).to_bits().to_ne_bytes());
                    if packed { turned.iter().map(|x| e4m3(x * scale)).collect() } else { halves().collect() }
                };
                if head < q {
                    let halves = turned.iter().flat_map(|x| bf16::from_f32(*x).to_bits().to_ne_bytes());
                    want_q.splice((row * q + head) * dim * 2..(row * q + head + 1) * dim * 2, halves);
                } else {
                    let (kind, head) = ((head - q) / kv, (head - q) % kv);
                    let slot = slots[row] as usize;
                    let at = ((slot / 16 * kv + head) * 16 + slot % 16) * dim * size;
                    want_pages[kind].splice(at..at + dim * size, bytes(scales[kind * kv + head]));
                }
            }
        }
        let (got_q, pages) = answer.split_at(want_q.len());
        assert!(got_q == want_q, "{what}: queries");
        assert!(pages[..size * page] == want_pages[0], "{what}: keys");
        assert!(pages[size * page..] == want_pages[1], "{what}: values");
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn queries_and_keys_turn_by_position_and_keys_and_values_land_in_their_pages() {
    let program = Program::build("row");
    let mut cases = 0;
    // Grouped, one key for all, as many as queries; head sizes of the supported models.
    for (q, kv, dim) in [(32, 8, 128), (8, 1, 256), (16, 16, 256), (40, 40, 128), (7, 1, 128), (3, 3, 64)] {
        for packed in [false, true] {
            for order in ORDERS {
                Turning { q, kv, dim }.check(&program, order, packed);
                cases += 1;
            }
        }
    }
    eprintln!("turning: {cases} cases");
}
