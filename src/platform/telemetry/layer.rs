//! Events as lines.

use serde_json::Value;
use tracing::{
    Event, Level, Metadata, Subscriber,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    filter::Targets,
    layer::{Context, Filter, Layer},
    registry::LookupSpan,
};

use super::{
    flood,
    line::{Fields, Renderer},
    writer::Writer,
};

/// Events as `--log` says; spans of ours always, since they say whose line it is.
pub(super) struct Wanted(pub(super) Targets);

impl Wanted {
    fn wants(&self, meta: &Metadata<'_>) -> bool {
        let ours = meta.is_span() && meta.target().starts_with("ticketping");
        (ours && *meta.level() <= Level::INFO)
            || (meta.is_event() && self.0.would_enable(meta.target(), meta.level()))
    }
}

impl<S> Filter<S> for Wanted {
    fn enabled(&self, meta: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.wants(meta)
    }

    fn callsite_enabled(&self, meta: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        match self.wants(meta) {
            true => tracing::subscriber::Interest::always(),
            false => tracing::subscriber::Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let events = self.0.iter().map(|(_, level)| level).max();
        Some(events.map_or(LevelFilter::INFO, |level| level.max(LevelFilter::INFO)))
    }
}

/// Writes a line for each event.
pub(super) struct LogLayer {
    renderer: Renderer,
    writer: Writer,
}

impl LogLayer {
    pub(super) fn new(renderer: Renderer, writer: Writer) -> Self {
        Self { renderer, writer }
    }
}

/// Fields of a span that stand on every line within; the others are for traces.
fn stands_on_lines(name: &str) -> bool {
    const FOR_TRACES: [&str; 5] = ["otel.", "http.", "url.", "server.", "messaging."];
    !FOR_TRACES.iter().any(|prefix| name.starts_with(prefix))
}

fn kept(mut fields: Fields) -> Fields {
    fields.0.retain(|(name, _)| stands_on_lines(name));
    fields
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(kept(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(known) = span.extensions_mut().get_mut::<Fields>()
        {
            known.0.extend(kept(fields).0);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        if !flood::passes(meta, &fields) {
            return;
        }
        let mut around: Vec<(&'static str, Value)> = Vec::new();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(known) = span.extensions().get::<Fields>() {
                let new =
                    |(name, _): &&(&'static str, Value)| !around.iter().any(|(n, _)| n == name);
                let inner: Vec<_> = known.0.iter().filter(new).cloned().collect();
                around.extend(inner);
            }
        }
        let line = self
            .renderer
            .line(*meta.level(), meta.target(), &fields, &around);
        self.writer.send(line);
    }
}
