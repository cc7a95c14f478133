//! What each call does to an intent. Nothing here waits, stores or sends: the
//! engine hands over an intent and keeps what comes back, events included.

use serde_json::Value;

use super::charging;
use super::disputes::{self, Evidence, Opening};
use super::error::ApiError;
use super::faults::{Faults, Operation};
use super::ids;
use super::machine::{Action, Status};
use super::model::{ChargeState, DisputeStatus, Intent, Metadata, Method, Refund, RefundStatus};
use super::money;
use super::objects;
use super::params::{self, Chosen, RefundOf};

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Create(Box<params::Create>),
    Update(String, Box<params::Update>),
    Confirm(String, Box<params::Confirm>),
    Capture(String, Option<i64>),
    Cancel(String, Option<String>),
    Refund(params::Refund),
    UpdateRefund(String, Metadata),
    UpdateDispute(String, Evidence),
    /// The seller gives a dispute up.
    CloseDispute(String),
    /// Of a test: a dispute on any intent, and any status for it.
    OpenDispute(String, Opening),
    SetDispute(String, DisputeStatus),
    /// The buyer's answer on the next-action page.
    Authenticate {
        intent: String,
        client_secret: String,
        passed: bool,
    },
    /// What was to follow by itself is due.
    Settle(String),
}

/// Which intent a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    New,
    Intent(&'a str),
    Charge(&'a str),
    Refund(&'a str),
    Dispute(&'a str),
}

impl Command {
    pub fn target(&self) -> Target<'_> {
        match self {
            Self::Create(_) => Target::New,
            Self::Update(id, _)
            | Self::Confirm(id, _)
            | Self::Capture(id, _)
            | Self::Cancel(id, _)
            | Self::Authenticate { intent: id, .. }
            | Self::OpenDispute(id, _)
            | Self::Settle(id) => Target::Intent(id),
            Self::Refund(refund) => match &refund.of {
                RefundOf::Intent(id) => Target::Intent(id),
                RefundOf::Charge(id) => Target::Charge(id),
            },
            Self::UpdateRefund(id, _) => Target::Refund(id),
            Self::UpdateDispute(id, _) | Self::CloseDispute(id) | Self::SetDispute(id, _) => {
                Target::Dispute(id)
            }
        }
    }

    pub fn operation(&self) -> Operation {
        match self {
            Self::Create(_) => Operation::Create,
            Self::Update(..)
            | Self::UpdateRefund(..)
            | Self::UpdateDispute(..)
            | Self::CloseDispute(_)
            | Self::OpenDispute(..)
            | Self::SetDispute(..) => Operation::Update,
            Self::Confirm(..) => Operation::Confirm,
            Self::Capture(..) => Operation::Capture,
            Self::Cancel(..) => Operation::Cancel,
            Self::Refund(_) => Operation::Refund,
            Self::Authenticate { .. } => Operation::Authenticate,
            Self::Settle(_) => Operation::Settle,
        }
    }

    /// The answer where the target is unknown.
    fn not_found(&self) -> ApiError {
        match (self.target(), self) {
            (Target::Charge(id), _) => ApiError::missing("charge", id, "charge"),
            (Target::Refund(id), _) => ApiError::missing("refund", id, "id"),
            (Target::Dispute(id), _) => ApiError::missing("dispute", id, "dispute"),
            (Target::Intent(id), Self::Refund(_)) => {
                ApiError::missing("payment_intent", id, "payment_intent")
            }
            (Target::Intent(id), _) => ApiError::missing("payment_intent", id, "intent"),
            (Target::New, _) => ApiError::internal("a new intent has nothing to be found"),
        }
    }
}

#[derive(Debug)]
pub struct Context<'a> {
    pub now_ms: i64,
    /// Where a browser finds this sandbox.
    pub base_url: &'a str,
    pub faults: &'a Faults,
}

impl Context<'_> {
    pub fn now(&self) -> i64 {
        self.now_ms / 1000
    }
}

/// Events as they come: what happened, and the object as it then was.
pub type Events = Vec<(&'static str, Value)>;

#[derive(Debug)]
pub struct Outcome {
    /// The intent to keep; none when nothing may change.
    pub intent: Option<Intent>,
    pub answer: Result<Value, ApiError>,
    pub events: Events,
}

pub fn run(command: &Command, found: Option<Intent>, context: &Context<'_>) -> Outcome {
    let mut events = Events::new();
    let mut intent = match (command, found) {
        (Command::Create(create), _) => new_intent(create, context),
        (_, Some(intent)) => intent,
        (_, None) => return refused(command.not_found()),
    };
    let answer = match command {
        Command::Create(create) => created(&mut intent, create, context, &mut events),
        Command::Update(_, update) => updated(&mut intent, update, context.now()),
        Command::Confirm(_, confirm) => {
            charging::confirm(&mut intent, confirm, context, &mut events)
        }
        Command::Capture(_, amount) => charging::capture(&mut intent, *amount, &mut events),
        Command::Cancel(_, reason) => {
            cancelled(&mut intent, reason.as_deref(), context, &mut events)
        }
        Command::Refund(refund) => refunded(&mut intent, refund, context, &mut events),
        Command::UpdateRefund(id, metadata) => {
            refund_updated(&mut intent, id, metadata, &mut events)
        }
        Command::Authenticate {
            client_secret,
            passed,
            ..
        } => charging::authenticate(&mut intent, client_secret, *passed, context, &mut events),
        Command::UpdateDispute(id, evidence) => {
            disputes::update(&mut intent, id, evidence, context, &mut events)
        }
        Command::CloseDispute(id) => disputes::give_in(&mut intent, id, context, &mut events),
        Command::OpenDispute(_, opening) => {
            disputes::opened(&mut intent, opening, context, &mut events)
        }
        Command::SetDispute(id, status) => {
            disputes::set(&mut intent, id, *status, context, &mut events)
        }
        Command::Settle(_) => charging::settle(&mut intent, context, &mut events),
    };
    match answer {
        Err(error) if !error.keeps_effects() => refused(error),
        answer => Outcome {
            intent: Some(intent),
            answer,
            events,
        },
    }
}

fn refused(error: ApiError) -> Outcome {
    Outcome {
        intent: None,
        answer: Err(error),
        events: Events::new(),
    }
}

fn new_intent(create: &params::Create, context: &Context<'_>) -> Intent {
    let id = ids::intent();
    let mut metadata = create.metadata.clone();
    metadata.retain(|_, value| !value.is_empty());
    Intent {
        client_secret: ids::client_secret(&id),
        id,
        created: context.now(),
        amount: create.amount,
        currency: create.currency.clone(),
        status: Status::RequiresPaymentMethod,
        capture: create.capture,
        automatic_payment_methods: create.automatic.clone(),
        payment_method_types: create.types.clone(),
        echoed: create.echoed.clone(),
        metadata,
        method: None,
        next_action: None,
        last_error: None,
        due_at_ms: None,
        canceled_at: None,
        cancellation_reason: None,
        charges: Vec::new(),
        refunds: Vec::new(),
    }
}

fn created(
    intent: &mut Intent,
    create: &params::Create,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    choose(intent, create.card.as_ref(), context.now())?;
    if intent.method.is_some() {
        intent.advance(Action::Change);
    }
    events.push(("payment_intent.created", objects::payment_intent(intent)));
    if !create.confirm {
        return Ok(objects::payment_intent(intent));
    }
    let confirm = params::Confirm {
        return_url: create.return_url.clone(),
        error_on_requires_action: create.error_on_requires_action,
        ..params::Confirm::default()
    };
    charging::confirm(intent, &confirm, context, events)
}

/// Puts the chosen payment method on the intent. One that the intent does not
/// know belongs to nobody here: methods are not shared between intents.
pub fn choose(intent: &mut Intent, chosen: Option<&Chosen>, now: i64) -> Result<(), ApiError> {
    match chosen {
        None => Ok(()),
        Some(Chosen::Card(card)) => {
            intent.method = Some(Method::new(card, now));
            Ok(())
        }
        Some(Chosen::Known(id)) => {
            let known = intent
                .method
                .as_ref()
                .is_some_and(|method| method.id == *id);
            if known {
                Ok(())
            } else {
                Err(ApiError::missing("PaymentMethod", id, "payment_method"))
            }
        }
    }
}

fn updated(intent: &mut Intent, update: &params::Update, now: i64) -> Result<Value, ApiError> {
    let touches_money =
        update.amount.is_some() || update.currency.is_some() || update.card.is_some();
    if touches_money {
        let before = objects::payment_intent(intent);
        if !intent.advance(Action::Change) {
            return Err(ApiError::unexpected_state(
                format!(
                    "This PaymentIntent's amount could not be updated because it has a status of \
                     {}. You may only update the amount of a PaymentIntent with one of the \
                     following statuses: requires_payment_method, requires_confirmation, \
                     requires_action.",
                    intent.status.as_str()
                ),
                before,
            ));
        }
        let amount = update.amount.unwrap_or(intent.amount);
        let currency = update.currency.as_ref().unwrap_or(&intent.currency).clone();
        params::check_amount(amount, &currency)?;
        choose(intent, update.card.as_ref(), now)?;
        intent.amount = amount;
        intent.currency = currency;
        intent.next_action = None;
        if intent.method.is_none() {
            intent.status = Status::RequiresPaymentMethod;
        }
    }
    intent.echoed.extend(update.echoed.clone());
    merge(&mut intent.metadata, &update.metadata);
    Ok(objects::payment_intent(intent))
}

fn merge(into: &mut Metadata, changes: &Metadata) {
    for (key, value) in changes {
        if value.is_empty() {
            into.remove(key);
        } else {
            into.insert(key.clone(), value.clone());
        }
    }
}

fn cancelled(
    intent: &mut Intent,
    reason: Option<&str>,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let before = objects::payment_intent(intent);
    if !intent.advance(Action::Cancel) {
        return Err(ApiError::unexpected_state(
            format!(
                "You cannot cancel this PaymentIntent because it has a status of {}. Only a \
                 PaymentIntent with one of the following statuses may be canceled: \
                 requires_payment_method, requires_capture, requires_confirmation, \
                 requires_action, processing.",
                intent.status.as_str()
            ),
            before,
        ));
    }
    intent.canceled_at = Some(context.now());
    intent.cancellation_reason = reason.map(str::to_owned);
    intent.next_action = None;
    for charge in &mut intent.charges {
        if charge.state == ChargeState::Authorised {
            charge.state = ChargeState::Released;
            charge.released = charge.amount;
        }
    }
    if let Some(charge) = intent
        .latest_charge()
        .filter(|charge| charge.state == ChargeState::Released)
    {
        events.push(("charge.refunded", objects::charge(intent, charge)));
    }
    let now = objects::payment_intent(intent);
    events.push(("payment_intent.canceled", now.clone()));
    Ok(now)
}

fn refunded(
    intent: &mut Intent,
    wanted: &params::Refund,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let charge = match &wanted.of {
        RefundOf::Intent(_) => intent.captured_charge(),
        RefundOf::Charge(id) => intent
            .charges
            .iter()
            .find(|charge| charge.id == *id && charge.state == ChargeState::Captured),
    };
    let Some(charge) = charge.cloned() else {
        return Err(ApiError::invalid(format!(
            "This PaymentIntent ({}) does not have a successful charge to refund.",
            intent.id
        ))
        .code("payment_intent_unexpected_state"));
    };
    if charge
        .disputes
        .iter()
        .any(|dispute| dispute.status.forbids_refunds())
    {
        return Err(ApiError::invalid(format!(
            "Charge {} has been charged back; cannot issue a refund.",
            charge.id
        ))
        .code("charge_disputed"));
    }
    let left = charge.captured - intent.refunded_of(&charge.id);
    if left == 0 {
        return Err(
            ApiError::invalid(format!("Charge {} has already been refunded.", charge.id))
                .code("charge_already_refunded"),
        );
    }
    let amount = wanted.amount.unwrap_or(left);
    params::whole(amount, &intent.currency)?;
    if amount > left {
        return Err(ApiError::invalid(format!(
            "Refund amount ({}) is greater than unrefunded amount on charge ({})",
            money::show(amount, &intent.currency),
            money::show(left, &intent.currency)
        ))
        .param("amount"));
    }
    let mut metadata = Metadata::new();
    merge(&mut metadata, &wanted.metadata);
    let (status, fails) = charging::refund_begins(&charge, intent, context);
    intent.refunds.push(Refund {
        id: ids::refund(),
        charge: charge.id.clone(),
        created: context.now(),
        amount,
        status,
        reason: wanted.reason.clone(),
        metadata,
        balance_transaction: ids::balance_transaction(),
        fails,
    });
    let refund = objects::refund(intent, &intent.refunds[intent.refunds.len() - 1]);
    events.push(("refund.created", refund.clone()));
    events.push(("charge.refunded", objects::charge(intent, &charge)));
    if status == RefundStatus::Succeeded {
        events.push(("refund.updated", refund.clone()));
    }
    Ok(refund)
}

fn refund_updated(
    intent: &mut Intent,
    id: &str,
    metadata: &Metadata,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let Some(at) = intent.refunds.iter().position(|refund| refund.id == id) else {
        return Err(ApiError::missing("refund", id, "id"));
    };
    merge(&mut intent.refunds[at].metadata, metadata);
    let refund = objects::refund(intent, &intent.refunds[at]);
    events.push(("refund.updated", refund.clone()));
    Ok(refund)
}
