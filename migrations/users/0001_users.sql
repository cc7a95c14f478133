-- Members and their sessions. Runs inside the schema of the users role.

create table users (
    id            uuid primary key,
    -- Already normalised (trimmed, lower case), so that plain equality decides.
    email         text not null constraint users_email_lower check (email = lower(email)),
    name          text not null,
    -- A PHC string. '!' can match no password: accounts nobody logs in to.
    password_hash text not null,
    role          text not null default 'USER' constraint users_role_known check (role in ('USER', 'ADMIN')),
    created_at    timestamptz not null default now(),
    -- Its name is API: it is what EMAIL_TAKEN is read from.
    constraint users_email_key unique (email)
);

-- One log-in and every refresh token that descends from it. Revoking the family
-- is one row, whichever of its tokens is shown next.
create table refresh_families (
    id             uuid primary key,
    user_id        uuid not null references users (id) on delete cascade,
    created_at     timestamptz not null default now(),
    -- Refreshing never moves it: a session ends, however busy it was.
    expires_at     timestamptz not null,
    revoked_at     timestamptz,
    revoked_reason text constraint refresh_families_reason_known check (revoked_reason in ('REUSED', 'LOGOUT')),
    constraint refresh_families_revoked_says_why check ((revoked_at is null) = (revoked_reason is null))
);
create index refresh_families_user_id on refresh_families (user_id);
create index refresh_families_expires_at on refresh_families (expires_at);

-- Only SHA-256 of a token is kept: 256 random bits need no slow hash, and a copy
-- of this table logs nobody in.
create table refresh_tokens (
    hash       bytea primary key constraint refresh_tokens_hash_sha256 check (octet_length(hash) = 32),
    family_id  uuid not null references refresh_families (id) on delete cascade,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    -- Set when it was traded for the next one; shown again after that, it is a reuse.
    used_at    timestamptz
);
create index refresh_tokens_family_id on refresh_tokens (family_id);
-- "One live token a family" is what rotation promises; the database holds it.
create unique index refresh_tokens_one_live on refresh_tokens (family_id) where used_at is null;
