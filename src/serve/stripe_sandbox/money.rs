//! Currencies: which exist, how many decimals each has, and the smallest and
//! largest charge. Amounts are whole numbers of the smallest unit throughout.

/// Stripe's presentment currencies.
const CURRENCIES: &str = "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd \
    bnd bob brl bsd bwp byn bzd cad cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur \
    fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr isk jmd jod jpy kes kgs khr \
    kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn myr mzn \
    nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek \
    sgd shp sle sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx uyu uzs vnd vuv wst xaf \
    xcd xof xpf yer zar zmw";

const ZERO_DECIMAL: &[&str] = &[
    "bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf",
    "xof", "xpf",
];

/// Without decimals since, but given with two: always `00`.
const NO_FRACTIONS: &[&str] = &["isk", "ugx"];

const THREE_DECIMAL: &[&str] = &["bhd", "jod", "kwd", "omr", "tnd"];

/// The digits that Stripe takes, by currency.
pub fn maximum(code: &str) -> i64 {
    match code {
        "idr" => 999_999_999_999,
        "lbp" => 99_999_999_999,
        "cop" | "huf" | "jpy" => 9_999_999_999,
        "inr" => 999_999_999,
        _ => 99_999_999,
    }
}

/// What an amount must be a multiple of.
pub fn step(code: &str) -> i64 {
    if THREE_DECIMAL.contains(&code) {
        10
    } else if NO_FRACTIONS.contains(&code) {
        100
    } else {
        1
    }
}

pub fn is_currency(code: &str) -> bool {
    code.len() == 3 && CURRENCIES.split_ascii_whitespace().any(|c| c == code)
}

pub fn supported() -> String {
    CURRENCIES
        .split_ascii_whitespace()
        .collect::<Vec<_>>()
        .join(", ")
}

pub fn decimals(code: &str) -> u32 {
    if ZERO_DECIMAL.contains(&code) {
        0
    } else if THREE_DECIMAL.contains(&code) {
        3
    } else {
        2
    }
}

/// Stripe's smallest charge; currencies it names none for follow half a dollar
/// in their own unit.
pub fn minimum(code: &str) -> i64 {
    match code {
        "aed" | "pln" | "ron" => 200,
        "bgn" => 100,
        "czk" => 1500,
        "dkk" => 250,
        "gbp" => 30,
        "hkd" => 400,
        "huf" => 17_500,
        "jpy" => 50,
        "krw" => 100,
        "mxn" | "thb" => 1000,
        "myr" => 200,
        "nok" | "sek" => 300,
        _ => 50,
    }
}

/// An amount as Stripe's messages show it: `$0.50`, `₩100`, `12.00 chf`.
pub fn show(amount: i64, code: &str) -> String {
    let number = match decimals(code) {
        0 => grouped(amount),
        places => {
            let unit = 10_i64.pow(places);
            format!(
                "{}.{:0width$}",
                grouped(amount / unit),
                amount % unit,
                width = places as usize
            )
        }
    };
    match code {
        "usd" => format!("${number}"),
        "krw" => format!("₩{number}"),
        "eur" => format!("€{number}"),
        "gbp" => format!("£{number}"),
        "jpy" => format!("¥{number}"),
        other => format!("{number} {other}"),
    }
}

fn grouped(n: i64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_as_the_currency_writes_them() {
        assert_eq!(show(150_000, "krw"), "₩150,000");
        assert_eq!(show(150_000, "usd"), "$1,500.00");
        assert_eq!(show(5, "kwd"), "0.005 kwd");
    }

    #[test]
    fn only_real_currencies_count() {
        assert!(is_currency("krw"));
        assert!(!is_currency("krw usd") && !is_currency("") && !is_currency("xxx"));
        assert!(ZERO_DECIMAL.iter().all(|c| is_currency(c)));
        assert!(THREE_DECIMAL.iter().all(|c| is_currency(c)));
    }
}
