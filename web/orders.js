// One's orders: pay what is held, see the ticket, cancel.

import { call, key } from "/web/api.js";
import { now, until } from "/web/clock.js";
import { button, clock, countdown, date, failed, h, life, loading, money, notice, question, say, shortDate, show } from "/web/dom.js";
import { backoff } from "/web/queue.js";

const words = {
  PENDING_PAYMENT: "Waiting for payment", CONFIRMED: "Confirmed", EXPIRED: "Not paid in time",
  CANCELLED: "Cancelled", REFUNDED: "Refunded",
};
const tag = (status) => h("span", { class: `tag ${status}` }, words[status] ?? status);
const seatList = (order) => order.seats.map((seat) => `${seat.section} ${seat.row} ${seat.number}`).join(", ");

export async function orders() {
  show(h("h1", {}, "My orders"), loading("Loading your orders"));
  const list = h("ul", { class: "cards" });
  let cursor = null;
  const load = async () => {
    const page = await call("GET", `/orders?limit=20${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    cursor = page.nextCursor;
    more.hidden = !cursor;
    list.append(...page.items.map((order) => h("li", { class: "card" },
      h("h2", {}, h("a", { class: "cover", href: `#/o/${order.id}` }, order.performanceTitle)),
      h("p", { class: "small soft" }, date(order.startsAt)), h("p", { class: "small" }, seatList(order)),
      h("div", { class: "row between" }, tag(order.status), h("b", {}, money(order.amount, order.currency))))));
  };
  const more = button("More orders", load);
  await load();
  show(h("h1", {}, "My orders"), list.children.length ? list : notice("", "You have no orders yet. ", h("a", { href: "#/" }, "See the shows"), "."), h("p", { class: "center" }, more));
}

const facts = (order) => h("dl", { class: "facts" },
  h("dt", {}, "When"), h("dd", {}, date(order.startsAt)),
  h("dt", {}, "Seats"), h("dd", {}, seatList(order)),
  h("dt", {}, "Price"), h("dd", {}, money(order.amount, order.currency)),
  h("dt", {}, "Order"), h("dd", { class: "small soft" }, order.id));

// How often an order is looked at, in milliseconds: while it may be paid in another tab, and while
// it is being confirmed. Paid at the last moment, an expired one may still change, for a while.
const PAY_LOOK_MS = 4000;
const CONFIRM_LOOK_MS = 1000;
const EXPIRED_LOOK_MS = 3000;
const EXPIRED_LOOKS = 40;

export async function order(id) {
  const alive = life(failed);
  show(loading("Loading your order"));
  let payment = null;
  // One key for one attempt to begin a payment: an answer that was lost is asked for again.
  let attempt = key();
  // What is shown: a view is drawn anew only when it says something else, so that focus stays.
  let shown = "";
  let failures = 0;
  let refusals = 0;
  let looks = 0;
  const missed = h("div", { class: "notice bad", role: "alert", hidden: true });

  // The one loop of this view.
  const look = async () => {
    try {
      let order = await call("GET", `/orders/${id}`);
      if (order.status === "PENDING_PAYMENT" && await pay()) order = await call("GET", `/orders/${id}`); // its hold was renewed
      if (!alive.alive) return;
      failures = 0;
      missed.hidden = true;
      const wait = draw(order);
      if (wait) alive.next(wait, look);
    } catch (error) {
      if (!alive.alive) return;
      // What is shown stays, with what it misses.
      if (!error.away) throw error;
      missed.textContent = `${error.message} Trying again by itself. Last tried at ${clock(now())}.`;
      missed.hidden = false;
      if (!shown) show(missed);
      alive.next(Math.max((error.retryAfter ?? 0) * 1000, backoff(failures)), look);
      failures += 1;
    }
  };

  // Begins the payment, once, and then asks what has become of it. Whether it was begun.
  const pay = async () => {
    if (payment?.id) {
      payment = { ...payment, ...await call("GET", `/payments/${payment.id}`) };
      return false;
    }
    try {
      payment = await call("POST", "/payments", { body: { orderId: id }, idempotency: attempt });
      attempt = key(); // answered: should this one be cancelled, the next is another
      return true;
    } catch (error) {
      if (error.away || error.status === 401) throw error;
      attempt = key();
      payment = { refused: error.message };
      return false;
    }
  };

  const draw = (order) => {
    const says = [order.status, order.expiresAt, payment?.status, payment?.failureMessage, payment?.refused, order.amount].join(" ");
    const same = says === shown;
    shown = says;
    const head = [h("h1", {}, order.performanceTitle), tag(order.status), missed];
    if (order.status === "PENDING_PAYMENT") return pending(order, head, same);
    if (order.status === "CONFIRMED") { if (!same) void confirmed(order, head).catch(failed); return null; }
    if (!same) {
      const why = {
        EXPIRED: "The seats went back because they were not paid in time. If you paid at the last moment, they are either given to you after all or your money goes back in full.",
        CANCELLED: "This order was cancelled and the seats went back.",
        REFUNDED: "This order was cancelled and your money is on its way back.",
      }[order.status];
      show(head, facts(order), notice("", why), h("a", { class: "button", href: `#/p/${order.performanceId}` }, "Back to the show"));
    }
    looks += 1;
    if (order.status !== "EXPIRED" || looks > EXPIRED_LOOKS) return null;
    return EXPIRED_LOOK_MS * Math.min(looks, 10);
  };

  const pending = (order, head, same) => {
    if (payment.refused) {
      if (!same) show(head, facts(order), notice("bad", payment.refused));
      payment = null;
      refusals += 1;
      return backoff(refusals);
    }
    if (["PROCESSING", "SUCCEEDED"].includes(payment.status)) {
      if (!same) {
        say("Your payment is being confirmed");
        show(head, facts(order), loading("Your payment has arrived; your seats are being confirmed"));
      }
      looks += 1;
      return CONFIRM_LOOK_MS * Math.min(looks, 5);
    }
    if (payment.status === "CANCELLED") payment = null; // another may be begun while the hold lasts
    if (same) return PAY_LOOK_MS;
    const declined = payment?.failureMessage && notice("bad", `The card was not charged: ${payment.failureMessage}`);
    const back = question("Give the seats back?", ["Others can choose them at once."], "Keep them", "Give them back", async () => {
      await call("DELETE", `/orders/${id}`);
      await look();
    });
    const held = until(order.expiresAt) > 0
      ? h("p", {}, "Your seats are held for ", countdown(alive, order.expiresAt, () => alive.next(500, look)), ".")
      : h("p", {}, "The time to pay is over.");
    const spot = h("div", {});
    show(head, facts(order), held, declined, spot, h("p", {}, button("Give the seats back", () => back.showModal())), back);
    if (payment?.payUrl) {
      const here = `${location.origin}${location.pathname}#/o/${id}`;
      const to = `${payment.payUrl}&return_url=${encodeURIComponent(here)}`;
      spot.replaceChildren(h("p", {}, h("a", { class: "button go", href: to }, `Pay ${money(payment.amount, payment.currency)}`)),
        h("p", { class: "small soft" }, "You pay on another page, with a test card, and come back here."));
    } else if (payment) {
      element(payment, spot).catch((error) => {
        spot.replaceChildren(notice("bad", `${error.message} Reload this page to try again; your seats stay held meanwhile.`));
      });
    }
    return PAY_LOOK_MS;
  };

  const confirmed = async (order, head) => {
    say("Your order is confirmed");
    const ticket = await call("GET", `/orders/${id}/ticket`);
    if (!alive.alive) return;
    const cancel = question("Cancel this order?", [`The seats go back and ${money(order.amount, order.currency)} is refunded.`],
      "Keep my ticket", "Cancel and refund", async () => {
        await call("DELETE", `/orders/${id}`);
        await look();
      });
    show(head,
      h("section", { class: "ticket", "aria-label": "Your ticket" },
        h("div", {}, h("h2", {}, "Your ticket"), facts(order), ticket.usedAt && h("p", {}, `Used ${shortDate(ticket.usedAt)}`), h("p", {}, h("code", {}, ticket.code))),
        h("img", { src: `data:image/svg+xml,${encodeURIComponent(ticket.qrSvg)}`, alt: "QR code of your ticket: show it at the door", width: 168, height: 168 })),
      h("p", { class: "row" }, h("button", { type: "button", onclick: () => print() }, "Print"),
        h("button", { type: "button", onclick: () => cancel.showModal() }, "Cancel this order")), cancel);
  };

  await look();
}

// Stripe's own form, when the key is a real one: the card never reaches us.
async function element(payment, spot) {
  if (!window.Stripe) {
    await new Promise((done, failed) => {
      document.head.append(h("script", { src: "https://js.stripe.com/v3/", onload: done, onerror: () => failed(new Error("Stripe cannot be reached")) }));
    });
  }
  const stripe = window.Stripe(payment.publishableKey);
  const elements = stripe.elements({ clientSecret: payment.clientSecret });
  const form = h("div", {});
  const pay = button(`Pay ${money(payment.amount, payment.currency)}`, async () => {
    const { error } = await stripe.confirmPayment({ elements, confirmParams: { return_url: location.href } });
    if (error) throw new Error(error.message);
  }, "go");
  spot.replaceChildren(form, h("p", {}, pay));
  elements.create("payment").mount(form);
}
