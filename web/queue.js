// The waiting room: a place, what is told of it, and when to ask again.

import { call, Problem, session, store } from "/web/api.js";
import { button, count, countdown, h, life, loading, notice, say, show, span } from "/web/dom.js";

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

export async function queue(id, search) {
  const alive = life();
  show(loading("Joining the queue"));
  const [performance, before] = await Promise.all([call("GET", `/performances/${id}`), place.get(id)]);
  const seatsAt = `#/p/${id}/seats${search.has("date") ? `?date=${search.get("date")}` : ""}`;
  const title = h("h1", {}, performance.title);
  let first = null;

  const enter = async () => {
    try {
      told(await call("POST", `/queues/${id}/tokens`));
    } catch (error) {
      if (alive.alive) refused(error);
    }
  };

  // A place that is kept is asked for; entering again would find the same one.
  const look = async (kept) => {
    try {
      told(await call("GET", `/queues/${id}/tokens/me`, { queueToken: kept.queueToken, bare: true }));
    } catch (error) {
      if (!alive.alive) return;
      if (error.status === 401) { place.drop(id); return enter(); }
      if (error.status === 410) { place.drop(id); return ended(); }
      if (error.status === 409) {
        // Suspended: the place goes on when seats come back, or the closing is taken back.
        if (error.body.pollAfterMs) alive.after(error.body.pollAfterMs, () => look(kept));
        return refused(error);
      }
      // Away or overloaded: the place stays, and so do we.
      say("The server is busy. Your place is kept.");
      alive.after((error.retryAfter ?? 3) * 1000, () => look(kept));
    }
  };

  const told = (news) => {
    if (!alive.alive) return;
    place.set(id, news);
    if (news.status === "WORKING") {
      say("It is your turn");
      location.replace(seatsAt);
      return;
    }
    draw(news);
    alive.after(news.pollAfterMs, () => look(news));
  };

  const leaveQueue = async () => {
    const kept = place.get(id);
    await call("DELETE", `/queues/${id}/tokens/me`, { queueToken: kept.queueToken, bare: true });
    place.drop(id);
    location.hash = `#/p/${id}`;
  };

  const draw = (news) => {
    const registered = news.status === "REGISTERED";
    first ??= store.get(`first:${id}:${news.number}`) ?? news.position;
    store.set(`first:${id}:${news.number}`, first);
    const wait = news.estimatedWaitSeconds;
    const estimate = wait ? `About ${span(wait.min)} to ${span(wait.max)}` : "No estimate yet";
    if (news.position) say(`You are number ${news.position} in line. ${estimate}.`);
    show(title, h("section", { class: "card center", "aria-label": "Your place" },
      registered
        ? [h("p", { class: "big", "aria-hidden": "true" }, "✓"), h("p", {}, "You are registered. Places are drawn by lot when the queue opens; being early makes no difference now.")]
        : [h("p", { class: "soft" }, "People before you, and you"),
          h("p", { class: "big" }, count(news.position ?? 0)),
          h("progress", { max: Math.max(first ?? 1, 1), value: Math.max((first ?? 1) - (news.position ?? 0), 0), "aria-label": "Progress since you joined" }),
          h("p", {}, estimate),
          h("p", { class: "soft small" }, `Your number is ${count(news.number ?? 0)}. Next look in ${span(news.pollAfterMs / 1000)}.`)],
      h("p", { class: "small" }, "Keep this page open. Reloading, or coming back later, keeps your place; when it is your turn, you have a short while to show up."),
      button("Leave the queue", leaveQueue)));
  };

  const refused = (error) => {
    const text = refusals[error.code];
    if (error.code === "BOOKING_NOT_OPEN") {
      const opens = new Date(error.body.opensAt ?? performance.bookingOpensAt);
      if (opens > new Date()) {
        show(title, h("section", { class: "card center" }, h("p", {}, "The queue opens in"),
          h("p", { class: "big" }, countdown(opens, () => alive.after(Math.random() * 1500, enter))),
          h("p", { class: "soft" }, "You are put in line by yourself when it opens.")));
        return;
      }
      show(title, notice("", "Booking has closed."));
      return;
    }
    if (!text && (error.status === 503 || error.status === 429 || error.status === 0)) {
      say(error.message);
      show(title, notice("bad", error.message, h("p", { class: "small" }, "Trying again by itself.")));
      alive.after((error.retryAfter ?? 3) * 1000, enter);
      return;
    }
    if (!text) throw error;
    say(text);
    show(title, notice("bad", text), button("Try again", enter), " ", h("a", { class: "button", href: `#/p/${id}` }, "Back to the show"));
  };

  const ended = () => show(title, notice("", "Your turn has ended."), button("Join the queue again", enter, "go"));

  await (before ? look(before) : enter());
}

// Keeps a turn known while its owner picks seats: `onEnd` when it is over.
export function watchTurn(id, alive, onEnd) {
  const look = async () => {
    const kept = place.get(id);
    if (!kept) return onEnd();
    try {
      const news = await call("GET", `/queues/${id}/tokens/me`, { queueToken: kept.queueToken, bare: true });
      place.set(id, news);
      alive.after(Math.max(news.pollAfterMs, 10_000), look);
    } catch (error) {
      if (error instanceof Problem && [401, 410].includes(error.status)) {
        place.drop(id);
        return onEnd();
      }
      alive.after(5000, look);
    }
  };
  alive.after(10_000, look);
}
