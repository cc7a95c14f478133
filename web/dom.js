// Small helpers: elements without innerHTML, money, dates, clocks.

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

export function money(amount, currency) {
  const format = new Intl.NumberFormat(undefined, { style: "currency", currency: currency.toUpperCase() });
  return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
}

const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });
const shortDates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const date = (text) => dates.format(new Date(text));
export const shortDate = (text) => shortDates.format(new Date(text));
export const count = (n) => new Intl.NumberFormat().format(n);

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  if (s >= 60) return `${Math.floor(s / 60)} min ${s % 60 ? `${s % 60} s` : ""}`.trim();
  return `${s} s`;
}

// A clock that ends with its view. Told aloud only now and then, not every second.
export function countdown(until, done) {
  const element = h("b", { class: "num", role: "timer" });
  const end = new Date(until).getTime();
  let told = Infinity;
  const tick = () => {
    const left = Math.max(0, Math.round((end - Date.now()) / 1000));
    element.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
    for (const mark of [60, 30, 10]) if (left <= mark && told > mark) say(`${mark} seconds left`);
    told = left;
    if (left === 0) { clearInterval(timer); done?.(); }
  };
  const timer = setInterval(tick, 1000);
  onLeave(() => clearInterval(timer));
  tick();
  return element;
}

// What a view started ends when another is shown.
let leaving = [];
export function onLeave(end) { leaving.push(end); }
export function leave() {
  for (const end of leaving.splice(0)) end();
}

// A view's own clock: `alive` turns false when it is left.
export function life() {
  const state = { alive: true, timers: new Set() };
  onLeave(() => {
    state.alive = false;
    state.timers.forEach(clearTimeout);
  });
  state.after = (ms, act) => {
    if (!state.alive) return;
    const timer = setTimeout(() => { state.timers.delete(timer); if (state.alive) act(); }, ms);
    state.timers.add(timer);
  };
  return state;
}

export const loading = (text) => h("p", { class: "soft" }, h("span", { class: "spin", "aria-hidden": "true" }), text);
export const notice = (kind, ...children) =>
  h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : null }, ...children);
export const hue = (text) => [...text].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) % 360, 7);

// A button that cannot be pressed twice, and shows what went wrong.
export function button(text, act, kind = "") {
  const element = h("button", { type: "button", class: kind }, text);
  element.addEventListener("click", async () => {
    element.disabled = true;
    try { await act(); } catch (error) { fail(element, error); }
    element.disabled = false;
  });
  return element;
}

export function fail(near, error) {
  near.parentElement?.querySelector(".err")?.remove();
  near.insertAdjacentElement("afterend", h("p", { class: "err", role: "alert" }, error.message));
}
