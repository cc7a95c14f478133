//! What the run left behind, judged from outside: by what the buyers were told,
//! what the public pages show, and what each member can read of orders and payments.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::watch;
use uuid::Uuid;

use super::engine::Control;
use super::fetch::Fetch;
use super::notes::{Admission, Finding, Notes, Paid};
use super::plan::Stores;
use super::report::{Audit, Check};
use super::requests::Requests;
use super::sampler::Samples;
use super::tau;
use super::wire::{OrderView, PaymentView};

/// A deadline as told, read by clocks that differ by a little.
const CLOCK_MARGIN_MS: u32 = 500;
/// Payments are looked at one after another, so that the audit is no load test of its own.
const PAYMENTS_WITHIN: Duration = Duration::from_secs(30);
/// An order whose payment came late may still be confirmed, or the money be on its way back.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);
/// Payments, and then the books, may take so long altogether; a target or a store that hangs would take for ever.
const LOOK_WITHIN: Duration = Duration::from_secs(60);
/// What walked away may still hold its seats, and events may be on their way.
const BOOKS_WAIT: Duration = Duration::from_secs(15);

/// What a check claims, in words.
pub fn claim(name: &str) -> &'static str {
    match name {
        "admittedAtMostMax" => "never more buyers admitted at once than the limit",
        "workingAtMostMax" => "the public queue never showed more working than the limit",
        "workingSetAtMostMax" => "never more in Redis's working set than the limit",
        "noSlotPastDeadline" => "no slot was past its deadline at the end",
        "nobodyPassedOver" => "nobody waited while a later number was admitted",
        "samePlaceOnReturn" => "who came back, or opened a second tab, found the same place",
        "positionNeverGrows" => "nobody's position in the queue grew",
        "noSeatTwice" => "no seat was sold twice",
        "paymentsAccountedFor" => "every payment became a confirmed order or was given back",
        "books" => "the books of the server balance",
        _ => "",
    }
}

pub fn check(name: &str, finding: &Finding, fine: String) -> Check {
    match &finding.first {
        None => Check {
            name: name.to_owned(),
            claim: claim(name).to_owned(),
            held: Some(true),
            found: fine,
        },
        Some(first) => Check {
            name: name.to_owned(),
            claim: claim(name).to_owned(),
            held: Some(false),
            found: format!("{} times; first: {first}", finding.count),
        },
    }
}

fn skipped(name: &str, why: &str) -> Check {
    Check {
        name: name.to_owned(),
        claim: claim(name).to_owned(),
        held: None,
        found: why.to_owned(),
    }
}

/// Everything that needs no further request.
pub fn by_notes(notes: &Notes, samples: &Samples, max_working: u64) -> anyhow::Result<Audit> {
    let mut checks = Vec::new();
    checks.push(by_admissions(&notes.admissions, max_working));
    checks.push(if samples.queue.is_empty() {
        skipped("workingAtMostMax", "the queue's snapshot could not be read")
    } else {
        let most = samples
            .queue
            .iter()
            .map(|sample| sample.working)
            .max()
            .unwrap_or(0);
        let fine = format!("{} snapshots, at most {most} working", samples.queue.len());
        check("workingAtMostMax", &samples.overshoot, fine)
    });
    checks.push(match &samples.redis_error {
        _ if samples.redis_looks > 0 => {
            let fine = format!("looked {} times", samples.redis_looks);
            check("workingSetAtMostMax", &samples.redis_overshoot, fine)
        }
        Some(err) => skipped("workingSetAtMostMax", err),
        None => skipped("workingSetAtMostMax", "Redis is not known here"),
    });
    if let Some(overdue) = samples.overdue_slots {
        checks.push(Check {
            name: "noSlotPastDeadline".to_owned(),
            claim: claim("noSlotPastDeadline").to_owned(),
            held: Some(overdue == 0),
            found: format!("{overdue} slots past their deadline at the end"),
        });
    } else if let Some(error) = &samples.overdue_error {
        checks.push(skipped("noSlotPastDeadline", error));
    }
    let admitted = notes.admissions.len();
    checks.push(check(
        "nobodyPassedOver",
        &notes.passed_over,
        format!("{admitted} admissions"),
    ));
    checks.push(check(
        "samePlaceOnReturn",
        &notes.place_lost,
        format!("{} came back", notes.place_kept),
    ));
    checks.push(check(
        "positionNeverGrows",
        &notes.position_grew,
        "no position grew".to_owned(),
    ));
    checks.push(seats_once(&notes.paid));
    let (tau, inversions) = order(&notes.admissions);
    Ok(Audit {
        checks,
        kendall_tau: tau,
        inversions,
        admissions: notes.admissions.len() as u64,
        admission_records: pack_admissions(&notes.admissions)?,
        sold_seats: pack_seats(&notes.paid)?,
    })
}

/// Checks that need the target or its stores: either may hang, and an operator may have waited enough.
pub struct Asking<'a> {
    pub requests: &'a Requests,
    pub fetch: &'a Fetch,
    pub control: watch::Receiver<Control>,
}

impl Asking<'_> {
    /// The checks, and whether a signal ended them early. Whatever hangs, they end.
    pub async fn checks(&mut self, paid: &[Paid], stores: Option<&Stores>) -> (Vec<Check>, bool) {
        let (requests, fetch) = (self.requests, self.fetch);
        let mut checks = Vec::new();
        let of_payments = async { vec![payments(paid, requests, fetch).await] };
        let mut ended = self
            .bounded("paymentsAccountedFor", of_payments, &mut checks)
            .await;
        if let Some(stores) = stores {
            ended |= self.bounded("books", books(stores), &mut checks).await;
        }
        (checks, ended)
    }

    /// True when a signal came: each signal since the run has ended ends the check under way.
    async fn bounded(
        &mut self,
        name: &str,
        found: impl Future<Output = Vec<Check>>,
        checks: &mut Vec<Check>,
    ) -> bool {
        let before = *self.control.borrow_and_update();
        let control = &mut self.control;
        let signal = async {
            let told = control.wait_for(|now| *now != before || *now == Control::Abort);
            if told.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let bound = LOOK_WITHIN.as_secs();
        tokio::select! {
            biased;
            () = signal => {
                checks.push(skipped(name, "a signal ended the audit before it was looked at"));
                true
            }
            found = found => {
                checks.extend(found);
                false
            }
            () = tokio::time::sleep(LOOK_WITHIN) => {
                checks.push(skipped(name, &format!("the target or its stores did not answer within {bound} s")));
                false
            }
        }
    }
}

/// What `ticketping audit` finds in the books of the server that was loaded.
pub async fn books(stores: &Stores) -> Vec<Check> {
    const NAME: &str = "books";
    let config = match crate::cmd::audit::Config::of_running(&stores.data_dir, BOOKS_WAIT) {
        Ok(config) => config,
        Err(error) => return vec![skipped(NAME, &error.to_string())],
    };
    let report = match crate::cmd::audit::run_checks(&config).await {
        Ok(report) => report,
        Err(error) => return vec![skipped(NAME, &error)],
    };
    let checks = report.checks.iter().map(|one| Check {
        name: format!("{NAME}.{}", one.name),
        claim: one.claim.to_owned(),
        held: one.looked_at.map(|_| one.breaches == 0),
        found: match (&one.skipped, one.looked_at.unwrap_or(0), one.breaches) {
            (Some(why), ..) => why.clone(),
            (None, looked_at, 0) => format!("{looked_at} looked at"),
            (None, looked_at, n) => {
                format!("{n} of {looked_at} breach it: {}", one.rows.join("; "))
            }
        },
    });
    checks.collect()
}

/// Order of numbers against order of being told WORKING: polls see an admission late, so this is a figure, not a check.
pub fn order(admissions: &[Admission]) -> (Option<f64>, u64) {
    let mut pairs: Vec<(u64, u64)> = admissions
        .iter()
        .map(|a| (a.number, u64::from(a.from_ms)))
        .collect();
    let order = tau::compare(&mut pairs);
    (order.tau, order.inversions)
}

/// Most people who certainly had a place at one moment: told WORKING, deadline not reached, not on the way out.
pub fn by_admissions(admissions: &[Admission], max_working: u64) -> Check {
    let mut edges: Vec<(u32, i64)> = Vec::with_capacity(admissions.len() * 2);
    for admission in admissions {
        let until = admission.until_ms.saturating_sub(CLOCK_MARGIN_MS);
        if until > admission.from_ms {
            edges.push((admission.from_ms, 1));
            edges.push((until, -1));
        }
    }
    // Ends before begins at the same moment.
    edges.sort_unstable();
    let (mut now, mut most, mut when) = (0i64, 0i64, 0);
    for (at, step) in edges {
        now += step;
        if now > most {
            (most, when) = (now, at);
        }
    }
    let held = most <= max_working as i64;
    let found = format!(
        "{most} of {max_working} at once, {:.1} s from the start",
        f64::from(when) / 1e3
    );
    Check {
        name: "admittedAtMostMax".to_owned(),
        claim: claim("admittedAtMostMax").to_owned(),
        held: Some(held),
        found,
    }
}

/// No seat of a schedule in two confirmed orders.
pub fn seats_once(paid: &[Paid]) -> Check {
    let mut owners: HashMap<(Uuid, Uuid), Uuid> = HashMap::new();
    let (mut twice, mut orders) = (Finding::default(), 0);
    for paid in paid.iter().filter(|paid| paid.confirmed) {
        orders += 1;
        for seat in &paid.seats {
            if let Some(other) = owners.insert((paid.schedule, *seat), paid.order) {
                twice.note(|| format!("seat {seat} in orders {other} and {}", paid.order));
            }
        }
    }
    check(
        "noSeatTwice",
        &twice,
        format!("{} seats in {orders} confirmed orders", owners.len()),
    )
}

/// Each payment that was confirmed at Stripe has become a confirmed order, or was given back.
pub async fn payments(paid: &[Paid], requests: &Requests, fetch: &Fetch) -> Check {
    let name = "paymentsAccountedFor";
    if paid.is_empty() {
        return skipped(name, "nobody paid");
    }
    let begun = Instant::now();
    let (mut looked, mut wrong, mut unread) = (0u64, Finding::default(), Finding::default());
    // Those not confirmed first: they are the ones in doubt.
    let mut all: Vec<&Paid> = paid.iter().collect();
    all.sort_by_key(|paid| paid.confirmed);
    for paid in &all {
        if begun.elapsed() > PAYMENTS_WITHIN {
            break;
        }
        match settled(paid, requests, fetch, begun).await {
            Ok(None) => {}
            Ok(Some(what)) => wrong.note(|| format!("order {}: {what}", paid.order)),
            Err(err) => unread.note(|| format!("order {}: {err:#}", paid.order)),
        }
        looked += 1;
    }
    if unread.count > 0 && wrong.count == 0 {
        return skipped(
            name,
            &format!(
                "{} could not be read; first: {}",
                unread.count,
                unread.first.unwrap_or_default()
            ),
        );
    }
    check(
        name,
        &wrong,
        format!("{looked} of {} payments looked at", paid.len()),
    )
}

/// None when order and payment agree; else what they say.
async fn settled(
    paid: &Paid,
    requests: &Requests,
    fetch: &Fetch,
    begun: Instant,
) -> anyhow::Result<Option<String>> {
    let bearer = format!("Bearer {}", requests.access_token(paid.member)?);
    let headers = [("authorization", bearer.as_str())];
    loop {
        let order = fetch
            .get(&format!("/api/v1/orders/{}", paid.order), &headers)
            .await?;
        let order: OrderView<'_> =
            serde_json::from_slice(&order.body).context("the order is no order")?;
        let payment = fetch
            .get(&format!("/api/v1/payments/{}", paid.payment), &headers)
            .await?;
        let payment: PaymentView<'_> =
            serde_json::from_slice(&payment.body).context("the payment is no payment")?;
        match (&*order.status, &*payment.status) {
            ("CONFIRMED", "SUCCEEDED")
            | ("REFUNDED" | "EXPIRED" | "CANCELLED", "REFUNDED" | "CANCELLED") => return Ok(None),
            (order, payment) if begun.elapsed() > SETTLED_WITHIN => {
                return Ok(Some(format!("the order is {order}, its payment {payment}")));
            }
            _ => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

fn deflate(bytes: &[u8]) -> anyhow::Result<String> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(STANDARD.encode(encoder.finish()?))
}

fn inflate(text: &str) -> anyhow::Result<Vec<u8>> {
    let packed = STANDARD.decode(text).context("no base64")?;
    let mut bytes = Vec::new();
    // 64 million admissions are more than any test has people.
    flate2::read::ZlibDecoder::new(packed.as_slice())
        .take(1 << 30)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub fn pack_admissions(admissions: &[Admission]) -> anyhow::Result<String> {
    let mut bytes = Vec::with_capacity(admissions.len() * 16);
    for admission in admissions {
        bytes.extend_from_slice(&admission.number.to_le_bytes());
        bytes.extend_from_slice(&admission.from_ms.to_le_bytes());
        bytes.extend_from_slice(&admission.until_ms.to_le_bytes());
    }
    deflate(&bytes)
}

pub fn unpack_admissions(text: &str) -> anyhow::Result<Vec<Admission>> {
    let bytes = inflate(text).context("admissionRecords")?;
    let read = |record: &[u8]| {
        Some(Admission {
            number: u64::from_le_bytes(record.get(..8)?.try_into().ok()?),
            from_ms: u32::from_le_bytes(record.get(8..12)?.try_into().ok()?),
            until_ms: u32::from_le_bytes(record.get(12..16)?.try_into().ok()?),
        })
    };
    bytes
        .chunks(16)
        .map(|record| read(record).context("admissionRecords are cut off"))
        .collect()
}

pub fn pack_seats(paid: &[Paid]) -> anyhow::Result<String> {
    let confirmed = paid.iter().filter(|paid| paid.confirmed);
    let sold: Vec<_> = confirmed
        .flat_map(|paid| paid.seats.iter().map(|seat| (paid.schedule, *seat)))
        .collect();
    pack_sold(&sold)
}

pub fn pack_sold(sold: &[(Uuid, Uuid)]) -> anyhow::Result<String> {
    let bytes: Vec<u8> = sold
        .iter()
        .flat_map(|(schedule, seat)| [*schedule.as_bytes(), *seat.as_bytes()].concat())
        .collect();
    deflate(&bytes)
}

/// Seats sold, as (schedule, seat).
pub fn unpack_seats(text: &str) -> anyhow::Result<Vec<(Uuid, Uuid)>> {
    let bytes = inflate(text).context("soldSeats")?;
    let read = |record: &[u8]| {
        Some((
            Uuid::from_slice(record.get(..16)?).ok()?,
            Uuid::from_slice(record.get(16..)?).ok()?,
        ))
    };
    bytes
        .chunks(32)
        .map(|record| read(record).context("soldSeats are cut off"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(number: u64, from_ms: u32, until_ms: u32) -> Admission {
        Admission {
            number,
            from_ms,
            until_ms,
        }
    }

    fn paid(seats: &[Uuid], schedule: Uuid) -> Paid {
        Paid {
            member: 0,
            order: Uuid::now_v7(),
            payment: Uuid::now_v7(),
            confirmed: true,
            schedule,
            seats: seats.to_vec(),
        }
    }

    #[test]
    fn overlapping_admissions_are_counted_exactly() {
        let three = [
            admission(1, 0, 10_000),
            admission(2, 100, 10_000),
            admission(3, 9_000, 20_000),
        ];
        assert_eq!(by_admissions(&three, 3).held, Some(true));
        assert_eq!(by_admissions(&three, 2).held, Some(false));
        // One after another, hand in hand.
        let relay = [
            admission(1, 0, 5_000),
            admission(2, 5_000, 9_000),
            admission(3, 9_000, 12_000),
        ];
        assert_eq!(by_admissions(&relay, 1).held, Some(true));
    }

    #[test]
    fn a_seat_sold_twice_is_found() {
        let (schedule, seat) = (Uuid::now_v7(), Uuid::now_v7());
        let other = Uuid::now_v7();
        assert_eq!(
            seats_once(&[paid(&[seat], schedule), paid(&[other], schedule)]).held,
            Some(true)
        );
        assert_eq!(
            seats_once(&[paid(&[seat], schedule), paid(&[seat], other)]).held,
            Some(true)
        );
        let twice = seats_once(&[paid(&[seat, other], schedule), paid(&[seat], schedule)]);
        assert_eq!(twice.held, Some(false));
        let mut lapsed = paid(&[seat], schedule);
        lapsed.confirmed = false;
        assert_eq!(
            seats_once(&[lapsed, paid(&[seat], schedule)]).held,
            Some(true)
        );
    }

    #[test]
    fn records_survive_the_way_through_a_report() {
        let admissions: Vec<_> = (1..1_000)
            .map(|n| admission(n, n as u32 * 3, n as u32 * 7))
            .collect();
        assert_eq!(
            unpack_admissions(&pack_admissions(&admissions).unwrap()).unwrap(),
            admissions
        );
        let (schedule, seat) = (Uuid::now_v7(), Uuid::now_v7());
        assert_eq!(
            unpack_seats(&pack_seats(&[paid(&[seat], schedule)]).unwrap()).unwrap(),
            [(schedule, seat)]
        );
        assert!(unpack_admissions("AAAA").is_err());
        assert!(unpack_seats(&deflate(&[0; 33]).unwrap()).is_err());
    }

    #[test]
    fn order_is_a_figure() {
        let (tau, inversions) = order(&[
            admission(1, 10, 0),
            admission(2, 30, 0),
            admission(3, 20, 0),
        ]);
        assert_eq!(inversions, 1);
        assert!((tau.unwrap() - 1.0 / 3.0).abs() < 1e-9);
    }
}
