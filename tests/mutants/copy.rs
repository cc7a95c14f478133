//! The copy of the project that holds the mutants, and its build.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::mutant::Mutant;

/// What a build and the tests need; anything else stays behind.
const COPIED: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "ARCHITECTURE.md",
    "Makefile",
    "docker-compose.yml",
    ".env.example",
    "src",
    "lua",
    "migrations",
    "web",
    "scripts",
    "deploy",
    "docs",
    "tests",
    "benches",
];

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project.
pub fn read(file: &str) -> String {
    fs::read_to_string(project().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Builds the integration tests of a copy with all `mutants`; the path of their binary.
pub fn build(mutants: &[Mutant]) -> PathBuf {
    // target/debug/deps/<this test>
    let deps = std::env::current_exe().unwrap();
    let deps = deps.parent().unwrap();
    let target = deps.parent().unwrap().parent().unwrap().join("mutants");
    let copy = target.join("copy");
    let mut wanted = BTreeMap::new();
    for name in COPIED {
        collect(Path::new(name), &mut wanted);
    }
    mutate(&mut wanted, mutants);
    write(&copy, &wanted);
    borrow_dependencies(deps, &target.join("target/debug"));
    let output = Command::new(env!("CARGO"))
        .args([
            "test",
            "--locked",
            "--test",
            "it",
            "--no-run",
            "--message-format",
            "json",
        ])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", target.join("target"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the mutants do not compile:\n{log}\n{}",
        errors(&output.stdout)
    );
    let binary = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "it")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    binary.expect("cargo names the test binary")
}

/// What the compiler says, out of cargo's messages.
fn errors(messages: &[u8]) -> String {
    String::from_utf8_lossy(messages)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["message"]["level"] == "error")
        .filter_map(|message| message["message"]["rendered"].as_str().map(str::to_owned))
        .collect()
}

fn collect(name: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    let path = project().join(name);
    if path.is_dir() {
        for entry in fs::read_dir(&path).unwrap() {
            let name = name.join(entry.unwrap().file_name());
            if !name.ends_with("node_modules") {
                collect(&name, into);
            }
        }
    } else if let Ok(bytes) = fs::read(&path) {
        into.insert(name.to_owned(), bytes);
    }
}

/// Puts the mutants in, with the module that switches them.
fn mutate(files: &mut BTreeMap<PathBuf, Vec<u8>>, mutants: &[Mutant]) {
    for mutant in mutants {
        let file = files
            .get_mut(Path::new(&mutant.file))
            .unwrap_or_else(|| panic!("{}: there is no {}", mutant.name, mutant.file));
        let mut text = String::from_utf8(std::mem::take(file)).unwrap();
        mutant
            .apply(&mut text)
            .unwrap_or_else(|why| panic!("{why}"));
        *file = text.into_bytes();
    }
    for (name, bytes) in files.iter_mut() {
        if name.starts_with("src") && name.extension().is_some_and(|ext| ext == "rs") {
            let text = String::from_utf8(std::mem::take(bytes)).unwrap();
            *bytes = text
                .replace("Script::new(", "crate::mutants::script(")
                .into_bytes();
        }
    }
    let lua: String = mutants
        .iter()
        .filter(|mutant| mutant.is_lua())
        .map(|m| format!("    ({:?}, {:?}, {:?}),\n", m.name, m.find, m.replace))
        .collect();
    files.insert(
        "src/mutants.rs".into(),
        SWITCHES.replace("/*LUA*/", &lua).into_bytes(),
    );
    files
        .get_mut(Path::new("src/lib.rs"))
        .unwrap()
        .extend_from_slice(b"\n#[doc(hidden)]\npub mod mutants;\n");
}

const SWITCHES: &str = r#"//! The switches of the mutants in this copy.

const LUA_MUTANTS: &[(&str, &str, &str)] = &[
/*LUA*/];

pub fn on(name: &str) -> bool {
    static ON: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| {
        let names = std::env::var("TICKETPING_MUTANT").unwrap_or_default();
        names.split(',').map(str::to_owned).collect()
    })
    .iter()
    .any(|one| one == name)
}

pub fn script(text: impl AsRef<str>) -> redis::Script {
    let mut text = text.as_ref().to_owned();
    for (name, find, replace) in LUA_MUTANTS {
        if on(name) {
            text = text.replace(find, replace);
        }
    }
    redis::Script::new(&text)
}
"#;

/// Writes what differs, so that a second build compiles only that.
fn write(copy: &Path, wanted: &BTreeMap<PathBuf, Vec<u8>>) {
    let mut old = BTreeMap::new();
    if copy.exists() {
        list(copy, copy, &mut old);
    }
    for name in old.keys().filter(|name| !wanted.contains_key(*name)) {
        fs::remove_file(copy.join(name)).unwrap();
    }
    for (name, bytes) in wanted {
        let path = copy.join(name);
        if fs::read(&path).is_ok_and(|there| there == *bytes) {
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        if let Ok(meta) = fs::metadata(project().join(name)) {
            fs::set_permissions(&path, meta.permissions()).unwrap();
        }
    }
}

fn list(root: &Path, dir: &Path, into: &mut BTreeMap<PathBuf, ()>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, into);
        } else {
            into.insert(path.strip_prefix(root).unwrap().to_owned(), ());
        }
    }
}

/// The dependencies that are built already, by hard links: what cargo builds anew it writes to
/// new files. Where that is not possible they are built again, which only takes longer.
fn borrow_dependencies(deps: &Path, to: &Path) {
    let from = deps.parent().unwrap();
    // Written last: without it the borrowing was cut off, and begins anew.
    let whole = to.join(".borrowed");
    if whole.exists() {
        return;
    }
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    fs::create_dir_all(to).unwrap();
    for part in ["deps", "build", ".fingerprint"] {
        link(&from.join(part), &to.join(part));
    }
    fs::write(whole, "").unwrap();
}

fn link(from: &Path, to: &Path) {
    let ours = |name: &str| {
        name.contains("ticketping") || name.starts_with("it-") || name.starts_with("mutants-")
    };
    let Ok(entries) = fs::read_dir(from) else {
        return;
    };
    if fs::create_dir_all(to).is_err() {
        return;
    }
    for entry in entries.flatten() {
        let name = entry.file_name();
        if ours(&name.to_string_lossy()) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        if from.is_dir() {
            link(&from, &to);
        } else {
            // Missing one costs its compilation.
            let _ = fs::hard_link(&from, &to);
        }
    }
}
