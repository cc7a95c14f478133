//! The tests have teeth: each known defect (a *mutant*, described in a `*.toml` beside this
//! file) is put into a copy of the sources, and the test that it names must fail.
//!
//! The copy holds all mutants at once, each behind a switch that an environment variable turns
//! on, so that one build serves them all; none of it stands in `src`. Before any mutant is
//! switched on, all those tests must pass in the copy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod copy;
mod mutant;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use self::mutant::Mutant;

/// Mutants at the same time for each processor. Their tests mostly wait, and a test that fails for
/// want of a processor fails no run: a mutant has to fail it anyway.
const AT_ONCE_PER_PROCESSOR: usize = 2;
/// A defect may make its test wait for ever; every test has deadlines that end before this.
const ONE_MAX: Duration = Duration::from_secs(240);

/// Says it beside the test's captured output: this takes minutes.
fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "mutants: {text}");
}

struct Run {
    passed: BTreeSet<String>,
    output: String,
    ended: bool,
}

/// Runs these tests of the copy's binary, with mutants switched on.
fn run(binary: &Path, tests: &BTreeSet<&str>, switched_on: &str) -> Run {
    let mut child = Command::new(binary)
        .args(tests)
        .arg("--exact")
        .env("TICKETPING_MUTANT", switched_on)
        .env_remove("TICKETPING_FAILPOINT")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.collect::<Vec<_>>()
    });
    let deadline = Instant::now() + ONE_MAX * u32::try_from(tests.len()).unwrap();
    let mut ended = true;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            ended = false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let lines = reader.join().unwrap();
    let passed = lines
        .iter()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"))
        .map(str::to_owned)
        .collect();
    Run {
        passed,
        output: lines.join("\n"),
        ended,
    }
}

/// Why the mutant lives, if it does.
fn lives(binary: &Path, mutant: &Mutant) -> Option<String> {
    let begun = Instant::now();
    let tests = BTreeSet::from([mutant.caught_by.as_str()]);
    let run = run(binary, &tests, &mutant.switches());
    let caught = !run.passed.contains(&mutant.caught_by);
    progress(&format!(
        "{} {} by {} ({:.0} s{})",
        mutant.name,
        if caught { "is caught" } else { "LIVES" },
        mutant.caught_by,
        begun.elapsed().as_secs_f64(),
        if run.ended { "" } else { ", it hung" }
    ));
    (!caught).then(|| {
        format!(
            "{} ({}): {} passes all the same\n{}",
            mutant.name, mutant.what, mutant.caught_by, run.output
        )
    })
}

#[test]
fn every_mutant_is_caught() {
    let wanted = std::env::var("TICKETPING_MUTANTS").unwrap_or_default();
    let all = mutant::read_all();
    let mutants: Vec<&Mutant> = all
        .iter()
        .filter(|mutant| wanted.is_empty() || wanted.split(',').any(|w| mutant.name.contains(w)))
        .collect();
    assert!(!mutants.is_empty(), "no mutant is named like {wanted:?}");
    let begun = Instant::now();
    let binary = copy::build(&all);
    progress(&format!(
        "a copy with {} mutants was built in {:.0} s",
        all.len(),
        begun.elapsed().as_secs_f64()
    ));
    let tests: BTreeSet<&str> = mutants.iter().map(|m| m.caught_by.as_str()).collect();
    let without = run(&binary, &tests, "");
    let missing: Vec<&&str> = (tests.iter())
        .filter(|test| !without.passed.contains(**test))
        .collect();
    assert!(
        missing.is_empty(),
        "these do not exist, or fail without any mutant: {missing:?}\n{}",
        without.output
    );
    let queue = Mutex::new(mutants.iter().copied().collect::<VecDeque<_>>());
    let living = Mutex::new(Vec::new());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE_PER_PROCESSOR * processors {
            scope.spawn(|| {
                loop {
                    let Some(mutant) = queue.lock().unwrap().pop_front() else {
                        return;
                    };
                    if let Some(why) = lives(&binary, mutant) {
                        living.lock().unwrap().push(why);
                    }
                }
            });
        }
    });
    let living = living.into_inner().unwrap();
    assert!(living.is_empty(), "{}", living.join("\n\n"));
}

/// Quick, so that a change which moves a mutant's place shows at once and names it.
#[test]
fn every_mutant_has_its_place() {
    let all = mutant::read_all();
    let names: BTreeSet<&str> = all.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "a name stands twice");
    for one in &all {
        for other in &one.with {
            assert!(names.contains(other.as_str()), "{}: no {other}", one.name);
        }
    }
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for one in &all {
        let text = files
            .entry(&one.file)
            .or_insert_with(|| copy::read(&one.file));
        one.apply(text).unwrap_or_else(|why| panic!("{why}"));
    }
}
