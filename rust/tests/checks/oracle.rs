//! What a record means, said a second time: slowly, from a tree, sharing no code with the core.

use super::json::Node;

const US_MAX: i128 = 253_402_300_799_999_999;

/// An accepted record.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    pub event: String,
    pub table: Option<String>,
    pub version: String,
    pub event_us: i64,
    /// Plain forms; members as often as they came.
    pub keys: Node,
    pub new: Node,
    pub old: Node,
    /// The key attributes: name, type.
    pub key_types: Vec<(String, char)>,
}

/// The value behind `null` is absent; of the others the last counts.
fn last<'a>(members: &'a [(String, Node)], name: &str) -> Option<&'a Node> {
    members.iter().rev().find(|(n, v)| n == name && *v != Node::Null).map(|(_, v)| v)
}

fn all<'a>(members: &'a [(String, Node)], name: &str) -> impl Iterator<Item = &'a Node> {
    members.iter().filter(move |(n, v)| n == name && *v != Node::Null).map(|(_, v)| v)
}

fn has(members: &[(String, Node)], name: &str) -> bool {
    members.iter().any(|(n, _)| n == name)
}

/// A member that is a text whenever it is there; the second None says that there is none.
#[expect(clippy::option_option, reason = "refused and absent are two things")]
fn text<'a>(members: &'a [(String, Node)], name: &str) -> Option<Option<&'a str>> {
    if !all(members, name).all(|value| matches!(value, Node::Text(_))) {
        return None;
    }
    Some(match last(members, name) {
        Some(Node::Text(text)) => Some(text),
        _ => None,
    })
}

/// What the record says; None when it must be refused.
pub fn read(record: &Node, default_table: Option<&str>) -> Option<Change> {
    let Node::Object(members) = record else { return None };
    let event = text(members, "eventName")?;
    text(members, "eventID")?;
    let table = text(members, "tableName")?;
    let arn = text(members, "eventSourceARN")?;
    let mut inner = Vec::new();
    for dynamodb in all(members, "dynamodb") {
        let Node::Object(found) = dynamodb else { return None };
        inner.extend(found.iter().cloned());
    }
    if !all(&inner, "ApproximateCreationDateTime").all(|time| matches!(time, Node::Number(_))) {
        return None;
    }
    let precision = text(&inner, "ApproximateCreationDateTimePrecision")?;
    let sequence = text(&inner, "SequenceNumber")?;
    if all(&inner, "Keys").count() != 1 {
        return None;
    }
    let (keys, key_types) = key(last(&inner, "Keys")?)?;
    let mut images = [Node::Null, Node::Null];
    for (name, place) in ["NewImage", "OldImage"].into_iter().zip(&mut images) {
        for found in all(&inner, name) {
            let Node::Object(found) = found else { return None };
            *place = plain_members(found, 0)?;
        }
    }
    let [new, old] = images;
    let event = event.filter(|name| ["INSERT", "MODIFY", "REMOVE"].contains(name))?.to_owned();
    let streams = has(members, "eventSourceARN") || has(members, "eventVersion") || has(&inner, "StreamViewType");
    let kinesis = table.is_some() || has(members, "recordFormat");
    let power = match precision {
        Some("MICROSECOND") => 0,
        Some("MILLISECOND") => 3,
        Some(_) => return None,
        None if sequence.is_some() => 6,
        None if streams && !kinesis => return None,
        None => 3,
    };
    let Some(Node::Number(time)) = last(&inner, "ApproximateCreationDateTime") else { return None };
    let event_us = instant(time, power)?;
    let version = match sequence {
        None => event_us.to_string(),
        Some(digits) if (1..=40).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit()) => {
            let digits = digits.trim_start_matches('0');
            if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
        }
        Some(_) => return None,
    };
    let table = table.map(str::to_owned).or_else(|| {
        let (_, rest) = arn?.split_once(":table/")?;
        Some(rest.split('/').next().unwrap_or(rest).to_owned())
    });
    let table = table.filter(|name| !name.is_empty()).or(default_table.map(str::to_owned));
    Some(Change { event, table, version, event_us, keys, new, old, key_types })
}

fn key(keys: &Node) -> Option<(Node, Vec<(String, char)>)> {
    let Node::Object(members) = keys else { return None };
    let names: Vec<_> = members.iter().map(|(name, _)| name).collect();
    if names.is_empty() || names.len() > 2 || (names.len() == 2 && names[0] == names[1]) {
        return None;
    }
    let mut types = Vec::new();
    for (name, value) in members {
        let Node::Object(tagged) = value else { return None };
        let [(tag, _)] = &tagged[..] else { return None };
        let ("S" | "N" | "B") = &tag[..] else { return None };
        types.push((name.clone(), tag.chars().next()?));
    }
    Some((plain_members(members, 0)?, types))
}

fn plain_members(members: &[(String, Node)], depth: u32) -> Option<Node> {
    members
        .iter()
        .map(|(name, value)| Some((name.clone(), plain(value, depth)?)))
        .collect::<Option<_>>()
        .map(Node::Object)
}

fn plain(value: &Node, depth: u32) -> Option<Node> {
    let Node::Object(tagged) = value else { return None };
    let [(tag, content)] = &tagged[..] else { return None };
    let deeper = || Some(depth + 1).filter(|&depth| depth <= 32);
    Some(match (&tag[..], content) {
        ("S", Node::Text(_)) | ("BOOL", Node::Bool(_)) => content.clone(),
        ("B", Node::Text(text)) => {
            base64(text)?;
            content.clone()
        }
        ("N", Node::Text(text)) => {
            Decimal::within_limits(text)?;
            Node::number(text)
        }
        ("NULL", Node::Bool(true)) => Node::Null,
        ("M", Node::Object(members)) => plain_members(members, deeper()?)?,
        ("L", Node::List(list)) => {
            let depth = deeper()?;
            Node::List(list.iter().map(|element| plain(element, depth)).collect::<Option<_>>()?)
        }
        ("SS" | "NS" | "BS", Node::List(list)) => {
            let texts: Option<Vec<&String>> =
                list.iter().map(|element| if let Node::Text(text) = element { Some(text) } else { None }).collect();
            let mut texts = texts?;
            match &tag[..] {
                "SS" => texts.sort_by_key(|text| text.as_bytes()),
                "BS" => {
                    let _: Vec<_> = texts.iter().map(|text| base64(text)).collect::<Option<_>>()?;
                    texts.sort_by_key(|text| base64(text));
                }
                _ => {
                    let _: Vec<_> = texts.iter().map(|text| Decimal::within_limits(text)).collect::<Option<_>>()?;
                    texts.sort_by_key(|text| Decimal::within_limits(text).map(|number| number.rank()));
                    return Some(Node::List(texts.into_iter().map(|text| Node::number(text)).collect()));
                }
            }
            Node::List(texts.into_iter().cloned().map(Node::Text).collect())
        }
        _ => return None,
    })
}

/// Padded standard base64, letter by letter.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = text.trim_end_matches('=');
    let padding = text.len() - letters.len();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for letter in letters.bytes() {
        bits = bits << 6 | ALPHABET.iter().position(|&a| a == letter)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // What the last letter holds beyond the last byte must be zero.
    Some(bytes).filter(|_| bits == 0 && count == [0, 2, 4][padding])
}

/// A decimal: sign, digits without zeros at either end, power of ten of the last digit.
#[derive(Debug)]
pub struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// A text in JSON's number grammar.
    fn parse(text: &str) -> Option<Self> {
        let negative = text.starts_with('-');
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            None => (unsigned, 0),
            Some((mantissa, exponent)) => {
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                    return None;
                }
                let value = digits
                    .trim_start_matches('0')
                    .get(..9)
                    .map_or_else(|| digits.trim_start_matches('0').parse().unwrap_or(0), |_| 100_000_000_i64);
                (mantissa, if exponent.starts_with('-') { -value } else { value })
            }
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            None => (mantissa, ""),
            Some((_, "")) => return None,
            Some(halves) => halves,
        };
        let all_digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
        if whole.is_empty()
            || !all_digits(whole)
            || !all_digits(fraction)
            || (whole.len() > 1 && whole.starts_with('0'))
        {
            return None;
        }
        let digits = format!("{whole}{fraction}");
        let kept = digits.trim_end_matches('0');
        let exponent =
            exponent - fraction.len() as i64 + if kept.is_empty() { 0 } else { (digits.len() - kept.len()) as i64 };
        Some(Self { negative, digits: kept.trim_start_matches('0').to_owned(), exponent })
    }

    /// A number that DynamoDB could hold.
    pub fn within_limits(text: &str) -> Option<Self> {
        let number = Self::parse(text).filter(|_| text.len() <= 512)?;
        let first = number.exponent + (number.digits.len() as i64 - 1).max(0);
        Some(number).filter(|number| number.digits.len() <= 38 && (-130..=125).contains(&first))
    }

    /// Sorts as the number does.
    fn rank(&self) -> (i8, i64, Vec<u8>) {
        let magnitude = self.exponent + self.digits.len() as i64;
        match (self.digits.is_empty(), self.negative) {
            (true, _) => (0, 0, Vec::new()),
            (_, false) => (1, magnitude, self.digits.bytes().collect()),
            // The greater the nearer to the end; a shorter run of digits is the smaller one.
            (_, true) => (-1, -magnitude, self.digits.bytes().map(|c| u8::MAX - c).chain([u8::MAX]).collect()),
        }
    }
}

/// The time × 10^power in microseconds, rounded down, within 1970 to 9999.
fn instant(text: &str, power: i64) -> Option<i64> {
    let number = Decimal::within_limits(text)?;
    if number.digits.is_empty() {
        return Some(0);
    }
    if number.negative {
        return None;
    }
    let exponent = number.exponent + power;
    let whole = if exponent >= 0 {
        if number.digits.len() as i64 + exponent > 20 {
            return None;
        }
        format!("{}{}", number.digits, "0".repeat(usize::try_from(exponent).ok()?))
    } else {
        let cut = usize::try_from(number.digits.len() as i64 + exponent).unwrap_or(0);
        number.digits[..cut].to_owned()
    };
    let value: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    i64::try_from(value).ok().filter(|_| value <= US_MAX)
}
