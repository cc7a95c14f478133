// Small helpers: elements without innerHTML, money, dates, timers.

import { check, until } from "/web/clock.js";

export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child != null && child !== false));
  return element;
}

export function show(...children) {
  const view = document.getElementById("view");
  view.replaceChildren(...children.flat(9).filter(Boolean));
}

export function say(text) {
  const live = document.getElementById("live");
  if (live.textContent !== text) live.textContent = text;
}

// A formatter costs more than all that it formats: one for each currency.
const formats = new Map();
export function money(amount, currency) {
  if (!formats.has(currency)) {
    const format = new Intl.NumberFormat(undefined, { style: "currency", currency: currency.toUpperCase() });
    formats.set(currency, [format, 10 ** format.resolvedOptions().maximumFractionDigits]);
  }
  const [format, unit] = formats.get(currency);
  return format.format(amount / unit);
}

const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });
const shortDates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const date = (text) => dates.format(new Date(text));
export const shortDate = (text) => shortDates.format(new Date(text));
const clocks = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
export const clock = (time) => clocks.format(new Date(time));
const counts = new Intl.NumberFormat();
export const count = (n) => counts.format(n);

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  if (s >= 60) return `${Math.floor(s / 60)} min ${s % 60 ? `${s % 60} s` : ""}`.trim();
  return `${s} s`;
}

// What a view started ends when another is shown.
let leaving = [];
export function onLeave(end) { leaving.push(end); }
export function leave() {
  for (const end of leaving.splice(0)) end();
}

// What a view shows when something that it started by itself fails: app.js says.
let report = console.error;
export function onFailed(how) { report = how; }
export const failed = (error) => report(error);

// The longest wait that setTimeout takes.
const TIMER_MAX_MS = 2 ** 31 - 1;

// A view's own clock: `alive` turns false when it is left. What it runs may fail: `failed` hears it.
export function life(failed) {
  const state = { alive: true };
  const timers = new Set();
  const moments = new Set();
  const run = async (act) => {
    try { await act(); } catch (error) { if (state.alive) failed(error); }
  };
  state.after = (ms, act) => {
    if (!state.alive) return null;
    const timer = setTimeout(() => { timers.delete(timer); if (state.alive) run(act); }, ms);
    timers.add(timer);
    return timer;
  };
  // A loop has one next step. Who sets another replaces it, so that no loop runs twice.
  let next = null;
  let step = null;
  state.next = (ms, act) => {
    clearTimeout(next);
    timers.delete(next);
    step = act;
    next = state.after(ms, act);
  };
  // The next step is taken at once: the device is online again, or the page is looked at.
  state.hurry = () => { if (step && state.alive) state.next(0, step); };
  // Once, when the server's clock shows `time`. One timer, since browsers let a page in the
  // background that sets one after another run only once a minute; and looked at again when the
  // page is, since a device that slept has held the timer back.
  state.at = (time, act) => {
    const moment = { stop: () => { clearTimeout(moment.timer); moments.delete(moment); } };
    moment.look = () => {
      clearTimeout(moment.timer);
      const left = until(time);
      if (left > 0) {
        moment.timer = setTimeout(moment.look, Math.min(left + 5, TIMER_MAX_MS));
      } else {
        moment.stop();
        if (state.alive) run(act);
      }
    };
    moments.add(moment);
    // Never at once: who is drawn again and again by what it starts would never rest.
    moment.timer = setTimeout(moment.look, Math.min(Math.max(until(time) + 5, 100), TIMER_MAX_MS));
    return moment;
  };
  const look = async () => {
    if (document.hidden) return;
    await check();
    for (const moment of [...moments]) moment.look();
  };
  addEventListener("visibilitychange", look);
  addEventListener("pageshow", look);
  state.stop = () => {
    state.alive = false;
    timers.forEach(clearTimeout);
    for (const moment of [...moments]) moment.stop();
    removeEventListener("visibilitychange", look);
    removeEventListener("pageshow", look);
  };
  onLeave(state.stop);
  return state;
}

// The time left until the server's clock shows `end`; then `done`, if any. Told aloud only now and then,
// not every second.
export function countdown(alive, end, done) {
  const element = h("b", { class: "num", role: "timer" });
  let told = Infinity;
  const tick = () => {
    if (!alive.alive || told !== Infinity && !element.isConnected) return clearInterval(timer);
    check();
    const left = Math.max(0, Math.ceil(until(end) / 1000));
    const [hours, minutes, seconds] = [Math.floor(left / 3600), Math.floor(left / 60) % 60, left % 60];
    const two = (n) => String(n).padStart(2, "0");
    element.textContent = hours ? `${hours}:${two(minutes)}:${two(seconds)}` : `${minutes}:${two(seconds)}`;
    for (const mark of [60, 30, 10]) if (left <= mark && told > mark && left > 0) say(`${mark} seconds left`);
    told = left;
  };
  const timer = setInterval(tick, 1000);
  tick();
  if (done) alive.at(end, () => element.isConnected && done());
  return element;
}

export const loading = (text) => h("p", { class: "soft" }, h("span", { class: "spin", "aria-hidden": "true" }), text);
export const notice = (kind, ...children) =>
  h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : null }, ...children);
export const hue = (text) => [...text].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) % 360, 7);

// A button that cannot be pressed twice, and shows what went wrong. Off or busy it keeps the focus,
// which one that is `disabled` would lose.
export function button(text, act, kind = "") {
  const element = h("button", { type: "button", class: kind }, text);
  let busy = false;
  const paint = () => element.setAttribute("aria-disabled", busy || Boolean(element.isOff));
  element.turn = (on) => { element.isOff = !on; paint(); };
  element.addEventListener("click", async () => {
    if (busy || element.isOff) return;
    busy = true;
    paint();
    try { await act(); } catch (error) { fail(element, error); }
    busy = false;
    paint();
  });
  return element;
}

export function fail(near, error) {
  near.parentElement?.querySelector(".err")?.remove();
  near.insertAdjacentElement("afterend", h("p", { class: "err", role: "alert" }, error.message));
}

// Asks before something that cannot be taken back. `text` lines, what `yes` says and does.
export function question(label, text, no, yes, act) {
  const dialog = h("dialog", { class: "card", "aria-label": label });
  dialog.append(h("p", {}, h("b", {}, label)), ...text.map((line) => h("p", {}, line)),
    h("div", { class: "row" }, h("button", { type: "button", onclick: () => dialog.close() }, no),
      button(yes, async () => { await act(); dialog.close(); }, "go")));
  return dialog;
}
