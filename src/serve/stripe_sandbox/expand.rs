//! `expand[]`: an id in an answer replaced by the object it names.

use serde_json::Value;
use sqlx::PgPool;

use super::error::ApiError;
use super::form::Form;
use super::model::Intent;
use super::{objects, reads};

const KNOWN: [&str; 4] = [
    "latest_charge",
    "payment_method",
    "payment_intent",
    "charge",
];

#[derive(Debug, Default)]
pub struct Expansions(Vec<&'static str>);

impl Expansions {
    pub fn read(form: &Form) -> Result<Self, ApiError> {
        let wanted = form.list("expand")?.unwrap_or_default();
        wanted
            .iter()
            .map(|path| {
                let name = path.strip_prefix("data.").unwrap_or(path);
                KNOWN
                    .into_iter()
                    .find(|known| *known == name)
                    .ok_or_else(|| {
                        ApiError::invalid(format!("This property cannot be expanded ({path})."))
                            .param("expand")
                    })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub async fn apply(&self, pool: &PgPool, value: &mut Value) -> Result<(), ApiError> {
        if self.is_empty() {
            return Ok(());
        }
        if let Some(Value::Array(items)) = value.get_mut("data") {
            for item in items {
                self.one(pool, item).await?;
            }
            return Ok(());
        }
        self.one(pool, value).await
    }

    async fn one(&self, pool: &PgPool, value: &mut Value) -> Result<(), ApiError> {
        let own = match value["object"].as_str() {
            Some("payment_intent") => &value["id"],
            _ => &value["payment_intent"],
        };
        let Some(id) = own.as_str() else {
            return Ok(());
        };
        let Some(intent) = reads::intent(pool, id).await.map_err(ApiError::internal)? else {
            return Ok(());
        };
        for name in &self.0 {
            if let Some(id) = value[*name].as_str()
                && let Some(object) = object(&intent, name, id)
            {
                value[*name] = object;
            }
        }
        Ok(())
    }
}

fn object(intent: &Intent, name: &str, id: &str) -> Option<Value> {
    match name {
        "latest_charge" | "charge" => intent
            .charges
            .iter()
            .find(|charge| charge.id == id)
            .map(|charge| objects::charge(intent, charge)),
        "payment_method" => intent
            .charges
            .iter()
            .map(|charge| &charge.method)
            .chain(&intent.method)
            .find(|method| method.id == id)
            .map(objects::payment_method),
        "payment_intent" => Some(objects::payment_intent(intent)),
        _ => None,
    }
}
