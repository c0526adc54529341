//! Which language a file is written in, by its name or by the editor's word, and what rules need to know of it.

use Kind::{Code, Marks, Prose};

/// What a language's texts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Statements, brackets, strings.
    Code,
    /// Elements or entries: brackets and indentation, but no statements.
    Marks,
    /// Sentences: neither brackets nor indentation have to be in order.
    Prose,
}

/// A language. Names are lower-case.
#[derive(Debug, PartialEq, Eq)]
pub struct Language {
    pub name: &'static str,
    /// Visual Studio Code's ids and GitLab's names, lower-case, where they differ from `name`.
    ids: &'static [&'static str],
    extensions: &'static [&'static str],
    /// File names without a telling extension, lower-case.
    files: &'static [&'static str],
    /// What begins a comment that ends with its line.
    pub comments: &'static [&'static str],
    /// What quotes text over several lines, without escapes.
    pub quotes: &'static [&'static str],
    /// `'` quotes a single character and has other uses besides.
    pub characters: bool,
    pub kind: Kind,
}

const SLASHES: &[&str] = &["//"];
const HASH: &[&str] = &["#"];
const DASHES: &[&str] = &["--"];
const NONE: &[&str] = &[];
const TRIPLE: &[&str] = &["\"\"\"", "'''"];
const BACKTICK: &[&str] = &["`"];

const fn of(
    name: &'static str,
    extensions: &'static [&'static str],
    comments: &'static [&'static str],
) -> Language {
    Language {
        name,
        ids: NONE,
        extensions,
        files: NONE,
        comments,
        quotes: NONE,
        characters: false,
        kind: Code,
    }
}

/// A language of C's kind: `//` and character literals.
const fn c(name: &'static str, extensions: &'static [&'static str]) -> Language {
    Language { characters: true, ..of(name, extensions, SLASHES) }
}

const LANGUAGES: &[Language] = &[
    Language { files: &["sconstruct"], quotes: TRIPLE, ..of("python", &["py", "pyi", "pyw"], HASH) },
    Language {
        files: &["gemfile", "rakefile", "vagrantfile", "podfile", "guardfile", "dangerfile", "fastfile"],
        ..of("ruby", &["rb", "rake", "gemspec", "ru"], HASH)
    },
    Language {
        ids: &["javascriptreact"],
        quotes: BACKTICK,
        ..of("javascript", &["js", "jsx", "mjs", "cjs"], SLASHES)
    },
    Language {
        ids: &["typescriptreact"],
        quotes: BACKTICK,
        ..of("typescript", &["ts", "tsx", "mts", "cts"], SLASHES)
    },
    Language { quotes: BACKTICK, ids: &["golang"], ..c("go", &["go"]) },
    c("rust", &["rs"]),
    c("c", &["c", "h"]),
    Language {
        ids: &["c++"],
        ..c("cpp", &["cc", "cpp", "cxx", "c++", "hpp", "hh", "hxx", "inl", "cu", "cuh"])
    },
    Language { ids: &["c#"], ..c("csharp", &["cs", "csx"]) },
    c("java", &["java"]),
    c("kotlin", &["kt", "kts"]),
    c("scala", &["scala", "sc"]),
    c("swift", &["swift"]),
    c("objective-c", &["m", "mm"]),
    Language { files: &["jenkinsfile"], ..of("groovy", &["groovy", "gradle"], SLASHES) },
    of("dart", &["dart"], SLASHES),
    of("php", &["php", "phtml"], &["//", "#"]),
    of("perl", &["pl", "pm", "t"], HASH),
    of("lua", &["lua"], DASHES),
    of("r", &["r"], HASH),
    of("julia", &["jl"], HASH),
    of("elixir", &["ex", "exs"], HASH),
    of("erlang", &["erl", "hrl"], &["%"]),
    c("haskell", &["hs"]),
    c("ocaml", &["ml", "mli"]),
    c("fsharp", &["fs", "fsx"]),
    of("clojure", &["clj", "cljs", "cljc", "edn"], &[";"]),
    c("zig", &["zig"]),
    of("nim", &["nim"], HASH),
    c("solidity", &["sol"]),
    c("verilog", &["v", "sv", "svh"]),
    Language { characters: true, ..of("vhdl", &["vhd", "vhdl"], DASHES) },
    of("fortran", &["f90", "f95", "f03", "f"], &["!"]),
    of("ada", &["adb", "ads"], DASHES),
    of("pascal", &["pas", "pp"], SLASHES),
    of("cobol", &["cob", "cbl"], NONE),
    of("abap", &["abap"], &["\""]),
    of("apex", &["cls", "trigger"], SLASHES),
    Language {
        ids: &["shell", "bash", "sh"],
        files: &[".bashrc", ".zshrc", ".profile"],
        ..of("shellscript", &["sh", "bash", "zsh", "ksh"], HASH)
    },
    of("powershell", &["ps1", "psm1", "psd1"], HASH),
    of("bat", &["bat", "cmd"], &["rem "]),
    of("sql", &["sql", "psql", "plsql"], DASHES),
    Language { kind: Marks, ..of("graphql", &["graphql", "gql"], HASH) },
    Language { ids: &["hcl"], ..of("terraform", &["tf", "tfvars", "hcl"], &["#", "//"]) },
    of("protobuf", &["proto"], SLASHES),
    of("starlark", &["bzl", "star"], HASH),
    of("nix", &["nix"], HASH),
    Language {
        files: &["dockerfile", "containerfile"],
        kind: Marks,
        ..of("dockerfile", &["dockerfile"], HASH)
    },
    Language { files: &["makefile", "gnumakefile"], kind: Marks, ..of("makefile", &["mk", "mak"], HASH) },
    Language { files: &["cmakelists.txt"], ..of("cmake", &["cmake"], HASH) },
    Language { kind: Marks, ..of("json", &["json"], NONE) },
    Language { kind: Marks, ..of("jsonc", &["jsonc", "json5"], SLASHES) },
    Language { kind: Marks, ..of("yaml", &["yaml", "yml"], HASH) },
    Language { kind: Marks, ..of("toml", &["toml"], HASH) },
    Language { kind: Marks, ..of("ini", &["ini", "cfg", "conf", "properties"], &["#", ";"]) },
    Language { kind: Marks, ..of("xml", &["xml", "xsd", "xsl", "svg"], NONE) },
    Language { kind: Marks, ..of("html", &["html", "htm"], NONE) },
    Language { kind: Marks, ids: &["erb"], ..of("html+erb", &["erb"], NONE) },
    Language { kind: Marks, ..of("haml", &["haml"], &["-#"]) },
    Language { kind: Marks, ..of("vue", &["vue"], SLASHES) },
    Language { kind: Marks, ..of("svelte", &["svelte"], SLASHES) },
    Language { kind: Marks, ..of("css", &["css"], NONE) },
    Language { kind: Marks, ids: &["sass"], ..of("scss", &["scss", "sass", "less"], SLASHES) },
    Language { kind: Prose, ..of("markdown", &["md", "markdown", "mdx", "rmd"], NONE) },
    Language { kind: Prose, ..of("restructuredtext", &["rst"], NONE) },
    Language { kind: Prose, ..of("asciidoc", &["adoc", "asciidoc"], NONE) },
    Language { kind: Prose, ..of("latex", &["tex", "bib"], &["%"]) },
    Language { kind: Prose, ids: &["plain text", "text"], ..of("plaintext", &["txt"], NONE) },
];

/// What is assumed of a language that is not in the table.
pub static UNKNOWN: Language = of("", NONE, &["//", "#"]);

impl Language {
    /// The language that a file's name tells.
    pub fn of_file(name: &str) -> Option<&'static Self> {
        let file = base(name).to_ascii_lowercase();
        let whole = LANGUAGES.iter().find(|l| l.files.contains(&file.as_str()));
        whole.or_else(|| {
            let extension = extension(&file)?;
            LANGUAGES.iter().find(|l| l.extensions.contains(&extension))
        })
    }

    /// The language that an editor means by exactly this id.
    pub fn of_id(id: &str) -> Option<&'static Self> {
        LANGUAGES.iter().find(|l| l.name == id || l.ids.contains(&id))
    }

    /// An extension of this language, if the file has one of them: a label that no caller can invent.
    pub fn extension_of(&'static self, name: &str) -> &'static str {
        let file = base(name).to_ascii_lowercase();
        let found = extension(&file).and_then(|e| self.extensions.iter().find(|known| **known == e));
        found.copied().unwrap_or_default()
    }
}

fn base(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or(name)
}

/// What follows the last dot of a file name; a leading dot begins a name.
pub fn extension(name: &str) -> Option<&str> {
    let (stem, extension) = base(name).rsplit_once('.')?;
    (!stem.is_empty() && !extension.is_empty()).then_some(extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_its_language_by_its_name_or_extension() {
        let name = |file| Language::of_file(file).map(|l| l.name);
        for (file, language) in [
            ("test.rb", "ruby"),
            ("app/models/User.RB", "ruby"),
            ("src\\main.rs", "rust"),
            ("Dockerfile", "dockerfile"),
            ("Gemfile", "ruby"),
            (".gitlab-ci.yml", "yaml"),
            ("README.md", "markdown"),
        ] {
            assert_eq!(name(file), Some(language), "{file}");
        }
        for file in ["", "LICENSE", ".hidden", "a.unheard-of", "trailing."] {
            assert_eq!(name(file), None, "{file}");
        }
        assert_eq!(extension("a/b.unheard-of"), Some("unheard-of"));
    }

    #[test]
    fn an_id_is_read_exactly() {
        assert_eq!(Language::of_id("typescriptreact").map(|l| l.name), Some("typescript"));
        assert_eq!(Language::of_id("ruby").map(|l| l.name), Some("ruby"));
        assert_eq!(Language::of_id("Ruby"), None);
        assert_eq!(Language::of_id(""), None);
    }

    #[test]
    fn no_name_and_no_extension_stands_for_two_languages() {
        for (i, language) in LANGUAGES.iter().enumerate() {
            for other in &LANGUAGES[i + 1..] {
                let twice = |a: &[&str], b: &[&str]| a.iter().any(|x| b.contains(x));
                assert!(!twice(language.extensions, other.extensions), "{} {}", language.name, other.name);
                assert!(!twice(language.files, other.files), "{} {}", language.name, other.name);
                assert!(!twice(language.ids, other.ids), "{} {}", language.name, other.name);
            }
        }
    }
}
