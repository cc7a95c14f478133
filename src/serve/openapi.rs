//! The OpenAPI document: the gateway's head, the roles' paths.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::platform::problem::PROBLEM_JSON;

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
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.patch,
        ];
        for operation in operations.into_iter().flatten() {
            add_what_any_may_answer(operation);
        }
    }
    document
}

/// What the listener says of requests before any operation sees them.
const OF_ANY: [(&str, &str); 4] = [
    (
        "400",
        "MALFORMED_REQUEST: bad framing or a bad header; the connection closes",
    ),
    ("408", "REQUEST_TIMEOUT: the request did not arrive in time"),
    ("414", "URI_TOO_LONG"),
    (
        "431",
        "HEADERS_TOO_LARGE: too many headers, or too large ones",
    ),
];
/// What is said of bodies.
const OF_BODIES: [(&str, &str); 3] = [
    ("400", "MALFORMED_REQUEST, MALFORMED_JSON"),
    ("413", "BODY_TOO_LARGE"),
    ("415", "UNSUPPORTED_MEDIA_TYPE"),
];

/// Adds the answers that are the same for every operation, where it does not say more itself.
fn add_what_any_may_answer(operation: &mut Operation) {
    let bodies = operation.request_body.is_some().then_some(OF_BODIES);
    for (status, description) in bodies.iter().flatten().chain(&OF_ANY) {
        let known = &mut operation.responses.responses;
        known.entry((*status).to_owned()).or_insert_with(|| {
            let problem = Ref::from_schema_name("ProblemBody");
            let content = ContentBuilder::new().schema(Some(problem)).build();
            let response = ResponseBuilder::new().description(*description);
            response.content(PROBLEM_JSON, content).build().into()
        });
    }
    for (status, response) in &mut operation.responses.responses {
        // The attributes of operations name the body only.
        if let (RefOr::T(response), '4' | '5') = (response, status.as_bytes()[0] as char)
            && let Some(content) = response.content.swap_remove("application/json")
        {
            response.content.insert(PROBLEM_JSON.to_owned(), content);
        }
    }
}
