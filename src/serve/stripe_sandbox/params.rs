//! From a call's form to a command. What is wrong with the parameters alone is
//! said here, before anything runs: an idempotency key remembers no such answer.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cards::{self, TestCard};
use super::disputes::{Evidence, Opening};
use super::error::ApiError;
use super::form::Form;
use super::model::{Automatic, Capture, DisputeStatus, Metadata};
use super::money;

/// Kept and given back, nothing more.
const ECHOED: &[&str] = &[
    "customer",
    "description",
    "receipt_email",
    "setup_future_usage",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_group",
];

const CREATE: &[&str] = &[
    "allowed_payment_method_types",
    "amount",
    "amount_details",
    "application_fee_amount",
    "automatic_payment_methods",
    "capture_method",
    "confirm",
    "confirmation_method",
    "currency",
    "customer",
    "customer_account",
    "description",
    "error_on_requires_action",
    "excluded_payment_method_types",
    "expand",
    "hooks",
    "mandate",
    "mandate_data",
    "metadata",
    "off_session",
    "on_behalf_of",
    "payment_details",
    "payment_method",
    "payment_method_configuration",
    "payment_method_data",
    "payment_method_options",
    "payment_method_types",
    "radar_options",
    "receipt_email",
    "return_url",
    "setup_future_usage",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_data",
    "transfer_group",
    "use_stripe_sdk",
];

/// The last four are what Stripe.js sends along.
const CONFIRM: &[&str] = &[
    "allowed_payment_method_types",
    "amount_details",
    "amount_to_confirm",
    "capture_method",
    "client_secret",
    "error_on_requires_action",
    "excluded_payment_method_types",
    "expand",
    "hooks",
    "mandate",
    "mandate_data",
    "off_session",
    "payment_details",
    "payment_method",
    "payment_method_data",
    "payment_method_options",
    "payment_method_types",
    "radar_options",
    "receipt_email",
    "return_url",
    "setup_future_usage",
    "shipping",
    "use_stripe_sdk",
    "expected_payment_method_type",
    "client_attribution_metadata",
    "client_context",
    "referrer",
];

const CAPTURE: &[&str] = &[
    "amount_details",
    "amount_to_capture",
    "application_fee_amount",
    "expand",
    "final_capture",
    "hooks",
    "metadata",
    "payment_details",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_data",
];

const REFUND: &[&str] = &[
    "amount",
    "charge",
    "currency",
    "customer",
    "expand",
    "instructions_email",
    "metadata",
    "origin",
    "payment_intent",
    "reason",
    "refund_application_fee",
    "reverse_transfer",
];

#[derive(Clone, Debug, PartialEq)]
pub struct Create {
    pub amount: i64,
    pub currency: String,
    pub capture: Capture,
    pub automatic: Option<Automatic>,
    pub types: Vec<String>,
    pub echoed: BTreeMap<String, Value>,
    pub metadata: Metadata,
    pub card: Option<Chosen>,
    pub confirm: bool,
    pub return_url: Option<String>,
    pub error_on_requires_action: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    pub amount: Option<i64>,
    pub currency: Option<String>,
    pub echoed: BTreeMap<String, Value>,
    pub metadata: Metadata,
    pub card: Option<Chosen>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Confirm {
    /// Present when a browser asks, with the publishable key.
    pub client_secret: Option<String>,
    pub card: Option<Chosen>,
    pub return_url: Option<String>,
    pub receipt_email: Option<String>,
    pub error_on_requires_action: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Refund {
    pub of: RefundOf,
    pub amount: Option<i64>,
    pub reason: Option<String>,
    pub metadata: Metadata,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefundOf {
    Intent(String),
    Charge(String),
}

/// A payment method: a test card, or one that an intent already has.
#[derive(Clone, Debug, PartialEq)]
pub enum Chosen {
    Card(&'static TestCard),
    Known(String),
}

pub fn create(form: &Form) -> Result<Create, ApiError> {
    form.allow(CREATE)?;
    let amount = amount(form)?.ok_or_else(|| missing_param("amount"))?;
    let currency = currency(form)?.ok_or_else(|| missing_param("currency"))?;
    check_amount(amount, &currency)?;
    let types = payment_method_types(form)?;
    let automatic = automatic(form)?;
    if automatic.as_ref().is_some_and(|a| a.enabled) && types.is_some() {
        return Err(ApiError::invalid(
            "You may only specify one of these parameters: automatic_payment_methods, \
             allowed_payment_method_types.",
        ));
    }
    let confirm = form.boolean("confirm")?.unwrap_or(false);
    if form.has("return_url") && !confirm {
        return Err(
            ApiError::invalid("You may only specify `return_url` when `confirm` is true.")
                .param("return_url"),
        );
    }
    let automatic = automatic.or_else(|| {
        // Since 2023-08-16 dynamic payment methods are the default.
        types.is_none().then(|| Automatic {
            enabled: true,
            allow_redirects: "always".into(),
        })
    });
    Ok(Create {
        amount,
        currency,
        capture: capture(form)?.unwrap_or(Capture::AutomaticAsync),
        automatic,
        types: types.unwrap_or_else(|| vec!["card".into()]),
        echoed: echoed(form)?,
        metadata: form.metadata()?.unwrap_or_default(),
        card: chosen(form)?,
        confirm,
        return_url: return_url(form)?,
        error_on_requires_action: form.boolean("error_on_requires_action")?.unwrap_or(false),
    })
}

pub fn update(form: &Form) -> Result<Update, ApiError> {
    form.allow(CREATE)?;
    let currency = currency(form)?;
    let amount = amount(form)?;
    if let (Some(amount), Some(currency)) = (amount, &currency) {
        check_amount(amount, currency)?;
    }
    Ok(Update {
        amount,
        currency,
        echoed: echoed(form)?,
        metadata: form.metadata()?.unwrap_or_default(),
        card: chosen(form)?,
    })
}

pub fn confirm(form: &Form) -> Result<Confirm, ApiError> {
    form.allow(CONFIRM)?;
    Ok(Confirm {
        client_secret: form.text("client_secret")?.map(str::to_owned),
        card: chosen(form)?,
        return_url: return_url(form)?,
        receipt_email: form.text("receipt_email")?.map(str::to_owned),
        error_on_requires_action: form.boolean("error_on_requires_action")?.unwrap_or(false),
    })
}

pub fn capture_amount(form: &Form) -> Result<Option<i64>, ApiError> {
    form.allow(CAPTURE)?;
    positive(form, "amount_to_capture")
}

pub fn cancellation_reason(form: &Form) -> Result<Option<String>, ApiError> {
    form.allow(&["cancellation_reason", "expand"])?;
    form.choice(
        "cancellation_reason",
        &[
            "abandoned",
            "duplicate",
            "fraudulent",
            "requested_by_customer",
        ],
    )
}

pub fn refund(form: &Form) -> Result<Refund, ApiError> {
    form.allow(REFUND)?;
    let of = match (form.text("payment_intent")?, form.text("charge")?) {
        (Some(intent), _) => RefundOf::Intent(intent.to_owned()),
        (None, Some(charge)) => RefundOf::Charge(charge.to_owned()),
        (None, None) => {
            return Err(ApiError::invalid(
                "One of the following params should be provided for this request: payment_intent \
                 or charge.",
            )
            .code("parameter_missing"));
        }
    };
    Ok(Refund {
        of,
        amount: positive(form, "amount")?,
        reason: form.choice(
            "reason",
            &["duplicate", "fraudulent", "requested_by_customer"],
        )?,
        metadata: form.metadata()?.unwrap_or_default(),
    })
}

pub fn refund_metadata(form: &Form) -> Result<Metadata, ApiError> {
    form.allow(&["metadata", "expand"])?;
    Ok(form.metadata()?.unwrap_or_default())
}

pub fn evidence(form: &Form) -> Result<Evidence, ApiError> {
    form.allow(&["evidence", "metadata", "submit", "expand"])?;
    let given = form.nested("evidence")?;
    let text = match &given {
        Some(evidence) => evidence.text("uncategorized_text")?.map(str::to_owned),
        None => None,
    };
    Ok(Evidence {
        text,
        submit: form.boolean("submit")?.unwrap_or(given.is_some()),
    })
}

pub fn opening(form: &Form) -> Result<(String, Opening), ApiError> {
    form.allow(&["payment_intent", "amount", "inquiry", "reason"])?;
    let intent = form
        .text("payment_intent")?
        .ok_or_else(|| missing_param("payment_intent"))?;
    let opening = Opening {
        amount: positive(form, "amount")?,
        inquiry: form.boolean("inquiry")?.unwrap_or(false),
        reason: form.text("reason")?.unwrap_or("fraudulent").to_owned(),
    };
    Ok((intent.to_owned(), opening))
}

pub fn dispute_status(form: &Form) -> Result<DisputeStatus, ApiError> {
    form.allow(&["status"])?;
    let names = DisputeStatus::ALL.map(DisputeStatus::as_str);
    let name = form
        .choice("status", &names)?
        .ok_or_else(|| missing_param("status"))?;
    let found = DisputeStatus::ALL
        .into_iter()
        .find(|status| status.as_str() == name);
    found.ok_or_else(|| missing_param("status"))
}

fn missing_param(name: &str) -> ApiError {
    ApiError::invalid(format!("Missing required param: {name}."))
        .code("parameter_missing")
        .param(name)
}

fn positive(form: &Form, name: &str) -> Result<Option<i64>, ApiError> {
    match form.integer(name)? {
        Some(n) if n < 1 => Err(ApiError::invalid(
            "This value must be greater than or equal to 1.",
        )
        .code("parameter_invalid_integer")
        .param(name)),
        other => Ok(other),
    }
}

fn amount(form: &Form) -> Result<Option<i64>, ApiError> {
    positive(form, "amount")
}

/// The limits that need both the amount and its currency.
pub fn check_amount(amount: i64, currency: &str) -> Result<(), ApiError> {
    let minimum = money::minimum(currency);
    if amount < minimum {
        return Err(ApiError::invalid(format!(
            "Amount must be at least {} {currency}",
            money::show(minimum, currency)
        ))
        .code("amount_too_small")
        .param("amount"));
    }
    let maximum = money::maximum(currency);
    if amount > maximum {
        return Err(ApiError::invalid(format!(
            "Amount must be no more than {}",
            money::show(maximum, currency)
        ))
        .code("amount_too_large")
        .param("amount"));
    }
    whole(amount, currency)
}

/// Fractions that the currency does not have, or that Stripe's partners do not take.
pub fn whole(amount: i64, currency: &str) -> Result<(), ApiError> {
    let step = money::step(currency);
    if amount % step == 0 {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "Invalid amount: an amount in {currency} must be a multiple of {step}."
    ))
    .code("invalid_charge_amount")
    .param("amount"))
}

fn currency(form: &Form) -> Result<Option<String>, ApiError> {
    let Some(text) = form.text("currency")? else {
        return Ok(None);
    };
    let code = text.to_ascii_lowercase();
    if money::is_currency(&code) {
        return Ok(Some(code));
    }
    Err(ApiError::invalid(format!(
        "Invalid currency: {code}. Stripe currently supports these currencies: {}",
        money::supported()
    ))
    .param("currency"))
}

fn capture(form: &Form) -> Result<Option<Capture>, ApiError> {
    let choice = form.choice(
        "capture_method",
        &["automatic", "automatic_async", "manual"],
    )?;
    Ok(choice.as_deref().and_then(Capture::parse))
}

/// The allowed types that a payment can be made with here: Stripe leaves the others out.
fn payment_method_types(form: &Form) -> Result<Option<Vec<String>>, ApiError> {
    if form.has("payment_method_types") {
        // Gone with 2026-09-30, the version that the sandbox speaks.
        return Err(ApiError::invalid(
            "The `payment_method_types` parameter is no longer supported. Use dynamic payment \
             methods, `allowed_payment_method_types` or `excluded_payment_method_types`.",
        )
        .code("payment_method_types_no_longer_supported")
        .param("payment_method_types"));
    }
    let Some(allowed) = form.list("allowed_payment_method_types")? else {
        return Ok(None);
    };
    let usable: Vec<String> = allowed.into_iter().filter(|kind| kind == "card").collect();
    if usable.is_empty() {
        return Err(
            ApiError::invalid("No valid payment method types for this Payment Intent.")
                .code("payment_intent_invalid_parameter")
                .param("allowed_payment_method_types"),
        );
    }
    Ok(Some(usable))
}

fn automatic(form: &Form) -> Result<Option<Automatic>, ApiError> {
    let Some(nested) = form.nested("automatic_payment_methods")? else {
        return Ok(None);
    };
    let enabled = nested
        .boolean("enabled")?
        .ok_or_else(|| missing_param("automatic_payment_methods[enabled]"))?;
    let allow_redirects = nested
        .choice("allow_redirects", &["always", "never"])?
        .unwrap_or_else(|| "always".into());
    Ok(Some(Automatic {
        enabled,
        allow_redirects,
    }))
}

fn echoed(form: &Form) -> Result<BTreeMap<String, Value>, ApiError> {
    let mut kept = BTreeMap::new();
    for name in ECHOED {
        let value = if *name == "shipping" {
            form.nested(name)?.and_then(|_| form.value(name).cloned())
        } else {
            form.text(name)?.map(Value::from)
        };
        if let Some(value) = value {
            kept.insert((*name).to_owned(), value);
        } else if form.has(name) {
            // An empty value unsets.
            kept.insert((*name).to_owned(), Value::Null);
        }
    }
    Ok(kept)
}

fn return_url(form: &Form) -> Result<Option<String>, ApiError> {
    let Some(text) = form.text("return_url")? else {
        return Ok(None);
    };
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Some(url.into())),
        Ok(_) | Err(_) => Err(ApiError::invalid("Not a valid URL")
            .code("url_invalid")
            .param("return_url")),
    }
}

fn chosen(form: &Form) -> Result<Option<Chosen>, ApiError> {
    if let Some(id) = form.text("payment_method")? {
        if let Some(card) = cards::by_payment_method(id) {
            return Ok(Some(Chosen::Card(card)));
        }
        if id.starts_with("pm_1") {
            return Ok(Some(Chosen::Known(id.to_owned())));
        }
        return Err(ApiError::missing("PaymentMethod", id, "payment_method"));
    }
    let Some(data) = form.nested("payment_method_data")? else {
        return Ok(None);
    };
    match data.text("type")? {
        Some("card") => {}
        Some(other) => {
            return Err(
                ApiError::invalid(format!("The sandbox takes cards only, not '{other}'."))
                    .param("payment_method_data[type]"),
            );
        }
        None => return Err(missing_param("payment_method_data[type]")),
    }
    let card = data
        .nested("card")?
        .ok_or_else(|| missing_param("payment_method_data[card]"))?;
    let found = match (card.text("token")?, card.text("number")?) {
        (Some(token), _) => cards::by_token(token),
        (None, Some(number)) => cards::by_number(number),
        (None, None) => return Err(missing_param("payment_method_data[card][number]")),
    };
    found.map(Chosen::Card).map(Some).ok_or_else(|| {
        ApiError::new(
            axum::http::StatusCode::PAYMENT_REQUIRED,
            super::error::Kind::Card,
            "Your card number is incorrect.",
        )
        .code("incorrect_number")
        .param("number")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> (Option<String>, Option<String>) {
        let error = create(&Form::parse(text.as_bytes()).unwrap()).unwrap_err();
        let field = |name| error.field(name).and_then(Value::as_str).map(str::to_owned);
        (field("code"), field("param"))
    }

    #[test]
    fn a_create_is_checked_as_stripe_does() {
        for (text, expected_code, expected_param) in [
            ("currency=krw", Some("parameter_missing"), Some("amount")),
            ("amount=1000", Some("parameter_missing"), Some("currency")),
            (
                "amount=1.5&currency=usd",
                Some("parameter_invalid_integer"),
                Some("amount"),
            ),
            (
                "amount=0&currency=usd",
                Some("parameter_invalid_integer"),
                Some("amount"),
            ),
            (
                "amount=49&currency=usd",
                Some("amount_too_small"),
                Some("amount"),
            ),
            (
                "amount=100000000&currency=krw",
                Some("amount_too_large"),
                Some("amount"),
            ),
            ("amount=100&currency=won", None, Some("currency")),
            (
                "amount=1000&currency=krw&foo=1",
                Some("parameter_unknown"),
                Some("foo"),
            ),
            (
                "amount=1000&currency=krw&payment_method=pm_card_none",
                Some("resource_missing"),
                Some("payment_method"),
            ),
            (
                "amount=1000&currency=krw&confirm=true&return_url=javascript:x",
                Some("url_invalid"),
                Some("return_url"),
            ),
        ] {
            assert_eq!(
                code(text),
                (
                    expected_code.map(str::to_owned),
                    expected_param.map(str::to_owned)
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn a_hundred_won_is_a_hundred_won() {
        let form = Form::parse(b"amount=150000&currency=KRW").unwrap();
        let create = create(&form).unwrap();
        assert_eq!((create.amount, create.currency.as_str()), (150_000, "krw"));
        assert!(create.automatic.unwrap().enabled);
    }
}
