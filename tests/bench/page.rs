//! The report, read by somebody who does not trust it.

use serde_json::Value;

/// Compares every figure that names its place with the JSON there; the page rounds, so the last digit that is shown may
/// be off by half. Gives how many were compared.
pub fn same_numbers(page: &str, files: &[Value]) -> usize {
    let mut compared = 0;
    for found in page.split("data-from=\"").skip(1) {
        let (from, rest) = found.split_once('"').unwrap();
        let shown = rest.split_once('>').unwrap().1.split_once('<').unwrap().0;
        let (file, pointer) = from.split_at(from.find('/').unwrap());
        let kept = files[file.parse::<usize>().unwrap()].pointer(pointer);
        let kept = kept.and_then(Value::as_f64).unwrap_or_else(|| panic!("{from} is no number in the file"));
        let figure: f64 = shown.parse().unwrap_or_else(|_| panic!("{from} is shown as {shown:?}"));
        let digits = shown.split_once('.').map_or(0, |(_, digits)| digits.len());
        let half = 0.5 / 10f64.powi(digits as i32);
        assert!((figure - kept).abs() <= half * 1.0001, "{from}: {shown} is shown, the file has {kept}");
        compared += 1;
    }
    compared
}

/// One file that needs nothing from anywhere, and runs nothing.
pub fn stands_alone(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    for outside in ["<script", "<link", "<img", "<iframe", "@import", "url(", "src=", "href=", "http-equiv"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.matches("<svg").count() >= 3, "there are {} plots", page.matches("<svg").count());
}
