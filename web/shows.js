// All shows, and one of them with its dates.

import { call, session } from "/web/api.js";
import { until } from "/web/clock.js";
import { count, date, h, hue, loading, money, notice, shortDate, show } from "/web/dom.js";

const words = { UPCOMING: "Opens soon", OPEN: "Booking open", CLOSED: "Closed", SOLD_OUT: "Sold out" };
const tag = (booking) => h("span", { class: `tag ${booking}` }, words[booking] ?? booking);

function card(performance) {
  const soon = performance.booking === "UPCOMING";
  return h("li", { class: "card" },
    h("div", { class: "poster", "aria-hidden": "true", style: { "--hue": hue(performance.title) } }, performance.venue.name),
    h("h2", {}, h("a", { class: "cover", href: `#/p/${performance.id}` }, performance.title)),
    h("p", { class: "soft small" }, `${performance.venue.name} · ${performance.runtimeMinutes} min · ${performance.ageRating}`),
    h("div", { class: "row between" }, tag(performance.booking),
      h("span", { class: "small soft" }, soon ? `from ${shortDate(performance.bookingOpensAt)}` : `${count(performance.remainingSeats)} seats left`)));
}

export async function shows() {
  show(h("h1", {}, "Shows"), loading("Loading the shows"));
  const list = h("ul", { class: "cards" });
  const more = h("button", { type: "button" }, "More shows");
  let cursor = null;
  const load = async () => {
    const page = await call("GET", `/performances?limit=24${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    list.append(...page.items.map(card));
    cursor = page.nextCursor;
    more.hidden = !cursor;
  };
  more.addEventListener("click", load);
  await load();
  show(h("h1", {}, "Shows"), list.children.length ? list : notice("", "There are no shows yet."), h("p", { class: "center" }, more));
}

function dates(schedules, performance) {
  return h("ul", { class: "cards" }, schedules.map((schedule) => h("li", { class: "card" },
    h("h3", {}, date(schedule.startsAt)),
    h("p", { class: "soft small" }, `${count(schedule.remainingSeats)} of ${count(schedule.totalSeats)} seats left`),
    schedule.salesEndAt && until(schedule.salesEndAt) <= 0
      ? h("span", { class: "tag CLOSED" }, "Sales have ended")
      : schedule.remainingSeats > 0
      ? h("a", { class: "button go", href: `#/p/${performance.id}/queue?date=${schedule.id}` }, "Book this date")
      : h("span", { class: "tag SOLD_OUT" }, "Sold out"))));
}

export async function performance(id) {
  show(loading("Loading the show"));
  const performance = await call("GET", `/performances/${id}`);
  document.title = `${performance.title} · Ticketping`;
  let body;
  try {
    const { items } = await call("GET", `/performances/${id}/schedules?limit=100`);
    body = performance.booking === "SOLD_OUT"
      ? notice("bad", "All seats are sold. Seats come back now and then, when someone cancels.")
      : dates(items, performance);
  } catch (error) {
    if (error.code !== "BOOKING_NOT_OPEN") throw error;
    const upcoming = until(error.body.closesAt ?? performance.bookingClosesAt) > 0;
    body = notice("", upcoming
      ? [`Booking opens ${date(performance.bookingOpensAt)}. `, h("a", { href: `#/p/${id}/queue` }, "Wait here"), "."]
      : `Booking closed ${date(performance.bookingClosesAt)}.`);
  }
  show(
    h("p", { class: "small" }, h("a", { href: "#/" }, "All shows")),
    h("h1", {}, performance.title), tag(performance.booking),
    h("p", {}, performance.description),
    h("dl", { class: "facts" },
      h("dt", {}, "Where"), h("dd", {}, performance.venue.name),
      h("dt", {}, "How long"), h("dd", {}, `${performance.runtimeMinutes} minutes`),
      h("dt", {}, "For"), h("dd", {}, performance.ageRating),
      h("dt", {}, "Booking"), h("dd", {}, `${shortDate(performance.bookingOpensAt)} to ${shortDate(performance.bookingClosesAt)}`),
      (performance.grades ?? []).length > 0 && [h("dt", {}, "Prices"), h("dd", {}, performance.grades.map((grade) => `${grade.grade ?? grade.name} ${money(grade.price, grade.currency ?? performance.currency ?? "krw")}`).join(" · "))]),
    h("h2", {}, "Dates"),
    !session.user && h("p", { class: "small soft" }, "You sign in before you join the queue."),
    body);
}
