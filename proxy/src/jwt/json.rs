//! JSON objects of which no name is written twice: where readers take different ones of two, a token says two things.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Levels of nesting.
const MAX_DEPTH: usize = 16;

/// Reads an object, to its end.
///
/// # Errors
/// Not JSON, not an object, too deep, a name twice; without the text itself.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, &'static str> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut twice = false;
    let read = Unique { depth: 0, twice: &mut twice }.deserialize(&mut reader);
    match (read, reader.end()) {
        (Ok(Value::Object(object)), Ok(())) => Ok(object),
        (Ok(_), Ok(())) => Err("not a JSON object"),
        _ if twice => Err("a name is written twice"),
        _ => Err("not JSON, or too deeply nested"),
    }
}

/// A value at some depth.
struct Unique<'a> {
    depth: usize,
    twice: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom("too deep"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let Self { depth, twice } = self;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Unique { depth: depth + 1, twice })? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Self { depth, twice } = self;
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Unique { depth: depth + 1, twice })?;
            if object.insert(name, value).is_some() {
                *twice = true;
                return Err(A::Error::custom("twice"));
            }
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_nothing_else() {
        let read = object(br#"{"a":{"b":[1,-2,0.5,true,null,"x\n"]},"c":{}}"#).unwrap();
        let same: Value = serde_json::from_str(r#"{"a":{"b":[1,-2,0.5,true,null,"x\n"]},"c":{}}"#).unwrap();
        assert_eq!(Value::Object(read), same);
        for (bad, why) in [
            ("", "not JSON"),
            ("[]", "not a JSON object"),
            ("null", "not a JSON object"),
            ("{} {}", "not JSON"),
            (r#"{"a":1,"a":1}"#, "twice"),
            (r#"{"a":1,"\u0061":2}"#, "twice"),
            (r#"{"x":[{"a":1,"b":2,"a":3}]}"#, "twice"),
            (r#"{"a":01}"#, "not JSON"),
            ("{\"a\":\"\u{0}\"}", "not JSON"),
        ] {
            assert!(object(bad.as_bytes()).unwrap_err().contains(why), "{bad}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_err(), "not UTF-8");
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(object(nested(MAX_DEPTH + 1).as_bytes()).is_err());
        assert!(object(nested(100_000).as_bytes()).is_err());
    }
}
