//! The journey in README.md, run as it stands.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

/// Slow machines included, nobody waits longer for a demo sale's ticket.
const DONE_WITHIN: Duration = Duration::from_secs(120);

/// Everything the block prints, against the server at `api` and the Stripe sandbox.
pub async fn journey(api: &str, stripe: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(path).unwrap();
    let (_, rest) = readme
        .split_once("<!-- the test `compose` runs this block as it stands -->")
        .expect("the marker");
    let (_, rest) = rest.split_once("```bash\n").expect("a block");
    let (script, _) = rest.split_once("```").expect("its end");
    let output = Command::new("bash")
        .args(["-e", "-u", "-o", "pipefail", "-c", script])
        .env("API", api)
        .env("STRIPE", stripe)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DONE_WITHIN, output).await;
    let output = output.expect("in time").unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let failure = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{failure}");
    told
}
