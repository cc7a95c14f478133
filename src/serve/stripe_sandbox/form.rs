//! Stripe's form-encoded parameters, brackets and all, and the errors that
//! Stripe gives for bad ones.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::model::Metadata;

/// Stripe allows 50 keys of 40 characters, with values of 500.
const METADATA_KEYS_MAX: usize = 50;
const METADATA_KEY_CHARS_MAX: usize = 40;
const METADATA_VALUE_CHARS_MAX: usize = 500;
/// Deeper than any parameter of the calls we serve.
const DEPTH_MAX: usize = 8;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Form(Map<String, Value>);

impl Form {
    pub fn parse(encoded: &[u8]) -> Result<Self, ApiError> {
        let config = serde_qs::Config::new()
            .max_depth(DEPTH_MAX)
            .use_form_encoding(true);
        match config.deserialize_bytes::<Map<String, Value>>(encoded) {
            Ok(map) => Ok(Self(map)),
            Err(error) => Err(ApiError::invalid(format!(
                "Invalid request: unable to parse parameters ({error})."
            ))),
        }
    }

    /// Stripe refuses what it does not know, so that a typo is not silence.
    pub fn allow(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(
                ApiError::invalid(format!("Received unknown parameter: {key}"))
                    .code("parameter_unknown")
                    .param(key),
            ),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub fn nested(&self, name: &str) -> Result<Option<Self>, ApiError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map.clone()))),
            Some(_) => Err(ApiError::invalid("Invalid object")
                .code("parameter_invalid_empty")
                .param(name)),
        }
    }

    /// An empty string unsets, as Stripe has it: the same as absent here.
    pub fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::invalid("Invalid string").param(name)),
        }
    }

    pub fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            ApiError::invalid(format!("Invalid integer: {text}"))
                .code("parameter_invalid_integer")
                .param(name)
        })
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.text(name)? {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(text) => Err(ApiError::invalid(format!("Invalid boolean: {text}")).param(name)),
        }
    }

    pub fn list(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let invalid = || ApiError::invalid("Invalid array").param(name);
        let items: Vec<&Value> = match self.0.get(name) {
            None => return Ok(None),
            Some(Value::Array(items)) => items.iter().collect(),
            Some(Value::Object(items)) => items.values().collect(),
            Some(Value::String(_)) => return Err(invalid()),
            Some(_) => return Ok(None),
        };
        items
            .into_iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(invalid))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    pub fn choice(&self, name: &str, of: &[&str]) -> Result<Option<String>, ApiError> {
        match self.text(name)? {
            None => Ok(None),
            Some(text) if of.contains(&text) => Ok(Some(text.to_owned())),
            Some(text) => Err(ApiError::invalid(format!(
                "Invalid {name}: must be one of {}",
                of.join(", ")
            ))
            .param(name)
            .with("invalid_value", text.into())),
        }
    }

    /// The changes to metadata: a key with an empty value is taken away.
    pub fn metadata(&self) -> Result<Option<Metadata>, ApiError> {
        let Some(nested) = self.nested("metadata").or_else(|error| {
            // `metadata=` empties the whole of it.
            match self.text("metadata") {
                Ok(None) => Ok(None),
                Ok(Some(_)) | Err(_) => Err(error),
            }
        })?
        else {
            return Ok(None);
        };
        if nested.0.len() > METADATA_KEYS_MAX {
            return Err(ApiError::invalid(format!(
                "You can only specify {METADATA_KEYS_MAX} metadata keys."
            ))
            .param("metadata"));
        }
        nested
            .0
            .iter()
            .map(|(key, value)| match value {
                Value::String(text)
                    if key.chars().count() <= METADATA_KEY_CHARS_MAX
                        && text.chars().count() <= METADATA_VALUE_CHARS_MAX =>
                {
                    Ok((key.clone(), text.clone()))
                }
                Value::String(_) => Err(ApiError::invalid(format!(
                    "Metadata keys can be up to {METADATA_KEY_CHARS_MAX} characters long and \
                     values up to {METADATA_VALUE_CHARS_MAX}."
                ))
                .param(&format!("metadata[{key}]"))),
                _ => Err(ApiError::invalid("Metadata values must be strings.")
                    .param(&format!("metadata[{key}]"))),
            })
            .collect::<Result<Metadata, _>>()
            .map(Some)
    }

    /// One text for equal parameters, whatever their order or encoding, for the
    /// comparison that an idempotency key asks for.
    pub fn canonical(&self) -> String {
        // serde_json's map is sorted unless a dependency turns `preserve_order`
        // on, so sorting is done here and not trusted to it.
        fn write(value: &Value, out: &mut String) {
            match value {
                Value::Object(map) => {
                    let mut keys: Vec<_> = map.keys().collect();
                    keys.sort();
                    out.push('{');
                    for key in keys {
                        out.push_str(&Value::from(key.as_str()).to_string());
                        out.push(':');
                        write(&map[key], out);
                        out.push(',');
                    }
                    out.push('}');
                }
                Value::Array(items) => {
                    out.push('[');
                    for item in items {
                        write(item, out);
                        out.push(',');
                    }
                    out.push(']');
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                    out.push_str(&value.to_string());
                }
            }
        }
        let mut out = String::new();
        write(&Value::Object(self.0.clone()), &mut out);
        out
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> Form {
        Form::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn brackets_nest() {
        let form = form(
            "amount=100&metadata[order]=o+1&metadata%5Bx%5D=&automatic_payment_methods[enabled]=true\
             &payment_method_types[]=card&payment_method_types[]=link&expand[0]=latest_charge",
        );
        assert_eq!(form.integer("amount").unwrap(), Some(100));
        let metadata = form.metadata().unwrap().unwrap();
        assert_eq!(metadata["order"], "o 1");
        assert_eq!(metadata["x"], "");
        let automatic = form.nested("automatic_payment_methods").unwrap().unwrap();
        assert_eq!(automatic.boolean("enabled").unwrap(), Some(true));
        assert_eq!(
            form.list("payment_method_types").unwrap().unwrap(),
            ["card", "link"]
        );
        assert_eq!(form.list("expand").unwrap().unwrap(), ["latest_charge"]);
    }

    #[test]
    fn bad_values_are_named() {
        let form = form("amount=ten&confirm=maybe&metadata=x&foo=1");
        for (error, code, param) in [
            (
                form.integer("amount").unwrap_err(),
                Some("parameter_invalid_integer"),
                "amount",
            ),
            (form.boolean("confirm").unwrap_err(), None, "confirm"),
            (
                form.allow(&["amount", "confirm", "metadata"]).unwrap_err(),
                Some("parameter_unknown"),
                "foo",
            ),
        ] {
            assert_eq!(error.field("code").and_then(Value::as_str), code);
            assert_eq!(error.field("param").and_then(Value::as_str), Some(param));
        }
        assert!(form.metadata().is_err());
    }

    #[test]
    fn the_same_parameters_read_the_same_in_any_order() {
        assert_eq!(
            form("a=1&m[x]=1&m[y]=2").canonical(),
            form("m%5By%5D=2&m[x]=1&a=1").canonical()
        );
        assert_ne!(form("a=1").canonical(), form("a=2").canonical());
        // A value that looks like structure is not structure.
        assert_ne!(
            form("m[x]=1").canonical(),
            form("m=%7B%22x%22%3A%221%22%2C%7D").canonical()
        );
    }

    #[test]
    fn hostile_bodies_are_errors_not_panics() {
        for bad in [
            "a[b=1",
            "[]=1",
            "a[0]=1&a[b]=2",
            "%ff%fe=1",
            "a[[[[[[[[[[[[[]]=1",
            "\0",
        ] {
            let _ = Form::parse(bad.as_bytes());
        }
        let deep = format!("a{}=1", "[b]".repeat(10_000));
        let _ = Form::parse(deep.as_bytes());
    }
}
