// The hall: every seat a button, arrow keys to walk it, a tray of what is chosen.

import { call, key } from "/web/api.js";
import { button, countdown, date, fail, h, life, loading, money, notice, onLeave, say, shortDate, show } from "/web/dom.js";
import { place, watchTurn } from "/web/queue.js";

const MAX = 4;
const words = { AVAILABLE: "available", HELD: "held by someone", SOLD: "sold" };

const label = (seat) => `${seat.section} ${seat.row} ${seat.number}`;

// Sections of one floor stand side by side: "1층 A구역" and "1층 B구역".
function floors(seats) {
  const sections = new Map();
  for (const seat of seats) {
    if (!sections.has(seat.section)) sections.set(seat.section, []);
    sections.get(seat.section).push(seat);
  }
  const floors = new Map();
  for (const [name, list] of sections) {
    const floor = name.split(" ")[0];
    if (!floors.has(floor)) floors.set(floor, []);
    floors.get(floor).push([name, list]);
  }
  return [...floors.values()];
}

function hall(seats, grades, pick) {
  const buttons = new Map();
  const section = ([name, list]) => {
    const rows = [...new Set(list.map((seat) => seat.row))];
    const first = list.reduce((least, seat) => Math.min(least, seat.number), Infinity);
    const grid = h("div", { class: "grid", role: "group", "aria-label": name });
    for (const seat of list) {
      const element = h("button", { type: "button", class: "seat", tabindex: "-1" });
      element.style.gridRow = rows.indexOf(seat.row) + 1;
      element.style.gridColumn = seat.number - first + 1;
      element.dataset.id = seat.id;
      buttons.set(seat.id, element);
      grid.append(element);
    }
    return h("div", { class: "section" }, h("h3", {}, name), grid);
  };
  const inner = h("div", { class: "inner" }, h("div", { class: "stage" }, "STAGE"),
    floors(seats).map((floor) => h("div", { class: `floor ${floor.length > 4 ? "many" : ""}` }, floor.map(section))));
  const byId = new Map(seats.map((seat) => [seat.id, seat]));
  inner.addEventListener("click", (event) => {
    const id = event.target.dataset?.id;
    if (id) { rove(event.target); pick(byId.get(id)); }
  });
  const rove = (element) => {
    inner.querySelector('.seat[tabindex="0"]')?.setAttribute("tabindex", "-1");
    element.setAttribute("tabindex", "0");
    element.focus({ preventScroll: false });
  };
  inner.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !event.target.dataset?.id) return;
    event.preventDefault();
    const next = neighbour(event.target, step, buttons);
    if (next) rove(next);
  });
  buttons.values().next().value?.setAttribute("tabindex", "0");
  const paint = (all, chosen) => {
    for (const seat of all) {
      const element = buttons.get(seat.id);
      const mine = chosen.has(seat.id);
      const look = `seat g${grades.indexOf(seat.grade) % 4} ${mine ? "AVAILABLE" : seat.status}`;
      const text = `${label(seat)}, ${seat.grade}, ${money(seat.price, seat.currency)}, ${mine ? "chosen" : words[seat.status]}`;
      if (element.className !== look) element.className = look;
      if (element.title !== text) { element.title = text; element.setAttribute("aria-label", text); }
      element.setAttribute("aria-pressed", mine);
      element.toggleAttribute("aria-disabled", !mine && seat.status !== "AVAILABLE");
    }
  };
  return { element: inner, paint };
}

// The nearest seat in a direction, as it looks on the screen: across aisles and floors too.
function neighbour(from, [dx, dy], buttons) {
  const a = from.getBoundingClientRect();
  let best = null;
  let least = Infinity;
  for (const element of buttons.values()) {
    const b = element.getBoundingClientRect();
    const along = dx ? (b.left - a.left) * dx : (b.top - a.top) * dy;
    const aside = Math.abs(dx ? b.top - a.top : b.left - a.left);
    if (along < 2) continue;
    const cost = along + aside * 8;
    if (cost < least) { least = cost; best = element; }
  }
  return best;
}

export async function seats(id, search) {
  const alive = life();
  const mine = place.get(id);
  const back = `#/p/${id}/queue${search.has("date") ? `?date=${search.get("date")}` : ""}`;
  if (mine?.status !== "WORKING") { location.replace(back); return; }
  show(loading("Loading the hall"));
  const [performance, { items: schedules }] = await Promise.all([
    call("GET", `/performances/${id}`), call("GET", `/performances/${id}/schedules?limit=100`)]);
  let schedule = schedules.find((one) => one.id === search.get("date")) ?? schedules.find((one) => one.remainingSeats > 0) ?? schedules[0];
  const ended = () => show(h("h1", {}, performance.title), notice("bad", "Your turn has ended. Seats that you held and did not pay go back."),
    h("a", { class: "button go", href: back }, "Join the queue again"));
  watchTurn(id, alive, ended);

  const chosen = new Map();
  let map = { seats: [] };
  let etag = null;
  let drawn = null;
  const holder = h("div", { class: "hall" });
  const legend = h("ul", { class: "legend", "aria-label": "Prices" });
  const tray = h("section", { class: "tray", "aria-label": "Your choice" });
  let attempt = null;

  const load = async () => {
    const asked = schedule.id;
    const answer = await call("GET", `/schedules/${asked}/seats`, { etag, raw: true });
    if (answer.status === 304 || asked !== schedule.id || !alive.alive) return;
    etag = answer.etag;
    map = answer.body;
    const gone = map.seats.filter((seat) => chosen.has(seat.id) && seat.status !== "AVAILABLE");
    gone.forEach((seat) => chosen.delete(seat.id));
    if (gone.length) say(`${gone.map(label).join(", ")} just went to someone else`);
    draw();
  };

  const draw = () => {
    // Dearest first, in the legend and in the colours.
    const prices = new Map(map.seats.map((seat) => [seat.grade, seat.price]));
    const grades = [...prices.keys()].sort((a, b) => prices.get(b) - prices.get(a));
    if (drawn !== schedule.id) {
      drawn = schedule.id;
      hallView = hall(map.seats, grades, toggle);
      holder.replaceChildren(hallView.element);
    }
    hallView.paint(map.seats, chosen);
    const item = (kind, text) => h("li", {}, h("span", { class: `seat ${kind}`, "aria-hidden": "true" }), text);
    legend.replaceChildren(
      ...grades.map((grade, index) => {
        const of = map.seats.filter((seat) => seat.grade === grade);
        const free = of.filter((seat) => seat.status === "AVAILABLE").length;
        return item(`g${index % 4}`, `${grade} ${money(of[0].price, of[0].currency)} (${free} free)`);
      }),
      item("HELD", "held by someone"), item("SOLD", "sold"));
    drawTray(grades);
  };
  let hallView = null;

  const toggle = (seat) => {
    if (chosen.has(seat.id)) {
      chosen.delete(seat.id);
      say(`${label(seat)} given back`);
    } else if (seat.status !== "AVAILABLE") {
      say(`${label(seat)} is ${words[seat.status]}`);
      return;
    } else if (chosen.size === MAX) {
      say(`At most ${MAX} seats`);
      return;
    } else {
      chosen.set(seat.id, seat);
      say(`${label(seat)} chosen, ${money(seat.price, seat.currency)}`);
    }
    attempt = null;
    draw();
  };

  const book = async (body, near) => {
    // The same choice sent twice is one order.
    attempt ??= key();
    try {
      const order = await call("POST", "/orders", { body: { scheduleId: schedule.id, ...body }, queueToken: place.get(id)?.queueToken, idempotency: attempt });
      location.hash = `#/o/${order.id}`;
    } catch (error) {
      if (error.status !== 0 && error.status !== 503) attempt = null;
      if (error.status === 410 || error.code === "INVALID_QUEUE_TOKEN") { place.drop(id); return ended(); }
      if (error.code === "NOT_ADMITTED") { location.replace(back); return; }
      if (error.code === "SEATS_TAKEN") {
        for (const seat of error.body.seatIds ?? []) chosen.delete(seat);
        etag = null;
        await load().catch(() => {});
      }
      fail(near, error.code === "SEATS_TAKEN" ? new Error("Someone was faster. Those seats are gone; choose others.") : error);
    }
  };

  const drawTray = (grades) => {
    const list = [...chosen.values()];
    const total = list.reduce((sum, seat) => sum + seat.price, 0);
    const amount = h("select", { "aria-label": "How many seats" }, [1, 2, 3, 4].map((n) => h("option", { value: n, selected: n === 2 }, `${n} seat${n > 1 ? "s" : ""}`)));
    const grade = h("select", { "aria-label": "Which grade" }, h("option", { value: "" }, "any grade"), grades.map((name) => h("option", { value: name }, name)));
    const near = h("div", {});
    if (list.length) {
      tray.replaceChildren(
        h("div", { class: "row between" },
          h("div", {}, h("b", {}, list.map(label).join(", ")), h("p", { class: "soft small" }, `${list.length} seat${list.length > 1 ? "s" : ""}, ${money(total, list[0].currency)}`)),
          button("Hold and pay", () => book({ seatIds: list.map((seat) => seat.id) }, near), "go")), near);
    } else if (!tray.contains(document.activeElement) || !tray.children.length) {
      tray.replaceChildren(
        h("div", { class: "row between" }, h("span", { class: "soft" }, "Choose up to four seats, or"),
          h("div", { class: "row" }, amount, grade,
            button("Best available", () => book({ bestAvailable: { count: Number(amount.value), ...(grade.value && { grade: grade.value }) } }, near)))), near);
    }
  };

  const zoom = (by) => {
    const now = parseFloat(getComputedStyle(holder).getPropertyValue("--seat"));
    holder.style.setProperty("--seat", `${Math.min(44, Math.max(8, now + by))}px`);
  };
  const picker = h("select", { id: "date" }, schedules.map((one) => h("option", { value: one.id, selected: one.id === schedule.id }, shortDate(one.startsAt))));
  picker.addEventListener("change", async () => {
    schedule = schedules.find((one) => one.id === picker.value);
    chosen.clear();
    etag = null;
    await load();
  });

  show(
    h("div", { class: "row between" }, h("h1", {}, performance.title),
      mine.expiresAt && h("p", {}, "Your turn ends in ", countdown(mine.expiresAt, ended))),
    h("div", { class: "row between" },
      h("div", { class: "row" }, h("label", { for: "date" }, "Date"), picker),
      h("div", { class: "row" },
        h("button", { type: "button", "aria-label": "Smaller seats", onclick: () => zoom(-4) }, "−"),
        h("button", { type: "button", "aria-label": "Bigger seats", onclick: () => zoom(4) }, "+"))),
    legend, h("p", { class: "sr" }, "Walk the seats with the arrow keys; Enter chooses one."), holder, tray);
  await load();
  const again = async () => {
    if (!document.hidden) await load().catch(() => {});
    alive.after(2000 + Math.random() * 500, again);
  };
  alive.after(2000, again);
  say(`Seats for ${date(schedule.startsAt)}`);
  onLeave(() => holder.replaceChildren());
}
