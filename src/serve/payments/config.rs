//! Settings of the payments role.

use std::time::Duration;

use super::stripe::{PaymentMethods, StripeRate};
use crate::platform::secret::Secret;

/// As given on the command line and in the environment; [`Config::settings`] completes it.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Payments")]
pub struct Config {
    /// Where Stripe is. The embedded default is the sandbox of this same process.
    #[arg(long, env = "STRIPE_URL", value_name = "URL")]
    pub stripe_url: Option<String>,
    /// Where a buyer's browser finds the sandbox's pay page. Without it: at STRIPE_URL, unless that is Stripe itself.
    #[arg(long, env = "STRIPE_PAY_PAGE_URL", value_name = "URL")]
    pub stripe_pay_page_url: Option<String>,
    /// Stripe's secret key. Better given in the environment: a command line can be read by others.
    #[arg(
        long,
        env = "STRIPE_SECRET_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub stripe_secret_key: Option<Secret>,
    /// Stripe's publishable key, handed to the buyer's page.
    #[arg(long, env = "STRIPE_PUBLISHABLE_KEY", value_name = "KEY")]
    pub stripe_publishable_key: Option<String>,
    /// The signing secret of the webhook endpoint at Stripe.
    #[arg(
        long,
        env = "STRIPE_WEBHOOK_SECRET",
        value_name = "SECRET",
        hide_env_values = true
    )]
    pub stripe_webhook_secret: Option<Secret>,
    /// The secret before this one, accepted while it is being rotated.
    #[arg(
        long,
        env = "STRIPE_WEBHOOK_SECRET_PREVIOUS",
        value_name = "SECRET",
        hide_env_values = true
    )]
    pub stripe_webhook_secret_previous: Option<Secret>,
    /// How long a payment may stay open before Stripe is asked what became of it.
    #[arg(long, env = "TICKETPING_PAYMENT_RECONCILE_AFTER", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub payment_reconcile_after: Duration,
    /// What the whole Stripe account may call, shared by all instances: calls a second to each endpoint, or
    /// with a total, as 25/100, or unlimited
    /// [default: Stripe's documented 25, with a total of 100 live and 25 in test mode; unlimited where STRIPE_URL
    /// is not Stripe]
    #[arg(long, env = "TICKETPING_STRIPE_RATE", value_name = "RATE")]
    pub stripe_rate: Option<StripeRate>,
    /// What buyers may pay with: Stripe's names with commas between, or automatic for all that its dashboard
    /// switches on. Methods that settle after days outlast the hold of the seats
    #[arg(
        long,
        env = "TICKETPING_STRIPE_PAYMENT_METHODS",
        value_name = "METHODS",
        default_value = "card"
    )]
    pub stripe_payment_methods: PaymentMethods,
    /// How often Stripe's list of events is read for those that no webhook brought
    #[arg(long, env = "TICKETPING_STRIPE_EVENTS_EVERY", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub stripe_events_every: Duration,
    /// How long a refund may be under way before an alarm asks for a person: cards take seconds, banks up to five working days.
    #[arg(long, env = "TICKETPING_REFUND_PENDING_MAX", value_name = "DURATION", default_value = "7d", value_parser = humantime::parse_duration)]
    pub refund_pending_max: Duration,
}

/// Complete settings.
#[derive(Clone, Debug)]
pub struct Settings {
    pub stripe_url: String,
    /// The sandbox's, where the buyer's page cannot use Stripe's Payment Element.
    pub pay_page_url: Option<String>,
    pub secret_key: Secret,
    pub publishable_key: String,
    /// One, or two during rotation.
    pub webhook_secrets: Vec<Secret>,
    pub reconcile_after: Duration,
    pub rate: Option<StripeRate>,
    pub methods: PaymentMethods,
    pub events_every: Duration,
    /// How long a refund may be under way without an alarm.
    pub refund_pending_max: Duration,
}

const STRIPE: &str = "https://api.stripe.com";

impl Config {
    /// # Errors
    /// Which secret is missing: outside the embedded default none has a default.
    pub fn settings(self) -> Result<Settings, String> {
        let missing = |name: &str, what: &str| {
            format!(
                "{name} is not set; give {what} in the environment (or run `serve all` with nothing set to use the sandbox)"
            )
        };
        let secret_key = self
            .stripe_secret_key
            .ok_or_else(|| missing("STRIPE_SECRET_KEY", "Stripe's secret key"))?;
        let publishable_key = self
            .stripe_publishable_key
            .ok_or_else(|| missing("STRIPE_PUBLISHABLE_KEY", "Stripe's publishable key"))?;
        let webhook_secret = self.stripe_webhook_secret.ok_or_else(|| {
            missing(
                "STRIPE_WEBHOOK_SECRET",
                "the webhook endpoint's signing secret",
            )
        })?;
        let webhook_secrets: Vec<Secret> = std::iter::once(webhook_secret)
            .chain(self.stripe_webhook_secret_previous)
            .filter(|secret| !secret.expose().is_empty())
            .collect();
        if webhook_secrets.is_empty() {
            return Err("STRIPE_WEBHOOK_SECRET is empty; anybody could sign with that".to_owned());
        }
        let elsewhere = self
            .stripe_url
            .clone()
            .filter(|url| !url.starts_with(STRIPE));
        Ok(Settings {
            pay_page_url: self.stripe_pay_page_url.or(elsewhere),
            stripe_url: self.stripe_url.unwrap_or_else(|| STRIPE.to_owned()),
            secret_key,
            publishable_key,
            webhook_secrets,
            reconcile_after: self.payment_reconcile_after,
            rate: self.stripe_rate,
            methods: self.stripe_payment_methods,
            events_every: self.stripe_events_every,
            refund_pending_max: self.refund_pending_max,
        })
    }
}
