// The hall: every seat a button, arrow keys to walk it, a tray of what is chosen.

import { call, key } from "/web/api.js";
import { button, clock, countdown, date, failed, h, life, loading, money, notice, onLeave, say, shortDate, show } from "/web/dom.js";
import { now, until } from "/web/clock.js";
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
  // What each seat was painted as: a tap changes one of thousands, and only that one is touched.
  const painted = new Map();
  const paint = (all, chosen) => {
    for (const seat of all) {
      const mine = chosen.has(seat.id);
      const looks = mine ? "MINE" : seat.status;
      if (painted.get(seat.id) === looks) continue;
      painted.set(seat.id, looks);
      const element = buttons.get(seat.id);
      const text = `${label(seat)}, ${seat.grade}, ${money(seat.price, seat.currency)}, ${mine ? "chosen" : words[seat.status]}`;
      element.className = `seat g${grades.indexOf(seat.grade) % 4} ${mine ? "AVAILABLE" : seat.status}`;
      element.title = text;
      element.setAttribute("aria-label", text);
      element.setAttribute("aria-pressed", mine);
      element.setAttribute("aria-disabled", !mine && seat.status !== "AVAILABLE");
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
  const alive = life(failed);
  const mine = place.get(id);
  const back = `#/p/${id}/queue${search.has("date") ? `?date=${search.get("date")}` : ""}`;
  if (mine?.status !== "WORKING") { location.replace(back); return; }
  show(loading("Loading the hall"));
  const [performance, { items: schedules }] = await Promise.all([
    call("GET", `/performances/${id}`), call("GET", `/performances/${id}/schedules?limit=100`)]);
  if (!alive.alive) return;
  let schedule = schedules.find((one) => one.id === search.get("date")) ?? schedules.find((one) => one.remainingSeats > 0) ?? schedules[0];
  const ended = () => {
    alive.stop();
    show(h("h1", {}, performance.title), notice("bad", "Your turn has ended. Seats that you held and did not pay go back."),
      h("a", { class: "button go", href: back }, "Join the queue again"));
  };

  const missed = h("div", { class: "notice bad", role: "alert", hidden: true });
  const time = h("p", {});
  let ends = null;
  // The turn, as the server tells it: its end may move, and only the server ends it.
  const turn = (news, error) => {
    const text = error ? `${error.message} Your turn goes on. Trying again by itself. Last tried at ${clock(now())}.` : "";
    missed.hidden = !text;
    if (missed.textContent !== text) missed.textContent = text;
    if (!news || news.expiresAt === ends) return;
    ends = news.expiresAt;
    time.replaceChildren(...ends && until(ends) > 0 ? ["Your turn ends in ", countdown(alive, ends, () => askTurn())] : []);
  };
  const askTurn = watchTurn(id, alive, turn, ended);
  turn(mine);

  const chosen = new Map();
  let map = { seats: [] };
  let etag = null;
  let drawn = null;
  let hallView = null;
  const holder = h("div", { class: "hall" });
  const legend = h("ul", { class: "legend", "aria-label": "Prices" });
  // A wish sent twice is one order: it keeps its key until an answer says what became of it.
  const keys = new Map();
  const wishFor = (body) => JSON.stringify({ scheduleId: schedule.id, ...body });
  const choice = () => ({ seatIds: [...chosen.keys()] });
  // Seats that went to others since they were chosen here, and how many were chosen before.
  let lost = [];
  let wanted = 0;

  const lose = (seats) => {
    if (!seats.length) return;
    if (!lost.length) wanted = chosen.size;
    for (const seat of seats) {
      chosen.delete(seat.id);
      lost.push(label(seat));
    }
  };

  const load = async () => {
    const asked = schedule.id;
    const answer = await call("GET", `/schedules/${asked}/seats`, { etag, raw: true });
    if (answer.status === 304 || asked !== schedule.id || !alive.alive) return;
    etag = answer.etag;
    map = answer.body;
    // Those of a wish that is on its way, or whose answer was lost, may be held for us.
    if (!keys.has(wishFor(choice()))) lose(map.seats.filter((seat) => chosen.has(seat.id) && seat.status !== "AVAILABLE"));
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
      grade.replaceChildren(h("option", { value: "" }, "any grade"), ...grades.map((name) => h("option", { value: name }, name)));
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
    drawTray();
  };

  const toggle = (seat) => {
    // The newest that is known of it: a list that came since has other objects.
    const known = map.seats.find((one) => one.id === seat.id) ?? seat;
    if (chosen.has(known.id)) {
      chosen.delete(known.id);
      say(`${label(known)} given back`);
    } else if (known.status !== "AVAILABLE") {
      say(`${label(known)} is ${words[known.status]}`);
      return;
    } else if (chosen.size === MAX) {
      say(`At most ${MAX} seats`);
      return;
    } else {
      chosen.set(known.id, known);
      say(`${label(known)} chosen, ${money(known.price, known.currency)}`);
    }
    if (chosen.size >= wanted) lost = [];
    wrong("");
    hallView.paint([known], chosen);
    drawTray();
  };

  const book = async (body) => {
    const wish = wishFor(body);
    if (!keys.has(wish)) keys.set(wish, key());
    wrong("");
    try {
      const order = await call("POST", "/orders", { body: JSON.parse(wish), queueToken: place.get(id)?.queueToken, idempotency: keys.get(wish) });
      location.hash = `#/o/${order.id}`;
    } catch (error) {
      // No answer, or none that says what became of it: the same key asks again.
      const unknown = error.away;
      if (!unknown) keys.delete(wish);
      if (error.status === 410 || error.code === "INVALID_QUEUE_TOKEN") { place.drop(id); return ended(); }
      if (error.code === "NOT_ADMITTED") { location.replace(back); return; }
      if (error.code === "SEATS_TAKEN") {
        const taken = new Set(error.body.seatIds ?? []);
        lose([...chosen.values()].filter((seat) => taken.has(seat.id)));
        etag = null;
        await load().catch(() => {}); // the loop loads them soon
        drawTray();
        if (!chosen.size && !lost.length) wrong("Someone was faster. Those seats are gone; choose others.");
        return;
      }
      wrong(unknown ? `${error.message} Press again: what you chose is sent as one order, however often.` : error.message);
    }
  };

  // The tray stands; only its words change, so that the focus stays where it is.
  const amount = h("select", { "aria-label": "How many seats" }, [1, 2, 3, 4].map((n) => h("option", { value: n, selected: n === 2 }, `${n} seat${n > 1 ? "s" : ""}`)));
  const grade = h("select", { "aria-label": "Which grade" });
  const names = h("b", {});
  const price = h("p", { class: "soft small" });
  const seatsOf = (n) => `${n} seat${n > 1 ? "s" : ""}`;
  const hold = () => book(choice());
  const holdAll = button("Hold and pay", hold, "go");
  const holdRest = button("", async () => { lost = []; await hold(); drawTray(); });
  const faster = h("p", { class: "err", role: "alert", hidden: true });
  const error = h("p", { class: "err", role: "alert", hidden: true });
  const old = h("p", { class: "err", role: "alert", hidden: true });
  const ofChoice = h("div", { class: "row between" }, h("div", {}, names, price), h("div", { class: "row" }, holdRest, holdAll));
  const ofWish = h("div", { class: "row between" }, h("span", { class: "soft" }, "Choose up to four seats, or"),
    h("div", { class: "row" }, amount, grade,
      button("Best available", () => book({ bestAvailable: { count: Number(amount.value), ...(grade.value && { grade: grade.value }) } }))));
  const tray = h("section", { class: "tray", "aria-label": "Your choice" }, faster, ofChoice, ofWish, error, old);
  const write = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
    element.hidden = !text;
  };
  const wrong = (text) => write(error, text);

  const drawTray = () => {
    const list = [...chosen.values()];
    const total = list.reduce((sum, seat) => sum + seat.price, 0);
    const left = list.length ? ` You chose ${seatsOf(wanted)}; ${list.length === 1 ? "one is" : `${list.length} are`} left. Choose another, or take fewer.` : " Choose others.";
    write(faster, lost.length ? `Someone was faster: ${lost.join(", ")} went to someone else.${left}` : "");
    // With nothing left of a choice, the button that was pressed stays until another is made.
    ofChoice.hidden = !list.length && !lost.length;
    ofWish.hidden = list.length > 0;
    names.textContent = list.map(label).join(", ");
    price.textContent = list.length ? `${seatsOf(list.length)}, ${money(total, list[0].currency)}` : "";
    // Fewer than chosen are bought only by a button that says so.
    holdAll.turn(!lost.length && list.length > 0);
    holdRest.textContent = `Take ${seatsOf(list.length || 1)}`;
    holdRest.hidden = !lost.length || !list.length;
  };

  const zoom = (by) => {
    const now = parseFloat(getComputedStyle(holder).getPropertyValue("--seat"));
    holder.style.setProperty("--seat", `${Math.min(44, Math.max(8, now + by))}px`);
  };
  const picker = h("select", { id: "date" }, schedules.map((one) => h("option", { value: one.id, selected: one.id === schedule.id }, shortDate(one.startsAt))));
  picker.addEventListener("change", async () => {
    schedule = schedules.find((one) => one.id === picker.value);
    chosen.clear();
    lost = [];
    wrong("");
    etag = null;
    await load().catch((error) => wrong(error.message));
  });

  show(
    h("div", { class: "row between" }, h("h1", {}, performance.title), time), missed,
    h("div", { class: "row between" },
      h("div", { class: "row" }, h("label", { for: "date" }, "Date"), picker),
      h("div", { class: "row" },
        h("button", { type: "button", "aria-label": "Smaller seats", onclick: () => zoom(-4) }, "−"),
        h("button", { type: "button", "aria-label": "Bigger seats", onclick: () => zoom(4) }, "+"))),
    legend, h("p", { class: "sr" }, "Walk the seats with the arrow keys; Enter chooses one."), holder, tray);
  await load();
  const again = async () => {
    // The turn says when no answer comes; a list that fails alone says so here.
    if (!document.hidden) {
      await load().then(() => write(old, ""), (error) => { if (missed.hidden) write(old, `The seats are as they were a while ago: ${error.message}`); });
    }
    alive.after(2000 + Math.random() * 500, again);
  };
  alive.after(2000, again);
  say(`Seats for ${date(schedule.startsAt)}`);
  onLeave(() => holder.replaceChildren());
}
