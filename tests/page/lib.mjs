// What every case uses: a browser, buyers, and the database of the server under test.
//
// The Rust test `page` starts a server and this program, and answers what it asks on stdout, a line
// of JSON each: {"sql": "..."} runs SQL there.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { chromium } = createRequire(process.env.PAGE_MODULES + "/")("playwright-core");

export const url = process.env.PAGE_URL;
const api = `${url}/api/v1`;

let asked = Promise.resolve();
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// Runs SQL on the server's database; one statement at a time.
export function sql(text) {
  const answer = asked.then(async () => {
    console.log(JSON.stringify({ sql: text }));
    const { value, done } = await lines.next();
    if (done || value !== "ok") throw new Error(`${text}: ${value}`);
  });
  asked = answer.catch(() => {});
  return answer;
}

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// Looks until `check` gives something, for a minute: machines are busy.
export async function until(what, check, ms = 60_000) {
  const end = Date.now() + ms;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not in ${ms / 1000} s`);
    await sleep(50);
  }
}

export function equal(got, want, what) {
  if (JSON.stringify(got) !== JSON.stringify(want)) throw new Error(`${what}: ${JSON.stringify(got)} instead of ${JSON.stringify(want)}`);
}
export function holds(truth, what) {
  if (!truth) throw new Error(what);
}

// A call of the API from outside the page; the answer, whatever its status. Where the server asks
// for patience it is given.
export async function ask(method, path, { token, queueToken, body, key } = {}) {
  for (let left = 20; ; left -= 1) {
    const headers = { "Content-Type": "application/json" };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (queueToken) headers["Queue-Token"] = queueToken;
    if (key) headers["Idempotency-Key"] = key;
    const answer = await fetch(path.startsWith("/admin") ? url + path : api + path, { method, headers, body: body && JSON.stringify(body) });
    if ([429, 503].includes(answer.status) && left) {
      await sleep(1000 * Number(answer.headers.get("Retry-After") ?? 1));
      continue;
    }
    const text = await answer.text();
    return { status: answer.status, body: text ? JSON.parse(text) : null };
  }
}

let people = 0;
// Somebody new, signed in: tokens and user as the page keeps them.
export async function member() {
  people += 1;
  const [email, password] = [`page-${process.pid}-${people}@example.com`, "correct horse battery"];
  const joined = await ask("POST", "/users", { body: { name: `Buyer ${people}`, email, password } });
  equal(joined.status, 201, JSON.stringify(joined.body));
  const tokens = (await ask("POST", "/auth/login", { body: { email, password } })).body;
  const user = (await ask("GET", "/users/me", { token: tokens.accessToken })).body;
  return { tokens, user, token: tokens.accessToken };
}

// A turn of this buyer, taken outside the page; the place.
export async function turn(buyer, performance) {
  let place = (await ask("POST", `/queues/${performance}/tokens`, buyer)).body;
  return until("a turn", async () => {
    if (place.status === "WORKING") return place;
    await sleep(200);
    place = (await ask("GET", `/queues/${performance}/tokens/me`, { queueToken: place.queueToken })).body;
    return null;
  });
}

const browser = await chromium.launch({
  executablePath: process.env.PAGE_CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  timeout: 120_000,
});
export const close = () => browser.close();

// A browser of this buyer. `ahead`: how many milliseconds its clock is ahead of ours.
export async function device(buyer, { ahead = 0, place, script } = {}) {
  const context = await browser.newContext();
  context.setDefaultTimeout(60_000);
  await context.addInitScript(({ ahead, buyer, place }) => {
    if (ahead) {
      const Real = Date;
      const skewed = class extends Real {
        constructor(...args) { if (args.length) super(...args); else super(Real.now() + ahead); }
        static now() { return Real.now() + ahead; }
      };
      globalThis.Date = skewed;
    }
    if (!buyer || localStorage.getItem("seen-by-test")) return;
    localStorage.setItem("seen-by-test", "yes");
    localStorage.setItem("tp:tokens", JSON.stringify(buyer.tokens));
    localStorage.setItem("tp:user", JSON.stringify(buyer.user));
    if (place) localStorage.setItem(`tp:place:${buyer.user.id}:${place.performance}`, JSON.stringify(place.is));
  }, { ahead, buyer: buyer && { tokens: buyer.tokens, user: buyer.user }, place });
  if (script) await context.addInitScript(script);
  // The files as they stand, instead of those in a binary: for whoever changes them.
  const files = process.env.PAGE_FILES;
  if (files) await context.route(/\/web\/[a-z.]+$/, (route) => route.fulfill({ path: files + new URL(route.request().url()).pathname.slice(4) }));
  return context;
}

// A tab of that browser, with what it asked of the API (`calls`) and what went wrong in it.
export async function tab(context, hash) {
  const page = await context.newPage();
  page.calls = [];
  page.wrong = [];
  page.on("pageerror", (error) => page.wrong.push(String(error)));
  page.on("response", (answer) => {
    const at = new URL(answer.url()).pathname;
    if (at.startsWith("/api/v1/")) page.calls.push({ what: `${answer.request().method()} ${at.slice(7)}`, status: answer.status(), at: Date.now(), key: answer.request().headers()["idempotency-key"] });
  });
  if (hash !== undefined) await page.goto(`${url}/#${hash}`);
  return page;
}

export const called = (page, pattern) => page.calls.filter((call) => pattern.test(call.what));
export const text = (page) => page.locator("#view").innerText();
export const says = (page, words, ms) => until(`the page says ${words}`, async () => (await text(page)).includes(words), ms)
  .catch(async (error) => { throw new Error(`${error.message}; it says: ${await text(page)}; calls: ${JSON.stringify(page.calls.slice(-8))}; ${page.wrong}`); });
