//! 38-digit decimals, kept as text.
//!
//! In: the text of a DynamoDB number. Out: its normal form (sign, digits without zeros at either end, power
//! of ten), which compares, is written canonically, and becomes PostgreSQL's binary `numeric`. Invariant: the
//! value is never rounded; what DynamoDB couldn't hold is refused.
//!
//! Limits: <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html>.

use std::cmp::Ordering;

use crate::error::{Code, Fault};
use crate::scan;

const DIGITS_MAX: usize = 38;
/// Powers of ten of the first digit.
const LEAST: i64 = -130;
const GREATEST: i64 = 125;
/// Longer texts can only be padded with zeros; nobody writes them.
const TEXT_MAX: usize = 512;

/// So many digits, or digits and a point, 64 bits hold with room for three zeros.
const SHORT_MAX: usize = 16;

/// The powers of ten that 38 digits reach.
pub(crate) const POWERS: [i128; DIGITS_MAX + 1] = {
    let mut powers = [1; DIGITS_MAX + 1];
    let mut i = 1;
    while i < powers.len() {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};
/// Zeros before the first digit of a small number that is still written without an exponent.
const LEADING_ZEROS_MAX: i32 = 6;

/// ± digits × 10^exponent; zero has no digits, no sign and exponent 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    negative: bool,
    len: u8,
    digits: [u8; DIGITS_MAX],
    exponent: i32,
}

impl Number {
    /// The number of a text in JSON's number grammar, within DynamoDB's limits.
    pub fn parse(text: &[u8]) -> Result<Self, Code> {
        if text.len() > TEXT_MAX || scan::number(text, 0).ok() != Some(text.len()) {
            return Err(Code::InvalidNumber);
        }
        let negative = text[0] == b'-';
        let mantissa_end = text.iter().position(|c| matches!(c, b'e' | b'E')).unwrap_or(text.len());
        let mantissa = &text[usize::from(negative)..mantissa_end];
        let point = mantissa.iter().position(|&c| c == b'.').unwrap_or(mantissa.len());
        let fraction = mantissa.len().saturating_sub(point + 1) as i64;
        let exponent = written_exponent(text.get(mantissa_end + 1..).unwrap_or(b"")) - fraction;

        let significant = || mantissa.iter().copied().filter(|&c| c != b'.').skip_while(|&c| c == b'0');
        let Some(last) = significant().enumerate().filter(|&(_, c)| c != b'0').map(|(i, _)| i).last() else {
            return if (LEAST..=GREATEST).contains(&exponent) {
                Ok(Self { negative: false, len: 0, digits: [0; DIGITS_MAX], exponent: 0 })
            } else {
                Err(Code::NumberRange)
            };
        };
        let len = last + 1;
        let exponent = exponent + (significant().count() - len) as i64;
        if len > DIGITS_MAX {
            return Err(Code::NumberPrecision);
        }
        if !(LEAST..=GREATEST).contains(&(exponent + last as i64)) {
            return Err(Code::NumberRange);
        }
        let mut digits = [0; DIGITS_MAX];
        for (place, digit) in digits.iter_mut().zip(significant().take(len)) {
            *place = digit;
        }
        Ok(Self { negative, len: len as u8, digits, exponent: exponent as i32 })
    }

    fn digits(&self) -> &[u8] {
        &self.digits[..usize::from(self.len)]
    }

    /// Power of ten of the first digit.
    fn magnitude(&self) -> i32 {
        self.exponent + i32::from(self.len) - 1
    }

    /// Appends the one text that every spelling of this number shares, such as `-15E-1`.
    pub fn write(&self, out: &mut Vec<u8>) {
        if self.len == 0 {
            out.push(b'0');
            return;
        }
        if self.negative {
            out.push(b'-');
        }
        out.extend_from_slice(self.digits());
        out.push(b'E');
        out.extend_from_slice(itoa::Buffer::new().format(self.exponent).as_bytes());
    }

    /// Appends it as people write it and JSON reads it, in one spelling: `-1.5`, `1200`, with an exponent only where
    /// zeros would outgrow the digits.
    pub fn write_decimal(&self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        let (digits, magnitude) = (self.digits(), self.magnitude());
        // Digits before the point; none: zeros come first.
        let whole = usize::try_from(magnitude + 1).unwrap_or(0);
        if digits.is_empty() {
            out.push(b'0');
        } else if (0..DIGITS_MAX as i32).contains(&magnitude) {
            let (before, behind) = digits.split_at(whole.min(digits.len()));
            out.extend_from_slice(before);
            out.resize(out.len() + whole - before.len(), b'0');
            if !behind.is_empty() {
                out.push(b'.');
                out.extend_from_slice(behind);
            }
        } else if (-LEADING_ZEROS_MAX..0).contains(&magnitude) {
            out.extend_from_slice(b"0.");
            out.resize(out.len() + (-1 - magnitude).unsigned_abs() as usize, b'0');
            out.extend_from_slice(digits);
        } else {
            out.push(digits[0]);
            if digits.len() > 1 {
                out.push(b'.');
                out.extend_from_slice(&digits[1..]);
            }
            out.push(b'E');
            out.extend_from_slice(itoa::Buffer::new().format(magnitude).as_bytes());
        }
    }

    /// Appends it in fixed-point notation, without a zero too many: `-0.05`, `1200`.
    pub fn write_fixed(&self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        let whole = usize::try_from(self.magnitude() + 1).unwrap_or(0);
        let digits = self.digits();
        if self.len == 0 || whole == 0 {
            out.push(b'0');
        }
        out.extend_from_slice(&digits[..whole.min(digits.len())]);
        out.resize(out.len() + whole.saturating_sub(digits.len()), b'0');
        if whole < digits.len() {
            out.push(b'.');
            out.resize(out.len() + usize::try_from(-1 - self.magnitude()).unwrap_or(0), b'0');
            out.extend_from_slice(&digits[whole..]);
        }
    }

    /// The number that `write` wrote.
    pub fn read(canonical: &[u8]) -> Self {
        Self::parse(canonical).unwrap_or(Self { negative: false, len: 0, digits: [0; DIGITS_MAX], exponent: 0 })
    }

    /// This number × 10^power, rounded down, when it fits.
    pub fn scaled(&self, power: i32) -> Option<i64> {
        let mut value = 0_i128;
        for digit in self.digits() {
            value = value * 10 + i128::from(digit - b'0');
        }
        if self.negative {
            value = -value;
        }
        let power = self.exponent + power;
        if self.len == 0 {
            return Some(0);
        }
        if power < 0 {
            let divisor = 10_i128.checked_pow(power.unsigned_abs());
            return divisor
                .map_or(Some(if self.negative { -1 } else { 0 }), |d| i64::try_from(value.div_euclid(d)).ok());
        }
        let factor = 10_i128.checked_pow(power.unsigned_abs())?;
        i64::try_from(value.checked_mul(factor)?).ok()
    }

    /// This number × 10^scale, when it is whole and 128 bits hold it.
    pub fn unscaled(&self, scale: u8) -> Option<i128> {
        // No digit but the last is a zero to be dropped, so a power below 0 leaves a fraction.
        let power = u32::try_from(if self.len == 0 { 0 } else { self.exponent + i32::from(scale) }).ok()?;
        let digits = self.digits().iter().fold(0_i128, |value, digit| value * 10 + i128::from(digit - b'0'));
        let value = digits.checked_mul(*POWERS.get(power as usize)?)?;
        Some(if self.negative { -value } else { value })
    }

    /// Appends PostgreSQL's binary `numeric`, its length first.
    ///
    /// Format: `numeric_send` in <https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/numeric.c>:
    /// four 16-bit fields (count, weight, sign, digits behind the point), then digits to the base 10,000.
    pub fn write_numeric(&self, out: &mut Vec<u8>) {
        let scale = if self.exponent < 0 { self.exponent.unsigned_abs() as u16 } else { 0 };
        if self.len == 0 {
            write_fields(out, &[], 0, false, 0);
            return;
        }
        let weight = self.magnitude().div_euclid(4);
        // Zeros in front, so that a group of four ends at the point.
        let lead = 3 - self.magnitude().rem_euclid(4).unsigned_abs() as usize;
        let mut groups = [0_u16; DIGITS_MAX.div_ceil(4) + 1];
        let mut count = 0;
        for (i, digit) in self.digits().iter().enumerate() {
            let place = lead + i;
            groups[place / 4] += u16::from(digit - b'0') * [1000, 100, 10, 1][place % 4];
            count = place / 4 + 1;
        }
        write_fields(out, &groups[..count], weight as i16, self.negative, scale);
    }
}

/// Appends a binary `numeric`, its length first.
pub(crate) fn write_fields(out: &mut Vec<u8>, groups: &[u16], weight: i16, negative: bool, scale: u16) {
    let len = 8 + 2 * groups.len() as u32;
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&(groups.len() as u16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&if negative { 0x4000_u16 } else { 0 }.to_be_bytes());
    out.extend_from_slice(&scale.to_be_bytes());
    for group in groups {
        out.extend_from_slice(&group.to_be_bytes());
    }
}

/// A checked text without an exponent, of at most 16 digits: its digits as one whole number, and how many of them
/// stand behind the point. Most numbers are so, and need no `Number`.
#[inline]
fn short(text: &[u8]) -> Option<(bool, u64, u32)> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.len() > SHORT_MAX {
        return None;
    }
    let (mut value, mut point) = (0, digits.len());
    for (at, &c) in digits.iter().enumerate() {
        match c {
            b'0'..=b'9' => value = value * 10 + u64::from(c - b'0'),
            b'.' => point = at + 1,
            _ => return None,
        }
    }
    Some((digits.len() < text.len(), value, (digits.len() - point) as u32))
}

/// The number of a checked text × 10^scale, when that is whole and 128 bits hold it.
#[inline]
pub fn unscaled(text: &[u8], scale: u8) -> Option<i128> {
    let Some((negative, value, behind)) = short(text) else { return Number::parse(text).ok()?.unscaled(scale) };
    let value = if let Some(power) = u32::from(scale).checked_sub(behind) {
        i128::from(value).checked_mul(*POWERS.get(power as usize)?)?
    } else {
        let divisor = 10_u64.pow(behind - u32::from(scale));
        (value % divisor == 0).then_some(i128::from(value / divisor))?
    };
    Some(if negative { -value } else { value })
}

/// Appends PostgreSQL's binary `numeric` of a checked text, as `Number::write_numeric` does.
#[inline]
pub fn write_numeric(text: &[u8], out: &mut Vec<u8>) {
    let Some((negative, mut value, mut behind)) = short(text) else { return Number::read(text).write_numeric(out) };
    while behind > 0 && value % 10 == 0 {
        value /= 10;
        behind -= 1;
    }
    // Five groups of four digits on either side of the point.
    let (mut groups, unit) = ([0_u16; 10], 10_u64.pow(behind));
    let (mut whole, mut fraction) = (value / unit, value % unit * 10_u64.pow((4 - behind % 4) % 4));
    let ends = 5 + behind.div_ceil(4) as usize;
    for group in groups[5..ends].iter_mut().rev() {
        *group = (fraction % 10_000) as u16;
        fraction /= 10_000;
    }
    for group in groups[..5].iter_mut().rev() {
        *group = (whole % 10_000) as u16;
        whole /= 10_000;
    }
    let Some(first) = groups.iter().position(|&group| group != 0) else { return write_fields(out, &[], 0, false, 0) };
    let last = groups.iter().rposition(|&group| group != 0).unwrap_or(first);
    write_fields(out, &groups[first..=last], 4 - first as i16, negative, behind as u16);
}

/// The number of a checked text, when it is whole and 64 bits hold it.
#[inline]
pub fn whole(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit) {
        let value = digits.iter().fold(0_i64, |value, c| value * 10 + i64::from(c - b'0'));
        return Some(if digits.len() < text.len() { -value } else { value });
    }
    i64::try_from(unscaled(text, 0)?).ok()
}

fn written_exponent(text: &[u8]) -> i64 {
    let negative = text.first() == Some(&b'-');
    let value = text
        .iter()
        .filter(|c| c.is_ascii_digit())
        .fold(0_i64, |value, c| (value * 10 + i64::from(c - b'0')).min(1_000_000_000));
    if negative { -value } else { value }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |n: &Self| if n.len == 0 { 0 } else { 1 - 2 * i32::from(n.negative) };
        let by_size = || self.magnitude().cmp(&other.magnitude()).then_with(|| self.digits().cmp(other.digits()));
        sign(self).cmp(&sign(other)).then_with(|| match sign(self) {
            0 => Ordering::Equal,
            1 => by_size(),
            _ => by_size().reverse(),
        })
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// How a checked number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Digits, perhaps a sign before them.
    Whole,
    /// The same with a point and more digits.
    Decimal,
    /// With an exponent, or oddly long.
    Other,
}

/// Checks the number whose text begins here, behind its quote, and gives the place of its closing quote.
#[inline(always)]
pub fn check(b: &[u8], start: usize) -> Result<(usize, Form), Fault> {
    let first = start + usize::from(scan::byte(b, start) == b'-');
    let whole = scan::digits(b, first);
    let mut at = first + whole;
    let mut fraction = 1;
    let mut form = Form::Whole;
    if scan::byte(b, at) == b'.' {
        fraction = scan::digits(b, at + 1);
        at += 1 + fraction;
        form = Form::Decimal;
    }
    // So short a text without an exponent can break neither limit.
    let plain = scan::byte(b, at) == b'"'
        && whole != 0
        && fraction != 0
        && at - start <= DIGITS_MAX
        && (whole == 1 || scan::byte(b, first) != b'0');
    if plain { Ok((at, form)) } else { check_slowly(b, start).map(|end| (end, Form::Other)) }
}

#[inline(never)]
fn check_slowly(b: &[u8], start: usize) -> Result<usize, Fault> {
    let text = scan::string(b, start)?;
    Number::parse(&text.bytes(b)).map_err(|code| Fault::new(code, start))?;
    if text.escaped {
        // Verbatim it would be no JSON number; DynamoDB never writes one so.
        return Err(Fault::new(Code::InvalidNumber, start));
    }
    Ok(text.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        let mut out = Vec::new();
        Number::parse(text.as_bytes()).unwrap().write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn spellings_of_one_number_share_one_text() {
        for text in ["1", "1.0", "10E-1", "0.1E1", "1.000e+0", "0.0001E4"] {
            assert_eq!(canonical(text), "1E0", "{text}");
        }
        for text in ["0", "-0", "0.00", "0E5"] {
            assert_eq!(canonical(text), "0", "{text}");
        }
        assert_eq!(canonical("-1500"), "-15E2");
        assert_eq!(canonical("99999999999999999999999999999999999999"), format!("{}E0", "9".repeat(38)));
    }

    #[test]
    fn limits_are_dynamodbs() {
        let nines = "9".repeat(38);
        for good in [
            &format!("{nines}E88"),
            "1E-130",
            "-1E125",
            &format!("{}1", "0.".to_owned() + &"0".repeat(129)),
            &format!("1{}", "0".repeat(125)),
        ] {
            Number::parse(good.as_bytes()).unwrap();
        }
        for (bad, code) in [
            (format!("{nines}9"), Code::NumberPrecision),
            (format!("0.{nines}1"), Code::NumberPrecision),
            ("1E126".into(), Code::NumberRange),
            (format!("{nines}E89"), Code::NumberRange),
            ("1E-131".into(), Code::NumberRange),
            ("1E99999999999999999999".into(), Code::NumberRange),
            ("0E999".into(), Code::NumberRange),
            ("01".into(), Code::InvalidNumber),
            (String::new(), Code::InvalidNumber),
            ("NaN".into(), Code::InvalidNumber),
            ("+1".into(), Code::InvalidNumber),
            (" 1".into(), Code::InvalidNumber),
            ("1.".into(), Code::InvalidNumber),
            (".1".into(), Code::InvalidNumber),
            ("1E".into(), Code::InvalidNumber),
            ("0x1".into(), Code::InvalidNumber),
        ] {
            assert_eq!(Number::parse(bad.as_bytes()), Err(code), "{bad}");
        }
    }

    #[test]
    fn decimals_have_one_spelling() {
        for (text, wanted) in [
            ("-0.0", "0"),
            ("1.0", "1"),
            ("12E2", "1200"),
            ("-1.50", "-1.5"),
            ("0.0005", "0.0005"),
            ("1E-6", "0.000001"),
            ("1E-7", "1E-7"),
            ("12.5E-9", "1.25E-8"),
            ("1E37", &format!("1{}", "0".repeat(37))),
            ("1E38", "1E38"),
            ("-123E123", "-1.23E125"),
        ] {
            let mut out = Vec::new();
            Number::parse(text.as_bytes()).unwrap().write_decimal(&mut out);
            let out = String::from_utf8(out).unwrap();
            assert_eq!(out, wanted);
            assert_eq!(canonical(&out), canonical(text));
        }
    }

    #[test]
    fn orders_by_value() {
        let texts =
            ["-1E125", "-10", "-9.5", "-1E-130", "0", "1E-130", "0.5", "1", "1.5", "9", "10", "99", "100", "1E125"];
        for (i, a) in texts.iter().enumerate() {
            for (j, b) in texts.iter().enumerate() {
                let (x, y) = (Number::parse(a.as_bytes()).unwrap(), Number::parse(b.as_bytes()).unwrap());
                assert_eq!(x.cmp(&y), i.cmp(&j), "{a} {b}");
            }
        }
    }

    #[test]
    fn scales_exactly() {
        let scaled = |text: &str, power| Number::parse(text.as_bytes()).unwrap().scaled(power);
        assert_eq!(scaled("1.576516897E9", 6), Some(1_576_516_897_000_000));
        assert_eq!(scaled("1576516897.1234567", 6), Some(1_576_516_897_123_456));
        assert_eq!(scaled("-1.5", 0), Some(-2));
        assert_eq!(scaled("1E-100", 0), Some(0));
        assert_eq!(scaled("1E100", 0), None);
        assert_eq!(scaled("0", 6), Some(0));
    }

    /// Reads a binary `numeric` back to the canonical text.
    fn from_numeric(bytes: &[u8]) -> String {
        let field = |i: usize| u16::from_be_bytes([bytes[4 + 2 * i], bytes[5 + 2 * i]]);
        assert_eq!(u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len() - 4);
        let (count, weight, sign, scale) = (field(0), field(1).cast_signed(), field(2), field(3));
        let mut text = String::from(if sign == 0x4000 { "-0" } else { "0" }).replace("-0", "-");
        text.extend((0..count).map(|i| format!("{:04}", field(4 + usize::from(i)))));
        let text = text.trim_start_matches('0').to_owned();
        let negative = text.starts_with('-');
        let digits = text.trim_start_matches(['-', '0']);
        let exponent = (i32::from(weight) - i32::from(count) + 1) * 4;
        let text =
            format!("{}{}E{exponent}", if negative { "-" } else { "" }, if digits.is_empty() { "0" } else { digits });
        assert!(scale <= 167);
        let text = if digits.is_empty() { "0".into() } else { text };
        canonical(&text)
    }

    #[test]
    fn binary_numeric_holds_the_same_value() {
        for text in [
            "0",
            "1",
            "-1",
            "12",
            "123",
            "1234",
            "12345",
            "0.1",
            "0.0001",
            "0.00001",
            "-123456.789",
            "1E125",
            "1E-130",
            "9999",
            "10000",
            "99999999999999999999999999999999999999E-50",
        ] {
            let mut out = Vec::new();
            Number::parse(text.as_bytes()).unwrap().write_numeric(&mut out);
            assert_eq!(from_numeric(&out), canonical(text), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn short_texts_are_the_same_numbers(text in "-?(0|[1-9][0-9]{0,12})([.][0-9]{1,12})?", scale in 0_u8..39) {
            let number = Number::parse(text.as_bytes()).unwrap();
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            write_numeric(text.as_bytes(), &mut ours);
            number.write_numeric(&mut theirs);
            proptest::prop_assert_eq!(ours, theirs);
            proptest::prop_assert_eq!(unscaled(text.as_bytes(), scale), number.unscaled(scale));
        }
    }
}
