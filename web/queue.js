// The waiting room: a place, what is told of it, and when to ask again.

import { call, Problem, session, store } from "/web/api.js";
import { now, until } from "/web/clock.js";
import { button, clock, count, countdown, date, failed, h, life, loading, notice, onLeave, question, say, show, span } from "/web/dom.js";

const placeKey = (performance) => `place:${session.user?.id}:${performance}`;

export const place = {
  get: (performance) => store.get(placeKey(performance)),
  // The newest token is always the one to keep.
  set: (performance, value) => store.set(placeKey(performance), value),
  drop: (performance) => store.drop(placeKey(performance)),
};

const refusals = {
  SOLD_OUT: "All seats are sold. Seats come back now and then, when someone cancels.",
  QUEUE_FULL: "More people wait already than there are seats left, so nobody new is let into the queue.",
  QUEUE_DRAINING: "The queue takes nobody new at the moment.",
};

// Phases in which waiting is not what it usually is.
const phases = {
  PAUSED: "The queue is paused: nobody is let in at the moment. Your place is kept, and you need not do anything.",
  DRAINING: "The queue takes nobody new. Your place is kept, and the line goes on.",
  RECOVERING: "The queue is being put together again after a fault. Your place is kept.",
};

// Retries after the n-th failure in a row, in milliseconds: slower and slower, never all at once.
export const backoff = (n) => Math.min(2000 * 1.5 ** n, 15_000) * (0.75 + Math.random() / 2);

// Who waits for an opening hears of a changed one this often.
const NEWS_EVERY_MS = 30_000;
// A million pages that wait for one moment do not all ask in the same millisecond.
const SPREAD_MS = 1000;

export async function queue(id, search) {
  const alive = life(failed);
  show(loading("Joining the queue"));
  const [performance, before] = await Promise.all([call("GET", `/performances/${id}`), place.get(id)]);
  const seatsAt = `#/p/${id}/seats${search.has("date") ? `?date=${search.get("date")}` : ""}`;
  const title = h("h1", {}, performance.title);
  let failures = 0;
  // What stands on the page: `draw` changes it in place, so that focus and scroll stay.
  let drawn = null;
  // When to enter, where booking is not open yet.
  let moment = null;

  const enter = async () => {
    try {
      told(await call("POST", `/queues/${id}/tokens`));
    } catch (error) {
      if (alive.alive) refused(error);
    }
  };

  // A place that is kept is asked for; entering again would find the same one.
  const look = async () => {
    const kept = place.get(id);
    if (!kept) return enter(); // another tab has left
    try {
      told(await call("GET", `/queues/${id}/tokens/me`, { queueToken: kept.queueToken, bare: true }));
    } catch (error) {
      if (!alive.alive) return;
      if (error.status === 401) { place.drop(id); return enter(); }
      if (error.status === 410) { place.drop(id); return ended(); }
      if (error.status === 409) return suspended(error);
      away(error, look);
    }
  };

  const told = (news) => {
    if (!alive.alive) return;
    failures = 0;
    place.set(id, news);
    if (news.status === "WORKING") {
      say("It is your turn");
      location.replace(seatsAt);
      return;
    }
    draw(news);
    alive.next(news.pollAfterMs, look);
  };

  const leaving = question("Leave the queue?", ["Your place goes to the next person. Joining again puts you at the end."],
    "Keep my place", "Leave the queue", async () => {
      const kept = place.get(id);
      if (kept) {
        await call("DELETE", `/queues/${id}/tokens/me`, { queueToken: kept.queueToken, bare: true }).catch((error) => {
          if (![401, 410].includes(error.status)) throw error; // has ended already: as good as left
        });
      }
      place.drop(id);
      location.hash = `#/p/${id}`;
    });

  const draw = (news) => {
    const registered = news.status === "REGISTERED";
    if (drawn?.registered !== registered) drawn = waitingView(registered);
    link("");
    const phase = phases[news.phase] ?? "";
    if (drawn.phase.textContent !== phase) {
      drawn.phase.textContent = phase;
      if (phase) say(phase);
    }
    drawn.phase.hidden = !phase;
    drawn.heard.textContent = `Last answer at ${clock(now())}.`;
    if (registered) return;
    const first = Math.max(store.get(`first:${id}:${news.number}`) ?? 0, news.position ?? 0);
    store.set(`first:${id}:${news.number}`, first);
    const wait = news.estimatedWaitSeconds;
    const estimate = wait ? `About ${span(wait.min)} to ${span(wait.max)}` : "No estimate at the moment";
    if (news.position && news.position !== drawn.told && !phase) {
      drawn.told = news.position;
      say(`You are number ${news.position} in line. ${estimate}.`);
    }
    drawn.position.textContent = count(news.position ?? 0);
    drawn.progress.max = Math.max(first, 1);
    drawn.progress.value = Math.max(first - (news.position ?? 0), 0);
    drawn.estimate.textContent = estimate;
    drawn.number.textContent = `Your number is ${count(news.number ?? 0)}. Next look in ${span(news.pollAfterMs / 1000)}.`;
  };

  const waitingView = (registered) => {
    const parts = {
      registered,
      link: h("div", { class: "notice bad", role: "alert", hidden: true }),
      phase: h("p", { class: "notice", hidden: true }),
      heard: h("p", { class: "soft small" }),
      position: h("p", { class: "big" }), progress: h("progress", { "aria-label": "Progress since you joined" }),
      estimate: h("p", {}), number: h("p", { class: "soft small" }),
    };
    const opens = performance.bookingOpensAt;
    show(title, parts.link, parts.phase, h("section", { class: "card center", "aria-label": "Your place" },
      registered
        ? [h("p", { class: "big", "aria-hidden": "true" }, "✓"), h("p", {}, h("b", {}, "You are registered.")),
          until(opens) > 0 && h("p", {}, "Places are drawn by lot in ", countdown(alive, opens, () => alive.next(Math.random() * SPREAD_MS, look)), "."),
          h("p", {}, "Being early makes no difference now.")]
        : [h("p", { class: "soft" }, "People before you, and you"), parts.position, parts.progress, parts.estimate, parts.number],
      parts.heard,
      h("p", { class: "small" }, "Keep this page open. Reloading, or coming back later, keeps your place; when it is your turn, you have a short while to show up."),
      button("Leave the queue", () => leaving.showModal())), leaving);
    return parts;
  };

  // What stands above the place when no answer comes; nothing when one does.
  const link = (text) => {
    if (!drawn?.link || drawn.link.textContent === text) return;
    drawn.link.textContent = text;
    drawn.link.hidden = !text;
  };

  // Away or overloaded: the place stays, and so do we.
  const away = (error, again) => {
    const wait = Math.max((error.retryAfter ?? 0) * 1000, backoff(failures));
    failures += 1;
    const kept = place.get(id) ? " Your place is kept." : "";
    const text = `${error.message}${kept} Trying again by itself.`;
    if (drawn?.link) link(text);
    else {
      say(text);
      // Only once, so that what is read aloud and focused stays.
      if (drawn?.away !== text) {
        show(title, notice("bad", text));
        drawn = { away: text };
      }
    }
    alive.next(wait, again);
  };

  const offline = () => away(new Problem(0, { detail: "Your device is offline." }), place.get(id) ? look : enter);
  const online = () => alive.hurry();
  addEventListener("offline", offline);
  addEventListener("online", online);
  onLeave(() => { removeEventListener("offline", offline); removeEventListener("online", online); });

  // Suspended: the place goes on when seats come back, or the closing is taken back.
  const suspended = (error) => {
    failures = 0;
    refused(error, true);
    if (error.body.pollAfterMs) alive.next(error.body.pollAfterMs, look);
  };

  const refused = (error, kept = false) => {
    if (error.code === "BOOKING_NOT_OPEN") return kept ? closed() : notOpen(error.body);
    if (error.away) return away(error, enter);
    const text = refusals[error.code];
    if (!text) throw error;
    if (drawn?.refused === text) return;
    drawn = { refused: text };
    say(text);
    show(title, notice("bad", text), kept
      ? h("p", {}, "Your place is kept. This page looks again by itself.")
      : button("Try again", enter), " ", h("a", { class: "button", href: `#/p/${id}` }, "Back to the show"));
  };

  const closed = () => {
    drawn = {};
    show(title, notice("", "Booking has closed."), h("a", { class: "button", href: `#/p/${id}` }, "Back to the show"));
  };

  // Before the pre-queue, before the opening, or after the close, by the server's clock.
  const notOpen = (times) => {
    const opens = times.opensAt ?? performance.bookingOpensAt;
    const closes = times.closesAt ?? performance.bookingClosesAt;
    if (until(closes) <= 0) return closed();
    performance.bookingOpensAt = opens;
    moment?.stop();
    const registers = times.preQueueOpensAt ?? null;
    const next = registers ?? opens;
    // Both clocks are read to the second, so that the server may think it a moment too early.
    if (until(next) <= 0) {
      failures += 1;
      return alive.next(Math.max(500, backoff(failures) / 4), enter);
    }
    failures = 0;
    const shown = `${registers} ${opens}`;
    if (drawn?.waits !== shown) {
      drawn = { waits: shown };
      const big = h("p", { class: "big" }, countdown(alive, next));
      show(title, h("section", { class: "card center", "aria-label": "Before the opening" }, registers
        ? [h("p", {}, "You can register in"), big, h("p", {}, `This page registers you by itself. Places are drawn by lot among all who are registered when booking opens, on ${date(opens)}; being first makes no difference.`)]
        : [h("p", {}, "The queue opens in"), big, h("p", {}, "You are put in line by yourself when it opens.")],
      h("p", { class: "soft small" }, "Keep this page open.")));
    }
    moment = alive.at(next, () => alive.next(Math.random() * SPREAD_MS, enter));
    // Opening times move: the public snapshot says so.
    alive.next(NEWS_EVERY_MS * (1 + Math.random()), news);
  };
  const news = async () => {
    let times = {};
    try {
      const told = await call("GET", `/queues/${id}`, { bare: true });
      times = { opensAt: told.opensAt, preQueueOpensAt: told.preQueueOpensAt };
      if (told.phase !== "UPCOMING") return enter();
    } catch (error) {
      if (!error.away) throw error;
      return alive.next(Math.max((error.retryAfter ?? 0) * 1000, NEWS_EVERY_MS), news); // the countdown goes on
    }
    notOpen(times);
  };

  const ended = () => {
    drawn = {};
    show(title, notice("", "Your turn has ended."), button("Join the queue again", enter, "go"));
  };

  await (before ? look() : enter());
}

// Keeps a turn known while its owner picks seats, as often as the server says: `onEnd` when it is
// over, `onNews` with what was told. Returns how to ask at once.
export function watchTurn(id, alive, onNews, onEnd) {
  let failures = 0;
  const look = async () => {
    const kept = place.get(id);
    if (!kept) return onEnd();
    try {
      const news = await call("GET", `/queues/${id}/tokens/me`, { queueToken: kept.queueToken, bare: true });
      failures = 0;
      if (!alive.alive) return;
      place.set(id, news);
      if (news.status !== "WORKING") return onEnd();
      onNews(news);
      alive.next(news.pollAfterMs, look);
    } catch (error) {
      if (!alive.alive) return;
      if ([401, 410].includes(error.status)) {
        place.drop(id);
        return onEnd();
      }
      onNews(null, error);
      alive.next(Math.max((error.retryAfter ?? 0) * 1000, backoff(failures)), look);
      failures += 1;
    }
  };
  const kept = place.get(id);
  alive.next(Math.min(kept?.pollAfterMs ?? 5000, 5000), look);
  return () => alive.next(0, look);
}
