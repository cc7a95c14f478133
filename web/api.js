// The HTTP API: one call function, tokens that renew themselves, problems as errors.

import { hear } from "/web/clock.js";

const base = "/api/v1";
// A server that takes a request and never answers is as good as away.
const ANSWER_MAX_MS = 20_000;

export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.code = body.code || "";
    this.body = body;
    this.retryAfter = retryAfter;
  }

  // The server is away, or has too much to do: the same may be asked again.
  get away() { return this.status === 0 || this.status === 429 || this.status >= 500; }
}

// A private window may refuse storage: then the tab remembers until it is closed. Otherwise what
// another tab has written, or removed, is what counts here too.
const memory = new Map();
export const store = {
  get(key) {
    if (memory.has(key)) return memory.get(key);
    try { return JSON.parse(localStorage.getItem("tp:" + key)); } catch { return null; }
  },
  set(key, value) {
    try {
      localStorage.setItem("tp:" + key, JSON.stringify(value));
      memory.delete(key);
    } catch { memory.set(key, value); }
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
  // Signed out by the user: the server forgets the session too.
  end() {
    const refreshToken = this.tokens?.refreshToken;
    this.forget(refreshToken);
    if (refreshToken) call("POST", "/auth/logout", { body: { refreshToken }, bare: true }).catch(() => {});
  },
  // The session of this refresh token is over. One that another tab began meanwhile stays.
  forget(refreshToken) {
    if (this.tokens?.refreshToken !== refreshToken) return;
    store.drop("tokens");
    store.drop("user");
    dispatchEvent(new Event("session"));
  },
};

// Another tab signed in or out: so has this one.
addEventListener("storage", (event) => {
  if (event.key === null || event.key === "tp:user") dispatchEvent(new Event("session"));
});

// One renewal at a time, of all tabs: a refresh token used twice ends the session. A browser
// without locks (the page over plain HTTP) has the server's ten seconds of grace for the second.
async function locked(act) {
  if (!navigator.locks) return act(false);
  const first = await navigator.locks.request("tp:renew", { ifAvailable: true }, (lock) => lock ? act(false).then((did) => [did]) : null);
  return first ? first[0] : navigator.locks.request("tp:renew", () => act(true));
}

// What a sibling tab has written may be a moment on its way to this one, behind the lock.
const SIBLING_MAX_MS = 2000;
const sibling = (refused) => new Promise((done) => {
  const end = () => { removeEventListener("storage", look); done(); };
  const look = () => { if (session.tokens?.accessToken !== refused) end(); };
  addEventListener("storage", look);
  setTimeout(end, SIBLING_MAX_MS);
  look();
});

// Whether there is another access token now than `refused`, a new one or a sibling tab's. Throws
// where the server cannot say, so that a server that is away signs nobody out.
const renew = (refused) => locked(async (waited) => {
  if (waited) await sibling(refused);
  const tokens = session.tokens;
  if (!tokens) return false;
  if (tokens.accessToken !== refused) return true;
  try {
    store.set("tokens", await call("POST", "/auth/refresh", { body: { refreshToken: tokens.refreshToken }, bare: true }));
    return true;
  } catch (error) {
    if (error.status !== 401) throw error;
    if (session.tokens && session.tokens.refreshToken !== tokens.refreshToken) return true;
    session.forget(tokens.refreshToken);
    return false;
  }
});

export function key() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

async function send(method, path, accessToken, { body, queueToken, etag, idempotency }) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (accessToken) headers.Authorization = `Bearer ${accessToken}`;
  if (queueToken) headers["Queue-Token"] = queueToken;
  if (etag) headers["If-None-Match"] = etag;
  if (idempotency) headers["Idempotency-Key"] = idempotency;
  const sent = performance.now();
  try {
    const response = await fetch(base + path, {
      method, headers, body: body && JSON.stringify(body), cache: "no-store", signal: AbortSignal.timeout(ANSWER_MAX_MS),
    });
    hear(response, sent, performance.now());
    return response;
  } catch (error) {
    throw unreachable(error);
  }
}

const unreachable = (error) => new Problem(0, {
  detail: error.name === "TimeoutError" ? "The server does not answer." : "The server cannot be reached. Check your connection.",
  code: "OFFLINE",
});

export async function call(method, path, options = {}) {
  const token = () => options.bare ? null : session.tokens?.accessToken;
  let used = token();
  let response = await send(method, path, used, options);
  // Only an access token can be renewed: a queue token that is refused is final.
  if (response.status === 401 && used) {
    const problem = await response.clone().json().catch(() => ({}));
    if (["TOKEN_EXPIRED", "UNAUTHENTICATED"].includes(problem.code) && await renew(used)) {
      used = token();
      response = await send(method, path, used, options);
    }
  }
  if (response.status === 304) return options.raw ? { status: 304 } : null;
  const body = response.status === 204 ? null : await read(response);
  if (!response.ok) {
    throw new Problem(response.status, body ?? {}, Number(response.headers.get("Retry-After")) || null);
  }
  return options.raw ? { status: response.status, body, etag: response.headers.get("ETag") } : body;
}

// An answer that breaks off is none; one that is not JSON, from some proxy, has only its status.
async function read(response) {
  let text;
  try { text = await response.text(); } catch (error) { throw unreachable(error); }
  try { return JSON.parse(text); } catch {
    if (response.ok) throw unreachable(new Error("not JSON"));
    return {};
  }
}
