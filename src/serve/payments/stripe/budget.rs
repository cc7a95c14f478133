//! The account's rate limits: one budget for each of Stripe's endpoints and one for all calls, each
//! as large as this instance's share of the account's limits ([`super::shares`]).
//!
//! A budget is the calls that may begin within a sliding second (and a little). A bucket that is
//! filled evenly would lose what comes in while a waiting caller is woken late.
//!
//! Buyers go first: a call in the background takes a token only when no buyer waits for it.
//! Callers of one endpoint and class are served in their order. Every wait and every line of
//! waiting callers has a bound. No call costs a round trip to PostgreSQL.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// A second, and what calls may take longer on their way than those before them.
const WINDOW: Duration = Duration::from_millis(1_100);
/// For a share below one call a second, the window is longer; up to this.
const WINDOW_MAX: Duration = Duration::from_secs(30);
/// The head of a line looks again at least so often: the share may have grown meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// After a 429 without `Retry-After`: the first pause; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// No `Retry-After` stops this instance for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Where no limit is set and Stripe answers 429 all the same, the documented limits apply so long.
const LEARNED: Duration = Duration::from_secs(600);
/// For how long the slowest create is remembered, at least.
const SLOW_WINDOW: Duration = Duration::from_secs(15);
/// The first of those that yield has waited so long while buyers took every token: it takes the
/// next one, or the seats of orders that are to be closed would stay held for the whole rush.
const STARVED: Duration = Duration::from_secs(3);
/// Stripe has some hundred endpoints; this role calls about ten.
const ENDPOINTS_MAX: usize = 256;

/// On whose behalf Stripe is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody waits for the answer.
    Buyer,
    /// Refunds, the reconciler, the audit, the list of events: they yield to buyers.
    Background,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Buyer => "buyer",
            Self::Background => "background",
        }
    }
}

/// What the whole account may call, a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Each endpoint (`POST /v1/payment_intents` is one).
    pub endpoint: f64,
    /// All of them together.
    pub total: f64,
}

impl Limits {
    /// <https://docs.stripe.com/rate-limits>, unless Stripe has raised them for the account.
    pub fn documented(live: bool) -> Self {
        Self {
            endpoint: 25.0,
            total: if live { 100.0 } else { 25.0 },
        }
    }
}

/// `--stripe-rate`: `25`, `50/200`, or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StripeRate {
    Unlimited,
    Limited { endpoint: f64, total: Option<f64> },
}

impl StripeRate {
    /// The limits for a key of this mode; the total is never below one endpoint's.
    pub fn limits(self, live: bool) -> Option<Limits> {
        match self {
            Self::Unlimited => None,
            Self::Limited { endpoint, total } => Some(Limits {
                endpoint,
                total: total.unwrap_or(Limits::documented(live).total.max(endpoint)),
            }),
        }
    }
}

impl FromStr for StripeRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let rate = |text: &str| {
            let rate = text.trim().parse::<f64>().ok();
            rate.filter(|rate| (1.0..=100_000.0).contains(rate))
                .ok_or_else(|| {
                    format!("'{text}' is no rate: want calls a second from 1 to 100000 for each endpoint, as 25, with a total, as 25/100, or unlimited")
                })
        };
        let (endpoint, total) = match text.split_once('/') {
            Some((endpoint, total)) => (rate(endpoint)?, Some(rate(total)?)),
            None => (rate(text)?, None),
        };
        if total.is_some_and(|total| total < endpoint) {
            return Err(format!(
                "'{text}': the total is below what one endpoint may be called"
            ));
        }
        Ok(Self::Limited { endpoint, total })
    }
}

/// No token came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoToken;

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stripe's rate limits left no room for this call in time")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    endpoint: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfClass {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

struct Figures {
    calls: Family<Called, Counter>,
    waits: Family<OfClass, Histogram, fn() -> Histogram>,
    refused: Family<OfClass, Counter>,
    limited: Family<Reason, Counter>,
    share: Gauge<f64, AtomicU64>,
}

fn wait_buckets() -> Histogram {
    Histogram::new([0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            waits: Family::new_with_constructor(wait_buckets),
            refused: Family::default(),
            limited: Family::default(),
            share: Gauge::default(),
        }
    }
}

/// The calls that began lately.
#[derive(Debug, Default)]
struct Recent(VecDeque<Instant>);

impl Recent {
    /// How many more may begin now, or how long until one may.
    fn room(&mut self, now: Instant, limit: f64) -> Result<usize, Duration> {
        let (calls, window) = allowed(limit);
        while self
            .0
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW_MAX)
        {
            self.0.pop_front();
        }
        let within = self.0.iter().rev();
        let used = within
            .take_while(|at| now.saturating_duration_since(**at) < window)
            .count();
        if used < calls {
            return Ok(calls - used);
        }
        // Once this one is old enough, there are fewer than `calls`.
        let oldest = self.0[self.0.len() - calls];
        Err(window.saturating_sub(now.saturating_duration_since(oldest)))
    }

    fn push(&mut self, now: Instant, limit: f64) {
        self.0.push_back(now);
        // Older ones count for nothing, whatever the share becomes.
        let (calls, _) = allowed(limit);
        while self.0.len() > calls.max(1_024) {
            self.0.pop_front();
        }
    }
}

/// How many calls may begin within which time, for so many a second: whole ones, so that the
/// shares of all instances never add up to more than the limit.
fn allowed(limit: f64) -> (usize, Duration) {
    if limit < 1.0 {
        return (1, WINDOW.div_f64(limit.max(0.001)).min(WINDOW_MAX));
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are from 1 to 100,000"
    )]
    let calls = (limit + 1e-9) as usize;
    (calls, WINDOW)
}

/// Calls a second that a limit allows in the long run.
fn rate(limit: f64) -> f64 {
    let (calls, window) = allowed(limit);
    #[allow(clippy::cast_precision_loss, reason = "at most 100,000")]
    let calls = calls as f64;
    calls / window.as_secs_f64()
}

/// One of Stripe's endpoints.
struct Endpoint {
    recent: Recent,
    blocked: Blocked,
    /// Waiting callers, and their line.
    buyers: usize,
    background: usize,
    buyers_line: Arc<tokio::sync::Mutex<()>>,
    background_line: Arc<tokio::sync::Mutex<()>>,
}

impl Endpoint {
    fn new() -> Self {
        Self {
            recent: Recent::default(),
            blocked: Blocked::default(),
            buyers: 0,
            background: 0,
            buyers_line: Arc::default(),
            background_line: Arc::default(),
        }
    }

    fn waiting(&mut self, class: Class) -> &mut usize {
        match class {
            Class::Buyer => &mut self.buyers,
            Class::Background => &mut self.background,
        }
    }
}

/// Stripe said 429: nothing is sent until then.
#[derive(Default)]
struct Blocked {
    until: Option<Instant>,
    times: u32,
}

impl Blocked {
    fn left(&self, now: Instant) -> Duration {
        self.until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    fn block(&mut self, now: Instant, retry_after: Option<Duration>) {
        // Calls that were under way together are refused together: that is once.
        if self.left(now).is_zero() {
            self.times = (self.times + 1).min(16);
        }
        let pause = retry_after.unwrap_or_else(|| {
            let pause = (PAUSE_FIRST * 2_u32.pow((self.times - 1).min(6))).min(PAUSE_MAX);
            pause.mul_f64(rand::random_range(0.75..1.25))
        });
        let until = now + pause.min(RETRY_AFTER_MAX);
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
    }

    fn passed(&mut self, now: Instant) {
        if self.left(now).is_zero() {
            *self = Self::default();
        }
    }
}

struct State {
    limits: Option<Limits>,
    /// Until when limits apply that nobody set: Stripe answered 429.
    learned_until: Option<Instant>,
    /// This instance's part of the limits, 0 to 1, and until when it is leased.
    share: f64,
    share_until: Instant,
    /// A larger share counts from then on: calls that others made with it may be of this second.
    share_before: f64,
    share_from: Instant,
    total: Recent,
    blocked: Blocked,
    endpoints: HashMap<String, Endpoint>,
    buyers_waiting: usize,
    /// Calls asked for since the last heartbeat.
    demand: u64,
    slowest_create: [(Instant, Duration); 2],
}

/// The budget of this instance.
pub struct Budget {
    configured: Option<Limits>,
    documented: Limits,
    state: Mutex<State>,
    figures: Figures,
}

/// Counts a waiting caller for as long as it waits, however that ends.
struct Waiting<'a> {
    budget: &'a Budget,
    endpoint: &'a str,
    class: Class,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        if self.class == Class::Buyer {
            state.buyers_waiting = state.buyers_waiting.saturating_sub(1);
        }
        if let Some(endpoint) = state.endpoints.get_mut(self.endpoint) {
            let waiting = endpoint.waiting(self.class);
            *waiting = waiting.saturating_sub(1);
        }
    }
}

impl Budget {
    /// `limits`: none where none apply. Nothing is leased yet.
    pub fn new(limits: Option<Limits>, live: bool) -> Self {
        let now = Instant::now();
        Self {
            configured: limits,
            documented: Limits::documented(live),
            state: Mutex::new(State {
                limits,
                learned_until: None,
                share: 0.0,
                share_until: now,
                share_before: 0.0,
                share_from: now,
                total: Recent::default(),
                blocked: Blocked::default(),
                endpoints: HashMap::new(),
                buyers_waiting: 0,
                demand: 0,
                slowest_create: [(now, Duration::ZERO); 2],
            }),
            figures: Figures::default(),
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        let figures = &self.figures;
        registry.register(
            "payments_stripe_calls",
            "Calls to Stripe, by endpoint and class",
            figures.calls.clone(),
        );
        registry.register(
            "payments_stripe_wait_seconds",
            "Time that calls waited for the account's rate limits",
            figures.waits.clone(),
        );
        registry.register(
            "payments_stripe_no_token",
            "Calls given up because the rate limits left no room in time",
            figures.refused.clone(),
        );
        registry.register(
            "payments_stripe_rate_limited",
            "Answers 429 of Stripe, by its reason",
            figures.limited.clone(),
        );
        registry.register(
            "payments_stripe_share",
            "This instance's share of the account's rate limits, 0 to 1",
            figures.share.clone(),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a token until `until` at the latest; how long that took.
    ///
    /// # Errors
    /// When none came in time, or the line is so long that none can.
    pub async fn acquire(
        &self,
        endpoint: &str,
        class: Class,
        until: Instant,
    ) -> Result<Duration, NoToken> {
        let begun = Instant::now();
        let line = match self.begin(endpoint, class, until) {
            Begun::Taken => {
                self.took(endpoint, class, Duration::ZERO);
                return Ok(Duration::ZERO);
            }
            Begun::Hopeless => {
                self.gave_up(class);
                return Err(NoToken);
            }
            Begun::Wait(line) => line,
        };
        let waiting = Waiting {
            budget: self,
            endpoint,
            class,
        };
        let turn = async {
            let _first = line.lock().await;
            let first_since = Instant::now();
            let class = || match first_since.elapsed() > STARVED {
                true => Class::Buyer,
                false => class,
            };
            while let Err(wait) = self.take(endpoint, class()) {
                tokio::time::sleep(wait.clamp(Duration::from_millis(1), LOOK_AGAIN)).await;
            }
        };
        let done = tokio::time::timeout_at(until.into(), turn).await;
        drop(waiting);
        let waited = begun.elapsed();
        if done.is_err() {
            self.gave_up(class);
            return Err(NoToken);
        }
        self.took(endpoint, class, waited);
        Ok(waited)
    }

    fn take(&self, endpoint: &str, class: Class) -> Result<(), Duration> {
        self.lock().take(endpoint, class, Instant::now())
    }

    fn begin(&self, name: &str, class: Class, until: Instant) -> Begun {
        let now = Instant::now();
        let mut state = self.lock();
        state.demand += 1;
        if state.endpoints.len() >= ENDPOINTS_MAX && !state.endpoints.contains_key(name) {
            return Begun::Hopeless;
        }
        let endpoint = state
            .endpoints
            .entry(name.to_owned())
            .or_insert_with(Endpoint::new);
        let ahead = *endpoint.waiting(class);
        if ahead == 0 && state.take(name, class, now).is_ok() {
            return Begun::Taken;
        }
        // Without a share (it is being leased) nobody knows the rate yet.
        let rate = state
            .limits
            .filter(|_| state.share(now) > 0.0)
            .map_or(self.documented.endpoint, |limits| {
                rate(limits.endpoint * state.share(now))
            });
        let room_s = until.saturating_duration_since(now).as_secs_f64();
        #[allow(
            clippy::cast_precision_loss,
            reason = "callers waiting in one process are far fewer than 2^52"
        )]
        let wait_s = ahead as f64 / rate;
        if wait_s > room_s {
            return Begun::Hopeless;
        }
        if class == Class::Buyer {
            state.buyers_waiting += 1;
        }
        let Some(endpoint) = state.endpoints.get_mut(name) else {
            return Begun::Hopeless;
        };
        *endpoint.waiting(class) += 1;
        Begun::Wait(match class {
            Class::Buyer => endpoint.buyers_line.clone(),
            Class::Background => endpoint.background_line.clone(),
        })
    }

    fn took(&self, endpoint: &str, class: Class, waited: Duration) {
        let class = class.as_str();
        let called = Called {
            endpoint: endpoint.to_owned(),
            class,
        };
        self.figures.calls.get_or_create(&called).inc();
        (self.figures.waits.get_or_create(&OfClass { class })).observe(waited.as_secs_f64());
    }

    fn gave_up(&self, class: Class) {
        let class = class.as_str();
        self.figures.refused.get_or_create(&OfClass { class }).inc();
    }

    /// Stripe answered 429: this endpoint, or with a global reason every one, pauses.
    pub fn rate_limited(
        &self,
        endpoint: &str,
        reason: Option<&str>,
        retry_after: Option<Duration>,
    ) {
        let label = match reason {
            Some(
                known @ ("global-rate"
                | "global-concurrency"
                | "endpoint-rate"
                | "endpoint-concurrency"
                | "resource-specific"),
            ) => known,
            Some(_) => "other",
            None => "not given",
        };
        let reason_label = Reason {
            reason: label.to_owned(),
        };
        self.figures.limited.get_or_create(&reason_label).inc();
        tracing::warn!(
            endpoint,
            reason = label,
            "Stripe answered 429: slowing down"
        );
        // The limits of one object say nothing about other calls.
        if label == "resource-specific" {
            return;
        }
        let now = Instant::now();
        let mut state = self.lock();
        if self.configured.is_none() {
            state.limits = Some(self.documented);
            state.learned_until = Some(now + LEARNED);
        }
        if label.starts_with("global") {
            state.blocked.block(now, retry_after);
        } else if let Some(endpoint) = state.endpoints.get_mut(endpoint) {
            endpoint.blocked.block(now, retry_after);
        }
    }

    /// Stripe took the call.
    pub fn passed(&self, endpoint: &str) {
        let now = Instant::now();
        let mut state = self.lock();
        state.blocked.passed(now);
        if let Some(endpoint) = state.endpoints.get_mut(endpoint) {
            endpoint.blocked.passed(now);
        }
        if state.learned_until.is_some_and(|until| until <= now) {
            state.learned_until = None;
            state.limits = self.configured;
        }
    }

    /// How long a create waited for the limits, whether it was sent or not.
    pub fn create_waited(&self, waited: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        let [(begun, slowest), _] = state.slowest_create;
        state.slowest_create = if now.duration_since(begun) < SLOW_WINDOW {
            [(begun, slowest.max(waited)), state.slowest_create[1]]
        } else {
            [(now, waited), (begun, slowest)]
        };
    }

    /// The longest wait of a create within the last half minute or less.
    pub fn slowest_create(&self) -> Duration {
        let now = Instant::now();
        let recent = self.lock().slowest_create.into_iter();
        recent
            .filter(|(begun, _)| now.duration_since(*begun) < 2 * SLOW_WINDOW)
            .map(|(_, slowest)| slowest)
            .max()
            .unwrap_or_default()
    }

    /// The limits that apply now, of the whole account.
    pub fn limits(&self) -> Option<Limits> {
        self.lock().limits
    }

    /// How many intents the account may create a second.
    pub fn creates_per_second_max(&self) -> Option<u64> {
        let limits = self.limits()?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rates are from 1 to 100,000"
        )]
        let max = limits.endpoint.min(limits.total) as u64;
        Some(max)
    }

    /// Buyers' calls that wait for a token.
    pub fn buyers_waiting(&self) -> usize {
        self.lock().buyers_waiting
    }

    /// The share in use now: none once the lease has run out.
    pub fn share(&self) -> f64 {
        self.lock().share(Instant::now())
    }

    /// Calls asked for since this was last asked.
    pub fn take_demand(&self) -> u64 {
        std::mem::take(&mut self.lock().demand)
    }

    /// This instance may use `share` of the limits until `until`: less from now on, more once the
    /// calls that others made with it are of an earlier second.
    pub fn lease(&self, share: f64, until: Instant) {
        let now = Instant::now();
        let mut state = self.lock();
        let using = state.share(now);
        if share > using {
            // One that is growing already goes on from where it is.
            (state.share_before, state.share_from) = (using, now + WINDOW);
        }
        (state.share, state.share_until) = (share, until);
        self.figures.share.set(share);
    }
}

enum Begun {
    Taken,
    Hopeless,
    Wait(Arc<tokio::sync::Mutex<()>>),
}

impl State {
    fn share(&self, now: Instant) -> f64 {
        if now >= self.share_until {
            0.0
        } else if now < self.share_from {
            self.share_before.min(self.share)
        } else {
            self.share
        }
    }

    /// Takes a token of the endpoint and one of the total, or says how long to wait at least.
    fn take(&mut self, name: &str, class: Class, now: Instant) -> Result<(), Duration> {
        let share = self.share(now);
        let Some(endpoint) = self.endpoints.get_mut(name) else {
            return Err(LOOK_AGAIN);
        };
        let blocked = self.blocked.left(now).max(endpoint.blocked.left(now));
        if !blocked.is_zero() {
            return Err(blocked);
        }
        let Some(limits) = self.limits else {
            return Ok(());
        };
        if share <= 0.0 {
            return Err(LOOK_AGAIN);
        }
        let (of_endpoint, of_all) = (limits.endpoint * share, limits.total * share);
        endpoint.recent.room(now, of_endpoint)?;
        let room = self.total.room(now, of_all)?;
        // What a buyer waits for is left to the buyer.
        if class == Class::Background
            && (endpoint.buyers > 0 || (self.buyers_waiting > 0 && room < 2))
        {
            return Err(LOOK_AGAIN);
        }
        endpoint.recent.push(now, of_endpoint);
        self.total.push(now, of_all);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: &str = "POST /v1/payment_intents";
    const READ: &str = "GET /v1/payment_intents/{id}";

    fn budget(endpoint: f64, total: f64) -> Arc<Budget> {
        let budget = Budget::new(Some(Limits { endpoint, total }), false);
        whole(&budget, within(60_000));
        Arc::new(budget)
    }

    /// All of the limits, from now on.
    fn whole(budget: &Budget, until: Instant) {
        budget.lease(1.0, until);
        budget.lock().share_from = Instant::now();
    }

    fn within(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[test]
    fn a_rate_is_read_as_its_help_says() {
        let limited = |endpoint, total| Ok(StripeRate::Limited { endpoint, total });
        assert_eq!("25".parse::<StripeRate>(), limited(25.0, None));
        assert_eq!("50/200".parse::<StripeRate>(), limited(50.0, Some(200.0)));
        assert_eq!("unlimited".parse::<StripeRate>(), Ok(StripeRate::Unlimited));
        for bad in ["", "0", "-1", "x", "50/20", "25/", "inf", "NaN"] {
            assert!(bad.parse::<StripeRate>().is_err(), "{bad}");
        }
        let rate: StripeRate = "50".parse().unwrap();
        assert_eq!(rate.limits(true).unwrap().total, 100.0);
        assert_eq!(rate.limits(false).unwrap().total, 50.0);
    }

    #[test]
    fn shares_never_add_up_to_more_than_the_limit() {
        for limit in [1.0_f64, 10.0, 25.0, 100.0] {
            for shares in [
                vec![1.0],
                vec![0.9, 0.1],
                vec![0.5, 0.3, 0.2],
                vec![0.04; 25],
            ] {
                let calls: f64 = shares.iter().map(|share| rate(limit * share)).sum();
                assert!(calls <= limit, "{limit} {shares:?}: {calls}");
            }
        }
    }

    #[test]
    fn a_larger_share_counts_once_the_second_of_others_is_over() {
        let budget = Budget::new(Some(Limits::documented(false)), false);
        budget.lease(0.4, within(60_000));
        assert_eq!(budget.share(), 0.0);
        budget.lock().share_from = Instant::now();
        assert_eq!(budget.share(), 0.4);
        budget.lease(1.0, within(60_000));
        assert_eq!(budget.share(), 0.4);
        budget.lease(0.2, within(60_000));
        assert_eq!(budget.share(), 0.2);
    }

    #[tokio::test]
    async fn no_second_sees_more_calls_than_allowed_and_little_is_wasted() {
        let budget = budget(50.0, 80.0);
        let (mut calls, begun) = (Vec::new(), Instant::now());
        let mut all = tokio::task::JoinSet::new();
        for n in 0..240 {
            let budget = budget.clone();
            all.spawn(async move {
                let endpoint = if n % 2 == 0 { CREATE } else { READ };
                let got = budget.acquire(endpoint, Class::Buyer, within(9_000)).await;
                got.map(|_| Instant::now())
            });
        }
        while let Some(done) = all.join_next().await {
            calls.push(done.unwrap().expect("a token comes"));
        }
        calls.sort();
        for (at, call) in calls.iter().enumerate() {
            let second = calls[at..]
                .iter()
                .take_while(|other| **other < *call + Duration::from_secs(1));
            assert!(second.count() <= 80);
        }
        assert!(
            begun.elapsed() < Duration::from_millis(4_800),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test]
    async fn background_calls_yield_to_buyers() {
        let budget = budget(5.0, 5.0);
        for _ in 0..5 {
            (budget.acquire(CREATE, Class::Background, within(0)).await).unwrap();
        }
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut all = tokio::task::JoinSet::new();
        for class in [Class::Background, Class::Buyer] {
            for _ in 0..8 {
                let (budget, order) = (budget.clone(), order.clone());
                all.spawn(async move {
                    (budget.acquire(CREATE, class, within(9_000)).await).unwrap();
                    order.lock().unwrap().push(class);
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while all.join_next().await.is_some() {}
        let order = order.lock().unwrap();
        assert!(
            order[..8].iter().all(|class| *class == Class::Buyer),
            "{order:?}"
        );
    }

    #[tokio::test]
    async fn waiting_is_bounded_and_a_hopeless_line_is_refused_at_once() {
        let budget = budget(2.5, 25.0);
        for _ in 0..2 {
            (budget.acquire(CREATE, Class::Buyer, within(10)).await).unwrap();
        }
        assert_eq!(
            budget.acquire(CREATE, Class::Buyer, within(50)).await,
            Err(NoToken)
        );
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(
                    async move { budget.acquire(CREATE, Class::Buyer, within(1_000)).await },
                )
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(30)).await;
        let begun = Instant::now();
        assert_eq!(
            budget.acquire(CREATE, Class::Buyer, within(1_000)).await,
            Err(NoToken)
        );
        assert!(begun.elapsed() < Duration::from_millis(200));
        for one in waiting {
            let _ = one.await.unwrap();
        }
        assert_eq!(budget.buyers_waiting(), 0);
    }

    #[tokio::test]
    async fn without_a_lease_nothing_is_sent_and_a_429_pauses_its_endpoint() {
        let budget = budget(25.0, 25.0);
        whole(&budget, Instant::now());
        assert_eq!(
            budget.acquire(CREATE, Class::Buyer, within(150)).await,
            Err(NoToken)
        );
        whole(&budget, within(60_000));
        budget
            .acquire(CREATE, Class::Buyer, within(500))
            .await
            .unwrap();
        let pause = Duration::from_millis(300);
        budget.rate_limited(CREATE, Some("endpoint-rate"), Some(pause));
        assert_eq!(
            budget.acquire(CREATE, Class::Buyer, within(150)).await,
            Err(NoToken)
        );
        budget
            .acquire(READ, Class::Buyer, within(150))
            .await
            .unwrap();
        budget.rate_limited(READ, Some("global-rate"), Some(pause));
        assert_eq!(
            budget.acquire(READ, Class::Buyer, within(100)).await,
            Err(NoToken)
        );
        let waited = budget
            .acquire(CREATE, Class::Buyer, within(900))
            .await
            .unwrap();
        assert!(waited > Duration::from_millis(50));
    }

    #[tokio::test]
    async fn without_limits_nobody_waits_until_stripe_says_429() {
        let budget = Budget::new(None, false);
        for _ in 0..500 {
            let waited = budget.acquire(CREATE, Class::Buyer, within(0)).await;
            assert_eq!(waited, Ok(Duration::ZERO));
        }
        budget.rate_limited(CREATE, None, Some(Duration::from_millis(1)));
        assert_eq!(budget.limits(), Some(Limits::documented(false)));
    }
}
