//! stripe-mock: Stripe's own check of requests against its OpenAPI. It keeps no
//! state; what it refuses, Stripe would refuse.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{fetched, free_port, reaper};

/// The base URL of the one that all tests of this process share.
pub fn stripe_mock() -> &'static str {
    static SHARED: OnceLock<StripeMock> = OnceLock::new();
    let start = || (0..3).find_map(|_| start()).expect("stripe-mock starts");
    &SHARED.get_or_init(start).url
}

struct StripeMock {
    url: String,
    _process: Child,
}

fn start() -> Option<StripeMock> {
    let address = format!("127.0.0.1:{}", free_port());
    let mut process = Command::new(fetched("stripe-mock-fetch"))
        .args(["-http-addr", &address])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    reaper::end(process.id(), &address);
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < deadline, "stripe-mock hangs");
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(StripeMock {
        url: format!("http://{address}"),
        _process: process,
    })
}
