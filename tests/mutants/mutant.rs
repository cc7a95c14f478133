//! What a mutant is, as its file describes it.

use std::path::Path;

use serde::Deserialize;

/// A known defect.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// `<area>.<what it does wrong>`.
    pub name: String,
    /// What is wrong with it, in a sentence.
    pub what: String,
    /// The file to change: Rust, or Lua.
    pub file: String,
    /// Text that stands there exactly once.
    pub find: String,
    /// What it becomes. In Rust `ON` is true while the mutant is switched on, and the text must
    /// behave as before while it is not; Lua is replaced as the script is loaded.
    pub replace: String,
    /// Other mutants to switch on with it, where either guard alone would hold.
    #[serde(default)]
    pub with: Vec<String>,
    /// The test that must fail, as `cargo test --test it` names it.
    pub caught_by: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mutant: Vec<Mutant>,
}

impl Mutant {
    /// For `TICKETPING_MUTANT`.
    pub fn switches(&self) -> String {
        let names = std::iter::once(&self.name).chain(&self.with);
        names.cloned().collect::<Vec<_>>().join(",")
    }

    pub fn is_lua(&self) -> bool {
        self.file.ends_with(".lua")
    }

    /// Changes `text`, the content of its file; Lua only shows that it could be.
    pub fn apply(&self, text: &mut String) -> Result<(), String> {
        match text.matches(&self.find).count() {
            1 if self.is_lua() => {}
            1 => {
                let on = format!("crate::mutants::on({:?})", self.name);
                if !self.replace.contains("ON") {
                    return Err(format!("{}: its `replace` asks for no ON", self.name));
                }
                *text = text.replace(&self.find, &self.replace.replace("ON", &on));
            }
            n => {
                return Err(format!(
                    "{}: its `find` stands {n} times in {}, want once",
                    self.name, self.file
                ));
            }
        }
        Ok(())
    }
}

/// All of them, from the files beside this one.
pub fn read_all() -> Vec<Mutant> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    files.sort();
    files
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let file: File =
                toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            file.mutant
        })
        .collect()
}
