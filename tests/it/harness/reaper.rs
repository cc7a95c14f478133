//! Ends what tests started when the test process ends, by panic, by Ctrl-C or by
//! SIGKILL: a watcher process reads a pipe whose other end only we hold.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// Reads lines: `dir PATH` or `process PID WORD`. At the end of input it kills the
/// processes (where WORD is on their command line: a pid that is another's by now
/// is left alone), and in each directory the server that has its lock and the
/// stores of its records; then the directories go.
const SCRIPT: &str = r#"
end() {
    [ -n "$1" ] || return
    case $(tr '\0' ' ' < "/proc/$1/cmdline") in *"$2"*) kill -9 "$1" ;; esac
}
dirs= processes=
while read -r kind first second; do
    case $kind in
        dir) dirs="$dirs $first" ;;
        process) processes="$processes $first,$second" ;;
    esac
done
for process in $processes; do end "${process%%,*}" "${process#*,}"; done
for dir in $dirs; do
    stores=$(sed -n 's/.*"storesDir": "\(.*\)".*/\1/p' "$dir/stores.json")
    end "$(cat "$dir/lock")" "$dir"
    for record in "$dir"/*.json "$stores"/*.json; do
        end "$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$record" | head -n 1)" "${stores:-$dir}"
    done
    [ "$stores" = "$dir" ] || dirs="$dirs $stores"
done
sleep 0.2
for dir in $dirs; do rm -rf "$dir"; done
"#;

/// Has the stores started in `dir` ended, and it removed, when this process ends.
pub fn clean_up(dir: &Path) {
    tell(&format!("dir {}", dir.display()));
}

/// Has the process ended when this one ends; `word` is on its command line.
pub fn end(pid: u32, word: &str) {
    tell(&format!("process {pid} {word}"));
}

fn tell(line: &str) {
    static GUARDIAN: OnceLock<Mutex<Child>> = OnceLock::new();
    let reaper = GUARDIAN.get_or_init(|| {
        Mutex::new(
            Command::new("sh")
                .args(["-c", SCRIPT])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // Out of reach of the Ctrl-C that ends us.
                .process_group(0)
                .spawn()
                .expect("sh runs"),
        )
    });
    let mut reaper = reaper.lock().expect("no writer panicked");
    let pipe = reaper.stdin.as_mut().expect("it is piped");
    writeln!(pipe, "{line}").expect("the reaper reads");
}
