//! Stripe's test payment methods: what each is called, what it looks like and
//! what its issuer says. No card data is kept: a number is looked up here and
//! forgotten, only the name of the test card stays.

/// What the issuer answers once it is asked for money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    Approves,
    Declines(Decline),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decline {
    pub code: &'static str,
    pub decline_code: Option<&'static str>,
    pub message: &'static str,
}

/// What happens to the money after a successful charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    Nothing,
    /// The holder disputes the charge.
    Dispute(Quarrel),
    /// A refund succeeds at first and then fails.
    RefundFails,
    /// A refund stays pending for a moment, then succeeds.
    RefundPending,
}

/// How the holder disputes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quarrel {
    Fraudulent,
    NotReceived,
    /// The bank only asks; no money moves.
    Inquiry,
    /// Two disputes of one charge.
    Several,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestCard {
    /// The payment method's name, without `pm_card_`.
    pub name: &'static str,
    pub number: &'static str,
    pub brand: &'static str,
    pub funding: &'static str,
    pub challenge: bool,
    pub issuer: Issuer,
    pub afterwards: Afterwards,
}

impl TestCard {
    pub fn last4(&self) -> &'static str {
        &self.number[self.number.len() - 4..]
    }
}

const fn good(name: &'static str, number: &'static str, brand: &'static str) -> TestCard {
    TestCard {
        name,
        number,
        brand,
        funding: "credit",
        challenge: false,
        issuer: Issuer::Approves,
        afterwards: Afterwards::Nothing,
    }
}

const fn debit(card: TestCard) -> TestCard {
    TestCard {
        funding: "debit",
        ..card
    }
}

const fn challenged(card: TestCard) -> TestCard {
    TestCard {
        challenge: true,
        ..card
    }
}

const fn then(card: TestCard, afterwards: Afterwards) -> TestCard {
    TestCard { afterwards, ..card }
}

const fn declined(
    name: &'static str,
    number: &'static str,
    code: &'static str,
    decline_code: Option<&'static str>,
    message: &'static str,
) -> TestCard {
    TestCard {
        issuer: Issuer::Declines(Decline {
            code,
            decline_code,
            message,
        }),
        ..good(name, number, "visa")
    }
}

const DECLINED: &str = "Your card was declined.";

pub const CARDS: &[TestCard] = &[
    good("visa", "4242424242424242", "visa"),
    debit(good("visa_debit", "4000056655665556", "visa")),
    good("mastercard", "5555555555554444", "mastercard"),
    debit(good("mastercard_debit", "5200828282828210", "mastercard")),
    good("amex", "378282246310005", "amex"),
    good("discover", "6011111111111117", "discover"),
    good("diners", "3056930009020004", "diners"),
    good("jcb", "3566002020360505", "jcb"),
    good("unionpay", "6200000000000005", "unionpay"),
    good("us", "4242424242424242", "visa"),
    good("kr", "4000004100000001", "visa"),
    declined(
        "chargeDeclined",
        "4000000000000002",
        "card_declined",
        Some("generic_decline"),
        DECLINED,
    ),
    declined(
        "chargeDeclinedInsufficientFunds",
        "4000000000009995",
        "card_declined",
        Some("insufficient_funds"),
        "Your card has insufficient funds.",
    ),
    declined(
        "chargeDeclinedLostCard",
        "4000000000009987",
        "card_declined",
        Some("lost_card"),
        DECLINED,
    ),
    declined(
        "chargeDeclinedStolenCard",
        "4000000000009979",
        "card_declined",
        Some("stolen_card"),
        DECLINED,
    ),
    declined(
        "chargeDeclinedVelocityLimitExceeded",
        "4000000000006975",
        "card_declined",
        Some("card_velocity_exceeded"),
        "Your card was declined for making repeated attempts too frequently or exceeding its \
         amount limit.",
    ),
    declined(
        "chargeDeclinedFraudulent",
        "4100000000000019",
        "card_declined",
        Some("fraudulent"),
        DECLINED,
    ),
    declined(
        "radarBlock",
        "4100000000000019",
        "card_declined",
        Some("fraudulent"),
        DECLINED,
    ),
    declined(
        "chargeDeclinedExpiredCard",
        "4000000000000069",
        "expired_card",
        None,
        "Your card has expired.",
    ),
    declined(
        "chargeDeclinedIncorrectCvc",
        "4000000000000127",
        "incorrect_cvc",
        None,
        "Your card's security code is incorrect.",
    ),
    declined(
        "chargeDeclinedProcessingError",
        "4000000000000119",
        "processing_error",
        None,
        "An error occurred while processing your card. Try again in a little bit.",
    ),
    declined(
        "chargeCustomerFail",
        "4000000000000341",
        "card_declined",
        Some("generic_decline"),
        DECLINED,
    ),
    challenged(good("authenticationRequired", "4000002760003184", "visa")),
    challenged(good("threeDSecure2Required", "4000000000003220", "visa")),
    challenged(good("threeDSecureRequired", "4000000000003063", "visa")),
    good("threeDSecureOptional", "4000000000003055", "visa"),
    challenged(declined(
        "threeDSecureRequiredChargeDeclined",
        "4000008400001629",
        "card_declined",
        Some("generic_decline"),
        DECLINED,
    )),
    challenged(declined(
        "authenticationRequiredChargeDeclinedInsufficientFunds",
        "4000008260003178",
        "card_declined",
        Some("insufficient_funds"),
        "Your card has insufficient funds.",
    )),
    then(
        good("createDispute", "4000000000000259", "visa"),
        Afterwards::Dispute(Quarrel::Fraudulent),
    ),
    then(
        good(
            "createDisputeProductNotReceived",
            "4000000000002685",
            "visa",
        ),
        Afterwards::Dispute(Quarrel::NotReceived),
    ),
    then(
        good("createDisputeInquiry", "4000000000001976", "visa"),
        Afterwards::Dispute(Quarrel::Inquiry),
    ),
    then(
        good("createMultipleDisputes", "4000004000000079", "visa"),
        Afterwards::Dispute(Quarrel::Several),
    ),
    then(
        good("refundFail", "4000000000005126", "visa"),
        Afterwards::RefundFails,
    ),
    then(
        good("pendingRefund", "4000000000007726", "visa"),
        Afterwards::RefundPending,
    ),
];

/// A test payment method by its name. Several of Stripe's carry the brand as
/// well (`pm_card_visa_chargeDeclined`); both spellings are the same card.
pub fn by_payment_method(id: &str) -> Option<&'static TestCard> {
    let name = id.strip_prefix("pm_card_")?;
    by_name(name).or_else(|| by_name(name.strip_prefix("visa_")?))
}

pub fn by_name(name: &str) -> Option<&'static TestCard> {
    CARDS.iter().find(|card| card.name == name)
}

/// A token as Stripe.js once made them: `tok_visa`.
pub fn by_token(token: &str) -> Option<&'static TestCard> {
    let name = token.strip_prefix("tok_")?;
    by_name(name).or_else(|| by_name(name.strip_prefix("visa_")?))
}

pub fn by_number(number: &str) -> Option<&'static TestCard> {
    let digits: String = number.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    CARDS.iter().find(|card| card.number == digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_once() {
        for (i, card) in CARDS.iter().enumerate() {
            assert!(CARDS[..i].iter().all(|other| other.name != card.name));
        }
    }

    #[test]
    fn both_spellings_are_one_card() {
        assert_eq!(
            by_payment_method("pm_card_visa_chargeDeclined"),
            by_payment_method("pm_card_chargeDeclined")
        );
        assert!(by_payment_method("pm_card_chargeDeclined").is_some());
        assert!(by_payment_method("pm_card_nobody").is_none());
        assert_eq!(by_number("4242 4242 4242 4242").unwrap().name, "visa");
    }
}
