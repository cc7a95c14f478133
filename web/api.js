// The HTTP API: one call function, tokens that renew themselves, problems as errors.

const base = "/api/v1";

export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.code = body.code || "";
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

// A private window may refuse storage: then the tab remembers until it is closed.
const memory = new Map();
export const store = {
  get(key) {
    try { return JSON.parse(localStorage.getItem("tp:" + key)) ?? memory.get(key) ?? null; }
    catch { return memory.get(key) ?? null; }
  },
  set(key, value) {
    memory.set(key, value);
    try { localStorage.setItem("tp:" + key, JSON.stringify(value)); } catch { /* the tab remembers */ }
  },
  drop(key) {
    memory.delete(key);
    try { localStorage.removeItem("tp:" + key); } catch { /* nothing was kept */ }
  },
};

export const session = {
  get user() { return store.get("user"); },
  get tokens() { return store.get("tokens"); },
  async start(email, password) {
    const tokens = await call("POST", "/auth/login", { body: { email, password }, bare: true });
    store.set("tokens", tokens);
    store.set("user", await call("GET", "/users/me"));
    dispatchEvent(new Event("session"));
  },
  end() {
    const refreshToken = this.tokens?.refreshToken;
    store.drop("tokens");
    store.drop("user");
    if (refreshToken) call("POST", "/auth/logout", { body: { refreshToken }, bare: true }).catch(() => {});
    dispatchEvent(new Event("session"));
  },
};

// One renewal at a time: a refresh token used twice ends the session.
let renewing = null;
function renew() {
  const refreshToken = session.tokens?.refreshToken;
  if (!refreshToken) return Promise.resolve(false);
  renewing ??= call("POST", "/auth/refresh", { body: { refreshToken }, bare: true })
    .then((tokens) => { store.set("tokens", tokens); return true; })
    .catch((error) => {
      if (error.status === 401) session.end();
      return false;
    })
    .finally(() => { renewing = null; });
  return renewing;
}

export function key() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

async function send(method, path, { body, queueToken, etag, idempotency, bare }) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (!bare && session.tokens) headers.Authorization = `Bearer ${session.tokens.accessToken}`;
  if (queueToken) headers["Queue-Token"] = queueToken;
  if (etag) headers["If-None-Match"] = etag;
  if (idempotency) headers["Idempotency-Key"] = idempotency;
  try {
    return await fetch(base + path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  } catch {
    throw new Problem(0, { detail: "The server cannot be reached. Check your connection.", code: "OFFLINE" });
  }
}

export async function call(method, path, options = {}) {
  let response = await send(method, path, options);
  // Only an access token can be renewed: a queue token that is refused is final.
  if (response.status === 401 && !options.bare && session.tokens) {
    const problem = await response.clone().json().catch(() => ({}));
    if (["TOKEN_EXPIRED", "UNAUTHENTICATED"].includes(problem.code) && await renew()) {
      response = await send(method, path, options);
    }
  }
  if (response.status === 304) return options.raw ? { status: 304 } : null;
  const body = response.status === 204 ? null : await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Problem(response.status, body ?? {}, Number(response.headers.get("Retry-After")) || null);
  }
  return options.raw ? { status: response.status, body, etag: response.headers.get("ETag") } : body;
}
