//! The OpenAPI document: the gateway's head, the roles' paths.

use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ticketping",
        description = "Sells tickets under a flood: a waiting room, seat holds, payments.\n\nErrors are RFC 9457 problems with a stable `code` and the `requestId`. 429 and 503 carry `Retry-After`.",
    ),
    paths(
        super::gateway::overview::get,
        super::gateway::alarms::list,
        super::gateway::alarms::resolve,
    ),
    modifiers(&Security),
)]
pub(super) struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .build();
        components.add_security_scheme("accessToken", SecurityScheme::Http(bearer));
        let place = ApiKey::Header(ApiKeyValue::new("Queue-Token"));
        components.add_security_scheme("queueToken", SecurityScheme::ApiKey(place));
    }
}

/// The public paths of every role; what is internal is left out.
pub(super) fn document(roles: Vec<utoipa::openapi::OpenApi>) -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    for role in roles {
        document.merge(role);
    }
    document
        .paths
        .paths
        .retain(|path, _| !path.starts_with("/internal"));
    document
}
