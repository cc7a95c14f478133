// One's orders: pay what is held, see the ticket, cancel.

import { call, key } from "/web/api.js";
import { button, countdown, date, h, life, loading, money, notice, say, shortDate, show } from "/web/dom.js";

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

export async function order(id) {
  const alive = life();
  show(loading("Loading your order"));
  const order = await call("GET", `/orders/${id}`);
  const again = () => alive.alive && orderView();
  const orderView = async () => draw(await call("GET", `/orders/${id}`));

  const draw = async (order) => {
    if (!alive.alive) return;
    const head = [h("h1", {}, order.performanceTitle), tag(order.status)];
    if (order.status === "PENDING_PAYMENT") return pending(order, head);
    if (order.status === "CONFIRMED") return confirmed(order, head);
    const why = {
      EXPIRED: "The seats went back because they were not paid in time. If you paid at the last moment, they are either given to you after all or your money goes back in full.",
      CANCELLED: "This order was cancelled and the seats went back.",
      REFUNDED: "This order was cancelled and your money is on its way back.",
    }[order.status];
    show(head, facts(order), notice("", why), h("a", { class: "button", href: `#/p/${order.performanceId}` }, "Back to the show"));
    // Paid at the last moment: it may still change.
    if (order.status === "EXPIRED") alive.after(3000, again);
  };

  const pending = async (order, head) => {
    const payment = await call("POST", "/payments", { body: { orderId: id }, idempotency: key() }).catch((error) => error);
    if (!alive.alive) return;
    if (payment instanceof Error) {
      show(head, facts(order), notice("bad", payment.message));
      alive.after(2000, again);
      return;
    }
    if (["PROCESSING", "SUCCEEDED"].includes(payment.status)) {
      say("Your payment is being confirmed");
      show(head, facts(order), loading("Your payment has arrived; your seats are being confirmed"));
      alive.after(800, again);
      return;
    }
    const fresh = await call("GET", `/orders/${id}`);
    const declined = payment.failureMessage && notice("bad", `The card was not charged: ${payment.failureMessage}`);
    const cancel = button("Give the seats back", async () => { await call("DELETE", `/orders/${id}`); await orderView(); });
    const held = h("p", {}, "Your seats are held for ", countdown(fresh.expiresAt, again), ".");
    const spot = h("div", {});
    show(head, facts(order), held, declined, spot, h("p", {}, cancel));
    if (payment.payUrl) {
      const back = `${location.origin}${location.pathname}#/o/${id}`;
      const to = `${payment.payUrl}&return_url=${encodeURIComponent(back)}`;
      spot.replaceChildren(h("p", {}, h("a", { class: "button go", href: to }, `Pay ${money(payment.amount, payment.currency)}`)),
        h("p", { class: "small soft" }, "You pay on another page, with a test card, and come back here."));
    } else {
      await element(payment, spot);
    }
    // Paid in another tab, or the webhook was slow: see it here too.
    const watch = async () => {
      const now = await call("GET", `/payments/${payment.id}`).catch(() => null);
      if (now && ["PROCESSING", "SUCCEEDED", "CANCELLED"].includes(now.status)) return again();
      alive.after(4000, watch);
    };
    alive.after(4000, watch);
  };

  const confirmed = async (order, head) => {
    say("Your order is confirmed");
    const ticket = await call("GET", `/orders/${id}/ticket`);
    const question = h("dialog", { class: "card", "aria-label": "Cancel this order" });
    const keep = h("button", { type: "button", onclick: () => question.close() }, "Keep my ticket");
    question.append(h("p", {}, h("b", {}, "Cancel this order?")), h("p", {}, `The seats go back and ${money(order.amount, order.currency)} is refunded.`),
      h("div", { class: "row" }, keep, button("Cancel and refund", async () => {
        await call("DELETE", `/orders/${id}`);
        question.close();
        await orderView();
      }, "go")));
    show(head,
      h("section", { class: "ticket", "aria-label": "Your ticket" },
        h("div", {}, h("h2", {}, "Your ticket"), facts(order), ticket.usedAt && h("p", {}, `Used ${shortDate(ticket.usedAt)}`), h("p", {}, h("code", {}, ticket.code))),
        h("img", { src: `data:image/svg+xml,${encodeURIComponent(ticket.qrSvg)}`, alt: "QR code of your ticket: show it at the door", width: 168, height: 168 })),
      h("p", { class: "row" }, h("button", { type: "button", onclick: () => print() }, "Print"),
        h("button", { type: "button", onclick: () => question.showModal() }, "Cancel this order")), question);
  };

  await draw(order);
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
