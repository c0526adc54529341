//! Plots as SVG inside the page: no script, no library, prints well.

use maud::{Markup, html};

/// One line of a plot, or only its points.
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

pub struct Axis {
    pub label: &'static str,
    /// Grows tenfold by equal steps; for times, which do.
    pub tenfold: bool,
}

pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
    /// Heights that should not be passed, with their names.
    pub limits: Vec<(String, f64)>,
    /// Places on the x axis, with their names.
    pub marks: Vec<(String, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;

/// From values to places.
struct Scale {
    low: f64,
    high: f64,
    tenfold: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, tenfold: bool, from: f64, to: f64) -> Self {
        let usable = values.filter(|v| v.is_finite() && (!tenfold || *v > 0.0));
        let (low, high) = usable.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = match (low <= high, tenfold) {
            (false, _) => (if tenfold { 1.0 } else { 0.0 }, if tenfold { 10.0 } else { 1.0 }),
            // From one step of 1, 2, 5 to another, so that the ends have names.
            (true, true) => (step_below(low), step_below(high * 4.999).max(step_below(low) * 2.0)),
            (true, false) => (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
        };
        Self { low, high, tenfold, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.tenfold {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.tenfold {
            let step = step_below((self.high - self.low) / 4.0);
            return (0..=20).map(|i| f64::from(i) * step).take_while(|tick| *tick <= self.high).collect();
        }
        let mut ticks = Vec::new();
        let mut tick = self.low;
        while tick <= self.high * 1.001 {
            ticks.push(tick);
            tick = step_below(tick * 2.6);
        }
        // Over many tens only these have room.
        if ticks.len() > 8 {
            ticks.retain(|tick| (tick.log10() - tick.log10().round()).abs() < 1e-6);
        }
        ticks
    }
}

/// The largest of 1, 2, 5, 10, 20, 50 … that is not above the value.
fn step_below(value: f64) -> f64 {
    let ten = 10f64.powf((value * 1.000_001).log10().floor());
    let of = [5.0, 2.0, 1.0].into_iter().find(|of| of * ten <= value * 1.000_001).unwrap_or(1.0);
    of * ten
}

fn number(value: f64) -> String {
    let text = if value >= 1.0 { format!("{value:.1}") } else { format!("{value:.3}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn finite(line: &Line) -> impl Iterator<Item = (f64, f64)> {
    line.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
}

impl Plot {
    pub fn svg(&self) -> Markup {
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let xs = points().map(|(x, _)| x).chain(self.marks.iter().map(|(_, x)| *x));
        let ys = points().map(|(_, y)| y).chain(self.limits.iter().map(|(_, y)| *y));
        let x = Scale::new(xs, self.x.tenfold, LEFT, WIDTH - RIGHT);
        let y = Scale::new(ys, self.y.tenfold, HEIGHT - BOTTOM, TOP);
        let at = |v: f64| format!("{v:.1}");
        let path = |line: &Line| {
            let step = |(i, (px, py)): (usize, (f64, f64))| {
                format!("{}{} {}", if i == 0 { 'M' } else { 'L' }, at(x.place(px)), at(y.place(py)))
            };
            finite(line).enumerate().map(step).collect::<String>()
        };
        html! {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.title) {
                text.title x=(at(LEFT)) y="14" { (self.title) }
                @for tick in y.ticks() {
                    line.grid x1=(at(LEFT)) x2=(at(WIDTH - RIGHT)) y1=(at(y.place(tick))) y2=(at(y.place(tick))) {}
                    text.tick x=(at(LEFT - 6.0)) y=(at(y.place(tick) + 4.0)) text-anchor="end" { (number(tick)) }
                }
                @for tick in x.ticks() {
                    line.grid x1=(at(x.place(tick))) x2=(at(x.place(tick))) y1=(at(TOP)) y2=(at(HEIGHT - BOTTOM)) {}
                    text.tick x=(at(x.place(tick))) y=(at(HEIGHT - BOTTOM + 16.0)) text-anchor="middle" { (number(tick)) }
                }
                text.axis x=(at((LEFT + WIDTH - RIGHT) / 2.0)) y=(at(HEIGHT - 10.0)) text-anchor="middle" { (self.x.label) }
                text.axis transform=(format!("translate(12 {}) rotate(-90)", at((TOP + HEIGHT - BOTTOM) / 2.0))) text-anchor="middle" {
                    (self.y.label)
                }
                @for (label, limit) in &self.limits {
                    line.limit x1=(at(LEFT)) x2=(at(WIDTH - RIGHT)) y1=(at(y.place(*limit))) y2=(at(y.place(*limit))) {}
                    text.limit x=(at(WIDTH - RIGHT - 4.0)) y=(at(y.place(*limit) - 4.0)) text-anchor="end" { (label) }
                }
                @for (label, mark) in &self.marks {
                    line.mark x1=(at(x.place(*mark))) x2=(at(x.place(*mark))) y1=(at(TOP)) y2=(at(HEIGHT - BOTTOM)) {}
                    text.mark x=(at(x.place(*mark) - 4.0)) y=(at(TOP + 12.0)) text-anchor="end" { (label) }
                }
                @for (i, line) in self.lines.iter().enumerate() {
                    path class=(format!("line c{}", i % 4)) d=(path(line)) {}
                    @if line.points.len() <= 40 {
                        @for (px, py) in finite(line) {
                            circle class=(format!("c{}", i % 4)) cx=(at(x.place(px))) cy=(at(y.place(py))) r="3" {
                                title { (line.label) ": " (number(px)) " " (self.x.label) ", " (number(py)) " " (self.y.label) }
                            }
                        }
                    }
                }
            }
            @if self.lines.len() > 1 {
                ul.legend { @for (i, line) in self.lines.iter().enumerate() {
                    li { span class=(format!("key c{}", i % 4)) {} (line.label) }
                } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steps_are_one_two_and_five() {
        for (value, step) in [
            (1.0, 1.0),
            (1.9, 1.0),
            (2.0, 2.0),
            (4.99, 2.0),
            (5.0, 5.0),
            (70.0, 50.0),
            (0.03, 0.02),
            (1000.0, 1000.0),
        ] {
            assert!((step_below(value) / step - 1.0).abs() < 1e-9, "{value}: {}", step_below(value));
        }
    }

    proptest! {
        #[test]
        fn every_point_lies_inside_and_larger_values_further(
            values in prop::collection::vec(0.001..100_000f64, 1..20), tenfold: bool,
        ) {
            let scale = Scale::new(values.iter().copied(), tenfold, 50.0, 600.0);
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let places: Vec<f64> = sorted.iter().map(|v| scale.place(*v)).collect();
            prop_assert!(places.is_sorted() && places.iter().all(|p| (50.0..=600.0).contains(p)));
            prop_assert!(scale.low <= sorted[0] * 1.001 && scale.high >= sorted[sorted.len() - 1] * 0.999, "{} {}", scale.low, scale.high);
            let ticks = scale.ticks();
            prop_assert!((1..=21).contains(&ticks.len()), "{ticks:?}");
        }
    }

    #[test]
    fn labels_cannot_break_out_of_the_picture() {
        let line = Line { label: "</svg><script>".into(), points: vec![(1.0, f64::NAN), (2.0, 3.0)] };
        let axis = |tenfold| Axis { label: "a & b", tenfold };
        let plot = Plot {
            title: "<b>".into(),
            x: axis(false),
            y: axis(true),
            lines: vec![line],
            limits: vec![],
            marks: vec![],
        };
        let text = plot.svg().into_string();
        assert!(!text.contains("<script") && !text.contains("<b>") && text.contains("a &amp; b"), "{text}");
        assert_eq!(text.matches("</svg>").count(), 1);
    }
}
