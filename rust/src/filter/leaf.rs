//! The lists of values and operators at a pattern's leaves.
//!
//! In: the JSON of a list, and what can stand in its place. Out: tests. Invariant: a value or operator that can't match
//! anything there is refused, with what to write instead.

use std::sync::Arc;

use super::NodeId;
use super::context::Context;
use super::parse::{Compiler, Constraint, PatternError, Result};
use super::test::{Cidr, Range, Test, Tests, folded};
use super::wildcard::Wildcard;
use crate::number::Number;
use crate::scan::{self, byte};

impl Compiler {
    /// A list of values and tests of which one must hold.
    pub(super) fn leaf(&mut self, b: &[u8], at: usize, node: NodeId, context: Context) -> Result<Vec<Vec<Constraint>>> {
        let elements = self.elements(b, at)?;
        if elements.is_empty() {
            return Err(self.error("[] matches nothing: name a value, or leave it out"));
        }
        let (mut tests, mut may_be_absent) = (Tests::default(), false);
        for (index, at) in elements.into_iter().enumerate() {
            self.path.push(index.to_string());
            may_be_absent |= self.element(b, at, context, &mut tests)?;
            self.path.pop();
        }
        let mut alternatives = Vec::new();
        if may_be_absent {
            alternatives.push(vec![(node, None)]);
        }
        if !(tests.texts.is_empty() && tests.numbers.is_empty() && tests.others.is_empty()) {
            tests.texts.sort();
            tests.numbers.sort();
            self.tests.push(Arc::new(tests));
            alternatives.push(vec![(node, Some(self.tests.len() - 1))]);
        }
        Ok(alternatives)
    }

    /// One value or test. True: nothing may be here.
    fn element(&mut self, b: &[u8], at: usize, context: Context, tests: &mut Tests) -> Result<bool> {
        if byte(b, at) == b'{' {
            let members = self.members(b, at)?;
            let [(name, at)] = members.as_slice() else {
                return Err(self.error("one operator is wanted: {\"prefix\": \"…\"}"));
            };
            self.path.push(name.clone());
            let may_be_absent = self.operator(b, *at, name, context, tests)?;
            self.path.pop();
            return Ok(may_be_absent);
        }
        if !(context.is_leaf() || context == Context::UserIdentity && byte(b, at) == b'n') {
            return Err(self.no_leaf(context));
        }
        self.literal(b, at, context, tests)?;
        Ok(false)
    }

    fn no_leaf(&self, context: Context) -> PatternError {
        self.error(format!(
            "only {{\"exists\": true}} or {{\"exists\": false}} can stand here, else {}",
            context.example()
        ))
    }

    /// A value that must be met exactly.
    fn literal(&self, b: &[u8], at: usize, context: Context, tests: &mut Tests) -> Result<()> {
        let wanted = |what: &str| Err(self.error(format!("{what} is wanted here: nothing else can match")));
        match (byte(b, at), context) {
            (b'"', Context::Text | Context::Any) => tests.texts.push(self.text(b, at)?.into_bytes().into()),
            (b'"', Context::EventName) => match &*self.text(b, at)? {
                name @ ("INSERT" | "MODIFY" | "REMOVE") => tests.texts.push(name.as_bytes().into()),
                _ => return wanted("INSERT, MODIFY or REMOVE"),
            },
            (b't', Context::Flag | Context::Any) => tests.others.push(Test::True),
            (b'f', Context::Flag | Context::Any) => tests.others.push(Test::False),
            (b'n', Context::Any | Context::UserIdentity) => tests.others.push(Test::Null),
            (b'"', Context::Number) | (b'-' | b'0'..=b'9', Context::Number | Context::Any) => {
                tests.numbers.push(self.number(b, at)?);
            }
            (_, Context::Text) => return wanted("a text in quotes"),
            (_, Context::EventName) => return wanted("\"INSERT\", \"MODIFY\" or \"REMOVE\""),
            (_, Context::Number) => return wanted("a number"),
            (_, Context::Flag) => return wanted("true or false"),
            _ => return wanted("a text, a number, true, false, null or an operator"),
        }
        Ok(())
    }

    fn text(&self, b: &[u8], at: usize) -> Result<String> {
        if byte(b, at) != b'"' {
            return Err(self.error("a text in quotes is wanted here"));
        }
        scan::string(b, at + 1).map(|text| text.text(b)).map_err(|_| self.error("the pattern is no JSON"))
    }

    /// A number, bare or quoted (YAML knows no 38 digits).
    fn number(&self, b: &[u8], at: usize) -> Result<Number> {
        let found = match byte(b, at) {
            b'"' => Number::parse(self.text(b, at)?.as_bytes()).ok(),
            _ => scan::number(b, at).ok().and_then(|end| Number::parse(&b[at..end]).ok()),
        };
        found.ok_or_else(|| {
            self.error("a number that DynamoDB can hold is wanted here (38 digits, 1E-130 to 9.99E+125)")
        })
    }

    fn operator(&mut self, b: &[u8], at: usize, name: &str, context: Context, tests: &mut Tests) -> Result<bool> {
        if name == "exists" {
            return match byte(b, at) {
                b't' => {
                    tests.others.push(Test::Exists);
                    Ok(false)
                }
                b'f' => Ok(true),
                _ => Err(self.error("true or false is wanted here")),
            };
        }
        if !context.is_leaf() {
            return Err(self.no_leaf(context));
        }
        let test = match name {
            "anything-but" => Test::Not(self.anything_but(b, at, context)?),
            "numeric" if matches!(context, Context::Number | Context::Any) => Test::Range(self.range(b, at)?),
            "numeric" => return Err(self.error("only N, NS and the envelope's numbers can be compared as numbers")),
            _ if context == Context::Flag => return Err(self.error("true or false is wanted here, or exists")),
            "cidr" => Test::Cidr(
                Cidr::parse(&self.text(b, at)?)
                    .ok_or_else(|| self.error("a block of addresses is wanted here, such as 10.0.0.0/8"))?,
            ),
            _ => self.text_test(b, at, name)?,
        };
        tests.others.push(test);
        Ok(false)
    }

    fn text_test(&mut self, b: &[u8], at: usize, name: &str) -> Result<Test> {
        let ignores_case = byte(b, at) == b'{';
        let text = if ignores_case && matches!(name, "prefix" | "suffix") {
            match self.members(b, at)?.as_slice() {
                [(inner, at)] if inner == "equals-ignore-case" => self.text(b, *at)?,
                _ => return Err(self.error("only {\"equals-ignore-case\": \"…\"} or a text can stand here")),
            }
        } else if matches!(name, "prefix" | "suffix" | "equals-ignore-case" | "wildcard") {
            self.text(b, at)?
        } else {
            return Err(self.error(
                "this is no operator: valid are prefix, suffix, equals-ignore-case, wildcard, anything-but, numeric, \
                 exists, cidr",
            ));
        };
        let folded = || folded(&text).collect::<String>().into_boxed_str();
        let bytes = || text.as_bytes().into();
        Ok(match (name, ignores_case) {
            ("prefix", true) => Test::PrefixFolded(folded()),
            ("suffix", true) => Test::SuffixFolded(folded()),
            ("prefix", false) => Test::Prefix(bytes()),
            ("suffix", false) => Test::Suffix(bytes()),
            ("wildcard", _) => Test::Wildcard(Wildcard::parse(text.as_bytes()).map_err(|problem| self.error(problem))?),
            _ => Test::EqualsFolded(folded()),
        })
    }

    /// What must not be met: a value or a list of them, or an operator on a text or a list of them.
    fn anything_but(&mut self, b: &[u8], at: usize, context: Context) -> Result<Tests> {
        if context == Context::Flag {
            return Err(self.error("write [true] or [false] instead"));
        }
        let mut tests = Tests::default();
        let (operator, at) = if byte(b, at) == b'{' {
            let members = self.members(b, at)?;
            let [(name, at)] = members.as_slice() else {
                return Err(self.error("one operator is wanted: {\"prefix\": \"…\"}"));
            };
            if !matches!(&**name, "prefix" | "suffix" | "equals-ignore-case" | "wildcard") {
                return Err(self.error(format!(
                    "{name:?} can't stand here: valid are prefix, suffix, equals-ignore-case, wildcard"
                )));
            }
            (Some(name.clone()), *at)
        } else {
            (None, at)
        };
        let elements = if byte(b, at) == b'[' { self.elements(b, at)? } else { vec![at] };
        if elements.is_empty() {
            return Err(self.error("[] leaves nothing out: name a value"));
        }
        for at in elements {
            match &operator {
                Some(name) => {
                    let test = self.text_test(b, at, name)?;
                    tests.others.push(test);
                }
                None if matches!(byte(b, at), b'"' | b'-' | b'0'..=b'9') => self.literal(b, at, context, &mut tests)?,
                None => return Err(self.error("texts or numbers are wanted here")),
            }
        }
        tests.texts.sort();
        tests.numbers.sort();
        Ok(tests)
    }

    fn range(&self, b: &[u8], at: usize) -> Result<Range> {
        let problem = "a comparison is wanted here, such as [\"=\", 5], [\"<\", 10] or [\">\", 0, \"<=\", 5]";
        if byte(b, at) != b'[' {
            return Err(self.error(problem));
        }
        let elements = self.elements(b, at)?;
        let mut range = Range::default();
        for pair in elements.chunks(2) {
            let [sign, at] = *pair else { return Err(self.error(problem)) };
            let bound = self.number(b, at)?;
            let place = match &*self.text(b, sign)? {
                "=" if elements.len() == 2 => {
                    return Ok(Range { lower: Some((bound, true)), upper: Some((bound, true)) });
                }
                ">" => (&mut range.lower, false),
                ">=" => (&mut range.lower, true),
                "<" => (&mut range.upper, false),
                "<=" => (&mut range.upper, true),
                _ => return Err(self.error(problem)),
            };
            if place.0.replace((bound, place.1)).is_some() {
                return Err(self.error("one bound on each side is wanted here"));
            }
        }
        match (range.lower, range.upper) {
            (None, None) => Err(self.error(problem)),
            (Some((lower, _)), Some((upper, _))) if lower >= upper => {
                Err(self.error("the lower bound must be less than the upper one"))
            }
            _ => Ok(range),
        }
    }
}
