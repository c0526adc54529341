//! The hardware table of the documentation is what its files of results say, and nobody's typing.

use std::path::{Path, PathBuf};

use hearth::bench::result::Results;
use hearth::bench::sizing::table;

#[test]
fn the_hardware_table_is_made_of_its_files() {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    // Without a file there is no folder, and the table is its head.
    let found = std::fs::read_dir(benches.join("results/sizing")).into_iter().flatten();
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let file = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        (format!("results/sizing/{name}"), Results::read(path).unwrap_or_else(|e| panic!("{e}")))
    };
    let files: Vec<_> = paths.iter().map(file).collect();
    let page = std::fs::read_to_string(benches.join("SIZING.md")).unwrap();
    let begun = page.split_once("<!-- sizing -->\n");
    let shown = begun.and_then(|(_, rest)| Some(rest.split_once("<!-- /sizing -->")?.0));
    let made = table(&files);
    assert_eq!(shown, Some(made.as_str()), "benches/SIZING.md must hold this table:\n{made}");
}
