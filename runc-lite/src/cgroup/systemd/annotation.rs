//! Unit properties from annotations `org.systemd.property.<name>`, whose values are written in the text
//! form of GVariant, as runc takes them: `true`, `'text'`, `uint64 5`, `['a', 'b']`, `@as []`.

use std::collections::BTreeMap;

use zbus::{Array, ObjectPath, Signature, Structure, Variant};

use super::SystemdError;
use super::properties::Property;

const PREFIX: &str = "org.systemd.property.";
/// Depth of arrays and structures that a property may have.
const MAX_DEPTH: usize = 8;

/// The properties among `annotations`, checked.
pub(super) fn collect(
    annotations: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, SystemdError> {
    let mut properties = BTreeMap::new();
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        property(name, value)?;
        properties.insert(name.to_owned(), value.clone());
    }
    Ok(properties)
}

/// `defaults` with those of the annotations in the place of those with their names.
pub(super) fn override_with(
    mut defaults: Vec<Property>,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<Property>, SystemdError> {
    for (name, text) in annotations {
        let property = property(name, text)?;
        defaults.retain(|(known, _)| *known != property.0);
        defaults.push(property);
    }
    Ok(defaults)
}

/// What makes a container a container is not for an annotation to change.
const RESERVED: [&str; 4] = ["PIDs", "Slice", "Delegate", "DelegateControllers"];

fn property(name: &str, text: &str) -> Result<Property, SystemdError> {
    let bad = |reason: &str| SystemdError::BadProperty {
        annotation: format!("{PREFIX}{name}"),
        value: text.to_owned(),
        reason: reason.to_owned(),
    };
    if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(bad(
            "belongs to a name that is not of three or more letters",
        ));
    }
    if RESERVED.contains(&name) {
        return Err(bad("belongs to a property that the runtime sets itself"));
    }
    let mut parser = Parser {
        rest: text.trim(),
        depth: 0,
    };
    let value = parser.value(None).map_err(|reason| bad(&reason))?;
    if !parser.rest.trim().is_empty() {
        return Err(bad("goes on after its value"));
    }
    // systemd's files say `TimeoutStopSec=5`, its bus `TimeoutStopUSec` in microseconds.
    let seconds = name
        .strip_suffix("Sec")
        .filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()));
    let Some(stem) = seconds else {
        return Ok((name.to_owned(), value));
    };
    let microseconds = match value {
        Variant::U8(n) => u64::from(n).checked_mul(1_000_000),
        Variant::U16(n) => u64::from(n).checked_mul(1_000_000),
        Variant::U32(n) => u64::from(n).checked_mul(1_000_000),
        Variant::U64(n) => n.checked_mul(1_000_000),
        Variant::I16(n) => u64::try_from(n).ok().and_then(|n| n.checked_mul(1_000_000)),
        Variant::I32(n) => u64::try_from(n).ok().and_then(|n| n.checked_mul(1_000_000)),
        Variant::I64(n) => u64::try_from(n).ok().and_then(|n| n.checked_mul(1_000_000)),
        Variant::F64(n) => microseconds(n),
        _ => None,
    };
    let microseconds = microseconds.ok_or_else(|| bad("is not a number of seconds"))?;
    Ok((format!("{stem}USec"), Variant::from(microseconds)))
}

fn microseconds(seconds: f64) -> Option<u64> {
    let duration = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    u64::try_from(duration.as_micros()).ok()
}

/// A parser of the text form.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn skip(&mut self, token: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// The next word: up to a blank, a comma or a bracket.
    fn word(&mut self) -> &str {
        self.rest = self.rest.trim_start();
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || ",[]()'\"".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn value(&mut self, wanted: Option<&Signature>) -> Result<Variant<'static>, String> {
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix('@') {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let (text, rest) = rest.split_at(end);
            let signature =
                Signature::try_from(text).map_err(|_| format!("has {text:?}, which is no type"))?;
            self.rest = rest;
            return self.value(Some(&signature));
        }
        match self.rest.chars().next() {
            None => Err("ends where a value should be".to_owned()),
            Some('[') => self.nested(|parser| parser.array(wanted)),
            Some('(') => self.nested(|parser| parser.structure(wanted)),
            Some(quote @ ('\'' | '"')) => {
                let text = self.quoted(quote)?;
                text_value(text, wanted)
            }
            Some('<' | '{') => {
                Err("has a variant or dictionary, which no property takes".to_owned())
            }
            Some(_) => self.plain(wanted),
        }
    }

    fn nested(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<Variant<'static>, String>,
    ) -> Result<Variant<'static>, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("is nested deeper than {MAX_DEPTH}"));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn array(&mut self, wanted: Option<&Signature>) -> Result<Variant<'static>, String> {
        self.skip('[');
        let mut element = match wanted {
            None => None,
            Some(Signature::Array(child)) => Some(child.signature().clone()),
            Some(other) => return Err(format!("is an array where {other} is wanted")),
        };
        let mut values = Vec::new();
        if !self.skip(']') {
            loop {
                let value = self.value(element.as_ref())?;
                element.get_or_insert_with(|| value.value_signature().clone());
                values.push(value);
                if self.skip(']') {
                    break;
                }
                if !self.skip(',') {
                    return Err("has an array without an end".to_owned());
                }
            }
        }
        let element = element.ok_or("has an empty array, which needs a type such as @as")?;
        let mut array = Array::new(&element);
        for value in values {
            array
                .append(value)
                .map_err(|_| "has an array of several types".to_owned())?;
        }
        Ok(Variant::Array(array))
    }

    fn structure(&mut self, wanted: Option<&Signature>) -> Result<Variant<'static>, String> {
        self.skip('(');
        let fields: Vec<Signature> = match wanted {
            None => Vec::new(),
            Some(Signature::Structure(fields)) => fields.iter().cloned().collect(),
            Some(other) => return Err(format!("is a structure where {other} is wanted")),
        };
        let mut builder = Structure::builder();
        let mut count = 0;
        loop {
            if wanted.is_some() && count >= fields.len() {
                return Err("has a structure with too many fields".to_owned());
            }
            builder.push_value(self.value(fields.get(count))?);
            count += 1;
            if self.skip(')') {
                break;
            }
            if !self.skip(',') {
                return Err("has a structure without an end".to_owned());
            }
        }
        if wanted.is_some() && count != fields.len() {
            return Err("has a structure with too few fields".to_owned());
        }
        let structure = builder.build().map_err(|e| e.to_string())?;
        Ok(Variant::Structure(structure))
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, c)) = characters.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Ok(text);
                }
                '\\' => match characters.next().map(|(_, escaped)| escaped) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some(escaped @ ('\\' | '\'' | '"')) => text.push(escaped),
                    other => return Err(format!("has the unknown escape {other:?}")),
                },
                c => text.push(c),
            }
        }
        Err("has text without an end".to_owned())
    }

    /// A boolean, a number, or the name of a type before its value.
    fn plain(&mut self, wanted: Option<&Signature>) -> Result<Variant<'static>, String> {
        let word = self.word().to_owned();
        let named = match word.as_str() {
            "true" | "false" if wanted.is_none_or(|w| *w == Signature::Bool) => {
                return Ok(Variant::from(word == "true"));
            }
            "boolean" => Signature::Bool,
            "byte" => Signature::U8,
            "int16" => Signature::I16,
            "uint16" => Signature::U16,
            "int32" => Signature::I32,
            "uint32" => Signature::U32,
            "int64" => Signature::I64,
            "uint64" => Signature::U64,
            "double" => Signature::F64,
            "string" => Signature::Str,
            "objectpath" => Signature::ObjectPath,
            _ => return number(&word, wanted),
        };
        if wanted.is_some_and(|wanted| *wanted != named) {
            return Err(format!("has {word} where another type is wanted"));
        }
        self.value(Some(&named))
    }
}

fn text_value(text: String, wanted: Option<&Signature>) -> Result<Variant<'static>, String> {
    match wanted {
        None | Some(Signature::Str) => Ok(Variant::from(text)),
        Some(Signature::ObjectPath) => ObjectPath::try_from(text)
            .map(Variant::ObjectPath)
            .map_err(|e| format!("is no object path: {e}")),
        Some(other) => Err(format!("is text where {other} is wanted")),
    }
}

fn number(word: &str, wanted: Option<&Signature>) -> Result<Variant<'static>, String> {
    fn whole<T>(word: &str) -> Option<Variant<'static>>
    where
        T: TryFrom<i128> + Into<Variant<'static>>,
    {
        let (negative, digits) = match word.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, word.strip_prefix('+').unwrap_or(word)),
        };
        // As GVariant reads numbers: C's prefixes for sixteen and eight.
        let value = match digits
            .strip_prefix("0x")
            .or_else(|| digits.strip_prefix("0X"))
        {
            Some(hexadecimal) => i128::from_str_radix(hexadecimal, 16),
            None if digits.len() > 1 && digits.starts_with('0') => i128::from_str_radix(digits, 8),
            None if digits.starts_with(['+', '-']) => return None,
            None => digits.parse::<i128>(),
        };
        let value = value.ok()?;
        let value = T::try_from(if negative { -value } else { value }).ok()?;
        Some(value.into())
    }
    let default = if word.contains(['.', 'e', 'E']) && !word.contains(['x', 'X']) {
        Signature::F64
    } else {
        Signature::I32
    };
    let value = match wanted.unwrap_or(&default) {
        Signature::U8 => whole::<u8>(word),
        Signature::I16 => whole::<i16>(word),
        Signature::U16 => whole::<u16>(word),
        Signature::I32 => whole::<i32>(word),
        Signature::U32 => whole::<u32>(word),
        Signature::I64 => whole::<i64>(word),
        Signature::U64 => whole::<u64>(word),
        Signature::F64 => word
            .parse::<f64>()
            .ok()
            .filter(|n| n.is_finite())
            .map(Variant::from),
        _ => None,
    };
    value.ok_or_else(|| format!("has {word:?}, which is no value of its type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, String), String> {
        let (name, value) = property("Some", text).map_err(|e| e.to_string())?;
        assert_eq!(name, "Some");
        Ok((value.value_signature().to_string(), format!("{value:?}")))
    }

    #[test]
    fn values_have_types() {
        for (text, signature, contains) in [
            ("true", "b", "true"),
            ("5", "i", "5"),
            ("-0x10", "i", "-16"),
            ("1.5", "d", "1.5"),
            ("uint64 18446744073709551615", "t", "18446744073709551615"),
            ("byte 7", "y", "7"),
            ("'it\\'s'", "s", "it's"),
            ("\"two words\"", "s", "two words"),
            ("objectpath '/a/b'", "o", "/a/b"),
            ("['a', 'b']", "as", "b"),
            ("@as []", "as", ""),
            ("@at [1, 2]", "at", "2"),
            ("[uint32 1, 2]", "au", "2"),
            ("@a(ss) [('/dev/null', 'rw')]", "a(ss)", "/dev/null"),
            ("('a', uint64 3)", "(st)", "3"),
        ] {
            let (found, debug) = parsed(text).unwrap();
            assert_eq!(found, signature, "{text}");
            assert!(debug.contains(contains), "{text}: {debug}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused_with_its_text() {
        let deep = "[".repeat(100);
        for text in [
            "",
            "maybe",
            "5 6",
            "'open",
            "[",
            "[1",
            "[1,",
            "[]",
            "['a', 1]",
            "uint32 -1",
            "byte 256",
            "@z 1",
            "@as 5",
            "@i 'a'",
            "<1>",
            "{'a': 1}",
            "objectpath 'no'",
            "uint64 int32 5",
            "@(ss) ('a')",
            "@(s) ('a', 'b')",
            "--5",
            "'\\q'",
            "1e999",
            &deep,
        ] {
            let error = parsed(text).unwrap_err();
            assert!(
                error.contains("org.systemd.property.Some"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        for (name, text, as_name, value) in [
            ("TimeoutStopSec", "5", "TimeoutStopUSec", 5_000_000u64),
            ("TimeoutStopSec", "1.5", "TimeoutStopUSec", 1_500_000),
            ("TimeoutStopSec", "uint64 2", "TimeoutStopUSec", 2_000_000),
        ] {
            assert_eq!(
                property(name, text).unwrap(),
                (as_name.to_owned(), Variant::from(value))
            );
        }
        assert_eq!(
            property("TimeoutUSec", "uint64 2").unwrap().0,
            "TimeoutUSec"
        );
        for text in ["'5'", "-1", "uint64 18446744073709551615", "-1.5"] {
            assert!(property("TimeoutStopSec", text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_properties_and_some_are_ours() {
        for name in ["", "ab", "Some-Thing", "Sö", "PIDs", "Delegate", "Slice"] {
            assert!(property(name, "true").is_err(), "{name}");
        }
        let annotations = [
            ("org.systemd.property.CollectMode", "'inactive'"),
            ("org.systemd.properties.Other", "nonsense"),
            ("some.thing", "else"),
        ];
        let annotations = annotations
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let found = collect(&annotations).unwrap();
        assert_eq!(found.len(), 1);
        let defaults = vec![
            ("CollectMode".to_owned(), Variant::from("x")),
            ("Kept".to_owned(), Variant::from(true)),
        ];
        let all = override_with(defaults, &found).unwrap();
        assert_eq!(all[0].0, "Kept");
        assert_eq!(
            all[1],
            ("CollectMode".to_owned(), Variant::from("inactive"))
        );
    }
}
