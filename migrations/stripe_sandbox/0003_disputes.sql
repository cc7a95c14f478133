-- Where a dispute is found by its own id; it stands in the intent's document.
create table disputes (
    id        text primary key,
    seq       bigint generated always as identity unique,
    intent_id text not null references intents
);
create index disputes_intent on disputes (intent_id);
