// Paying, on a device whose clock is wrong.

import { ask, called, device, equal, holds, member, says, sql, tab, text, turn, until } from "./lib.mjs";

// A page of an order that waits for payment.
async function held(performance, options) {
  const buyer = await member();
  const place = await turn(buyer, performance.id);
  const order = await ask("POST", "/orders", { ...buyer, queueToken: place.queueToken, body: { scheduleId: performance.schedule, bestAvailable: { count: 2 } } });
  equal(order.status, 201, JSON.stringify(order.body));
  const context = await device(buyer, options);
  return [await tab(context, `/o/${order.body.id}`), order.body, buyer];
}
const second = () => new Promise((done) => setTimeout(done, 1000));
const payments = /^POST \/payments$/;

export const cases = {
  async a_clock_ahead_loops_nothing(performance) {
    const [page] = await held(performance, { ahead: 480_000 });
    await says(page, "Your seats are held for");
    const before = page.calls.length;
    for (let i = 0; i < 5; i += 1) await second();
    holds(page.calls.length - before <= 6, `${page.calls.length - before} calls in five seconds: ${JSON.stringify(page.calls.slice(before))}`);
    equal(called(page, payments).length, 1, "one payment is begun");
    holds((await text(page)).includes("Your seats are held for"), "it is still to be paid");
  },

  async what_is_paid_shows_and_rests(performance) {
    const [page] = await held(performance);
    const pay = page.getByRole("link", { name: /^Pay / });
    await pay.waitFor();
    await page.getByRole("button", { name: "Give the seats back" }).first().focus();
    for (let i = 0; i < 5; i += 1) await second();
    equal(await page.evaluate(() => document.activeElement.textContent), "Give the seats back", "the page is not drawn anew while nothing changes");
    await pay.click();
    await page.getByRole("button").first().click();
    await page.getByRole("img", { name: /QR code/ }).waitFor();
    const calls = page.calls.length;
    for (let i = 0; i < 3; i += 1) await second();
    equal(page.calls.length, calls, "a ticket is not asked for again");
  },

  async what_expires_is_asked_for_ever_more_slowly_and_then_no_more(performance) {
    const [page, order] = await held(performance);
    await says(page, "Your seats are held for");
    await sql(`update reservations.orders set expires_at = now() - interval '1 second' where id = '${order.id}'`);
    await says(page, "were not paid in time");
    const before = page.calls.length;
    for (let i = 0; i < 12; i += 1) await second();
    holds(page.calls.length - before <= 3, `${page.calls.length - before} calls in twelve seconds`);
    equal(called(page, payments).length, 1, "one payment was begun");
  },

  async giving_back_asks(performance) {
    const [page, order, buyer] = await held(performance);
    await page.getByRole("button", { name: "Give the seats back" }).first().click();
    await page.getByRole("button", { name: "Keep them" }).click();
    equal(called(page, /^DELETE /).length, 0, "nothing is given back before the answer");
    await page.getByRole("button", { name: "Give the seats back" }).first().click();
    await page.getByRole("button", { name: "Give them back" }).click();
    await says(page, "the seats went back");
    equal((await ask("GET", `/orders/${order.id}`, buyer)).body.status, "CANCELLED", "the order");
  },

  async a_payment_that_is_refused_is_tried_again_slowly(performance) {
    const buyer = await member();
    const place = await turn(buyer, performance.id);
    const order = await ask("POST", "/orders", { ...buyer, queueToken: place.queueToken, body: { scheduleId: performance.schedule, bestAvailable: { count: 1 } } });
    const context = await device(buyer);
    const page = await tab(context);
    let tries = 0;
    await page.route(/\/api\/v1\/payments$/, (route) => {
      tries += 1;
      return route.fulfill({ status: 409, contentType: "application/problem+json", body: JSON.stringify({ code: "ORDER_NOT_PAYABLE", detail: "Not now." }) });
    });
    await page.goto(`${process.env.PAGE_URL}/#/o/${order.body.id}`);
    await says(page, "Not now.");
    const before = tries;
    for (let i = 0; i < 10; i += 1) await second();
    holds(tries - before <= 5, `${tries - before} tries in ten seconds`);
    await page.unroute(/\/api\/v1\/payments$/);
    await says(page, "Your seats are held for");
  },
};
