//! Finds the server, and makes sure that it is one, before a single buyer is sent.

use std::time::Duration;

use anyhow::{Context, bail};
use url::Url;
use uuid::Uuid;

use super::args::TargetArgs;
use super::fetch::Fetch;
use super::plan::{Stores, Target};
use super::wire::{ListView, PerformanceView, QueueView, ScheduleView};
use crate::platform::embedded::runtime::RuntimeFile;

/// Long enough for a server under load, short enough to be told soon.
const PROBE_TIMEOUT: Duration = Duration::from_secs(8);

/// What a first look at the target gave.
pub struct Found {
    pub target: Target,
    pub fetch: Fetch,
    pub queue: QueueView,
    /// The server's clock minus ours.
    pub clock_offset_ms: i64,
}

/// An address as people type it: the scheme may be left out.
fn address(text: &str) -> anyhow::Result<Url> {
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url: Url = whole
        .parse()
        .with_context(|| format!("`{text}` is no address"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        bail!("`{text}` is no address of a server: say http://host:port");
    }
    Ok(url)
}

pub async fn find(args: &TargetArgs) -> anyhow::Result<Found> {
    // One that a crash left still says where a server was; whether it is there is seen soon.
    let known = RuntimeFile::read(&args.data_dir).with_context(|| {
        let path = RuntimeFile::path(&args.data_dir);
        format!("cannot read {}", path.display())
    })?;
    let typed = args.url.as_deref().map(address).transpose()?;
    let known_url = known.as_ref().map(|k| address(k.reach())).transpose()?;
    let Some(url) = typed.or_else(|| known_url.clone()) else {
        bail!(
            "no server found: {} does not exist. Start one by `ticketping serve all`, or name it by --url",
            RuntimeFile::path(&args.data_dir).display()
        );
    };
    // Stores named by the data directory belong to another server than one named by hand.
    let known = known.filter(|_| Some(&url) == known_url.as_ref());
    let stripe_url = match &args.stripe_url {
        Some(typed) => Some(address(typed)?),
        None => match &known {
            Some(known) if !known.stripe_url.is_empty() => Some(address(&known.stripe_url)?),
            _ => None,
        },
    };
    let fetch = Fetch::new(url.clone(), PROBE_TIMEOUT);
    let performance = performance(&fetch, args.performance).await?;
    let id = performance.id;
    let before = chrono::Utc::now();
    let queue: QueueView = fetch.json(&format!("/api/v1/queues/{id}"), &[]).await?;
    let after = chrono::Utc::now();
    let schedules = match fetch
        .json::<ListView<ScheduleView>>(&format!("/api/v1/performances/{id}/schedules"), &[])
        .await
    {
        Ok(list) => list.items.into_iter().map(|schedule| schedule.id).collect(),
        // Outside the booking window there are none to see, and entering will say so too.
        Err(_) if performance.booking != "OPEN" => Vec::new(),
        Err(err) => return Err(err),
    };
    Ok(Found {
        target: Target {
            url,
            stripe_url,
            performance: id,
            title: performance.title,
            schedules,
            stores: known.map(|known| Stores {
                data_dir: args.data_dir.clone(),
                redis_url: known.redis_url,
                redis_ca: known.redis_ca,
                redis_prefix: known.redis_prefix,
            }),
        },
        fetch,
        clock_offset_ms: clock_offset(&queue, before, after),
        queue,
    })
}

/// A snapshot may be a second old, so only a difference beyond that is one of the clocks.
fn clock_offset(
    queue: &QueueView,
    before: chrono::DateTime<chrono::Utc>,
    after: chrono::DateTime<chrono::Utc>,
) -> i64 {
    let Some(as_of) = queue.as_of else { return 0 };
    let middle = before + (after - before) / 2;
    let offset = (as_of - middle).num_milliseconds();
    if offset.abs() <= 2_500 { 0 } else { offset }
}

async fn performance(fetch: &Fetch, wanted: Option<Uuid>) -> anyhow::Result<PerformanceView> {
    if let Some(id) = wanted {
        return fetch.json(&format!("/api/v1/performances/{id}"), &[]).await;
    }
    let mut cursor: Option<String> = None;
    let mut seen = 0;
    loop {
        let path = match &cursor {
            Some(cursor) => {
                let query = serde_urlencoded::to_string([("limit", "100"), ("cursor", cursor)])?;
                format!("/api/v1/performances?{query}")
            }
            None => "/api/v1/performances?limit=100".to_owned(),
        };
        let page: ListView<PerformanceView> = fetch.json(&path, &[]).await?;
        seen += page.items.len();
        if let Some(open) = page
            .items
            .into_iter()
            .find(|performance| performance.booking == "OPEN")
        {
            return Ok(open);
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            bail!(
                "none of the {seen} performances is OPEN: `ticketping seed --performances 1` makes one, --performance ID names one"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_typed() {
        assert_eq!(
            address("127.0.0.1:8080").unwrap().as_str(),
            "http://127.0.0.1:8080/"
        );
        assert_eq!(
            address("https://shop.example/base").unwrap().path(),
            "/base"
        );
        for wrong in ["", "ftp://x", "http://", "redis://h:1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_snapshots_age_is_no_clock_difference() {
        let now = chrono::Utc::now();
        let mut queue = QueueView {
            phase: "OPEN".into(),
            served_number: 0,
            last_number: 0,
            waiting: 0,
            working: 0,
            max_working: 1,
            remaining_seats: 1,
            as_of: Some(now - chrono::Duration::milliseconds(900)),
        };
        assert_eq!(clock_offset(&queue, now, now), 0);
        queue.as_of = Some(now + chrono::Duration::seconds(60));
        assert_eq!(clock_offset(&queue, now, now), 60_000);
    }
}
