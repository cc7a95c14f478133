//! Amounts as we keep them and as Stripe takes them.
//!
//! Ours are whole numbers of the currency's own minor unit. Stripe's are too, with three
//! exceptions (<https://docs.stripe.com/currencies>): ISK and UGX lost their decimals but are still
//! given with two, always `00`; three-decimal currencies must end in 0; and each currency has a
//! smallest and a largest charge.

/// What Stripe takes as the currency of a charge.
const CURRENCIES: &str = "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd \
    bnd bob brl bsd bwp byn bzd cad cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur \
    fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr isk jmd jod jpy kes kgs khr \
    kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn myr mzn \
    nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek \
    sgd shp sle sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx uyu uzs vnd vuv wst xaf \
    xcd xof xpf yer zar zmw";

/// Given to Stripe with two decimals that are always `00`.
const HUNDREDFOLD: &[&str] = &["isk", "ugx"];

/// Stripe's partners want the last digit to be 0.
const THREE_DECIMAL: &[&str] = &["bhd", "jod", "kwd", "omr", "tnd"];

/// Why Stripe would not take an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPayable {
    /// Stripe does not charge in this currency.
    #[error("payments are not possible in this currency")]
    Currency,
    /// Below the smallest charge.
    #[error("the smallest amount that can be paid is {min}")]
    TooSmall {
        /// The smallest charge, in the currency's minor unit.
        min: i64,
    },
    /// Above the largest charge.
    #[error("the largest amount that can be paid is {max}")]
    TooLarge {
        /// The largest charge, in the currency's minor unit.
        max: i64,
    },
    /// Stripe cannot represent it.
    #[error("only multiples of {step} can be paid in this currency")]
    NotRepresentable {
        /// What it must be a multiple of, in the currency's minor unit.
        step: i64,
    },
}

fn factor(currency: &str) -> i64 {
    if HUNDREDFOLD.contains(&currency) {
        100
    } else {
        1
    }
}

/// What every amount of this currency must be a multiple of, in its minor unit.
fn step(currency: &str) -> i64 {
    if THREE_DECIMAL.contains(&currency) {
        10
    } else {
        1
    }
}

/// Our amount as Stripe takes it. The currency is lower case, as in all our records.
pub fn to_stripe(amount: i64, currency: &str) -> i64 {
    amount.saturating_mul(factor(currency))
}

/// Stripe's amount as we keep it. Fractions that the currency has lost cannot be charged, so none
/// is cut off here.
pub fn from_stripe(amount: i64, currency: &str) -> i64 {
    amount / factor(currency)
}

/// The smallest charge in Stripe's unit. Stripe names it for the currencies that it pays out in;
/// for others it is worth half a dollar, which only Stripe can tell.
fn minimum(currency: &str) -> i64 {
    match currency {
        "aed" | "myr" | "pln" | "ron" => 200,
        "bgn" | "krw" => 100,
        "czk" => 1_500,
        "dkk" => 250,
        "gbp" => 30,
        "hkd" => 400,
        "huf" => 17_500,
        "mxn" | "thb" => 1_000,
        "nok" | "sek" => 300,
        _ => 50,
    }
}

/// The largest charge in Stripe's unit, by the digits that it takes.
fn maximum(currency: &str) -> i64 {
    match currency {
        "idr" => 999_999_999_999,
        "lbp" => 99_999_999_999,
        "cop" | "huf" | "jpy" => 9_999_999_999,
        "inr" => 999_999_999,
        _ => 99_999_999,
    }
}

/// The amount in Stripe's unit, where Stripe takes it; to be asked before anything is held.
///
/// # Errors
/// Why Stripe would refuse it, as far as it can be known without asking.
pub fn payable(amount: i64, currency: &str) -> Result<i64, NotPayable> {
    let currency = currency.to_ascii_lowercase();
    let known = currency.len() == 3 && CURRENCIES.split_ascii_whitespace().any(|c| c == currency);
    if !known {
        return Err(NotPayable::Currency);
    }
    let (factor, step) = (factor(&currency), step(&currency));
    // In steps of the minor unit: the smallest rounded up, the largest rounded down.
    let min = (minimum(&currency) + factor - 1) / factor;
    let min = (min + step - 1) / step * step;
    let max = maximum(&currency) / factor / step * step;
    if amount < min {
        Err(NotPayable::TooSmall { min })
    } else if amount > max {
        Err(NotPayable::TooLarge { max })
    } else if amount % step != 0 {
        Err(NotPayable::NotRepresentable { step })
    } else {
        Ok(to_stripe(amount, &currency))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stripe_types::Currency;

    use super::*;

    /// Every currency that the Stripe types know, by trying all codes, and those that we sell in.
    fn every_currency() -> &'static [String] {
        static ALL: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| {
            let letters = || 'a'..='z';
            let codes = letters().flat_map(|a| {
                letters().flat_map(move |b| letters().map(move |c| format!("{a}{b}{c}")))
            });
            codes
                .filter(|code| {
                    in_types(code) || CURRENCIES.split_ascii_whitespace().any(|c| c == code)
                })
                .collect()
        });
        &ALL
    }

    fn in_types(code: &str) -> bool {
        let parsed: Currency = match code.parse() {
            Ok(parsed) => parsed,
            Err(never) => match never {},
        };
        !matches!(parsed, Currency::Unknown(_))
    }

    #[test]
    fn the_types_know_what_stripe_charges_in() {
        let unknown: Vec<&str> = CURRENCIES
            .split_ascii_whitespace()
            .filter(|code| !in_types(code))
            .collect();
        // Written as they are, all the same.
        assert_eq!(unknown, ["bhd", "jod", "kwd", "omr", "sle", "tnd"]);
        assert!(every_currency().len() > 140);
        for code in unknown {
            let Ok(currency) = code.parse::<Currency>();
            assert_eq!(currency.to_string(), code);
        }
    }

    proptest! {
        #[test]
        fn every_currency_goes_there_and_back(amount in 0_i64..10_000_000_000_000) {
            for currency in every_currency() {
                prop_assert_eq!(from_stripe(to_stripe(amount, currency), currency), amount);
            }
        }

        /// What is payable is a whole amount of Stripe's within its limits; what is not is said
        /// with the amount that would be.
        #[test]
        fn payable_is_what_stripe_takes(amount in prop_oneof![
            -10_i64..200_000, 99_999_900_i64..100_000_100, 0_i64..2_000_000_000_000,
        ]) {
            for currency in every_currency() {
                match payable(amount, currency) {
                    Ok(at_stripe) => {
                        prop_assert_eq!(from_stripe(at_stripe, currency), amount);
                        prop_assert!((minimum(currency)..=maximum(currency)).contains(&at_stripe));
                        prop_assert!(!THREE_DECIMAL.contains(&currency.as_str()) || at_stripe % 10 == 0);
                        prop_assert!(!HUNDREDFOLD.contains(&currency.as_str()) || at_stripe % 100 == 0);
                    }
                    Err(NotPayable::Currency) => {
                        prop_assert!(!CURRENCIES.split_ascii_whitespace().any(|c| c == *currency));
                    }
                    Err(NotPayable::TooSmall { min }) => {
                        prop_assert!(amount < min && payable(min, currency).is_ok());
                    }
                    Err(NotPayable::TooLarge { max }) => {
                        prop_assert!(amount > max && payable(max, currency).is_ok());
                    }
                    Err(NotPayable::NotRepresentable { step }) => {
                        prop_assert!(amount % step != 0);
                    }
                }
            }
        }
    }

    #[test]
    fn amounts_by_example() {
        assert_eq!(payable(165_000, "krw"), Ok(165_000));
        assert_eq!(payable(4_950, "USD"), Ok(4_950));
        assert_eq!(payable(1_500, "isk"), Ok(150_000));
        assert_eq!(payable(5_120, "kwd"), Ok(5_120));
        assert_eq!(
            payable(5_124, "kwd"),
            Err(NotPayable::NotRepresentable { step: 10 })
        );
        assert_eq!(payable(0, "usd"), Err(NotPayable::TooSmall { min: 50 }));
        assert_eq!(
            payable(100_000_000, "usd"),
            Err(NotPayable::TooLarge { max: 99_999_999 })
        );
        assert_eq!(payable(999_999, "isk"), Ok(99_999_900));
        assert_eq!(
            payable(1_000_000, "isk"),
            Err(NotPayable::TooLarge { max: 999_999 })
        );
        assert_eq!(payable(100_000_000, "idr"), Ok(100_000_000));
        assert_eq!(payable(1_000, "xxx"), Err(NotPayable::Currency));
    }
}
