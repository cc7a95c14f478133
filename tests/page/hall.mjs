// Choosing seats, while others do.

import { ask, called, device, equal, holds, member, says, tab, text, turn, until, url } from "./lib.mjs";

const looks = /^GET .*\/tokens\/me$/;
const orders = /^POST \/orders$/;

// A page of somebody whose turn it is, in front of the whole hall.
async function hall(performance, options) {
  const buyer = await member();
  const is = await turn(buyer, performance.id);
  const context = await device(buyer, { ...options, place: { performance: performance.id, is } });
  const page = await tab(context, `/p/${performance.id}/seats`);
  await until("the hall", () => page.locator(".hall .seat").count()).catch(async (error) => {
    throw new Error(`${error.message}; ${page.url()}; ${await text(page)}; ${JSON.stringify(page.calls)}; ${page.wrong}`);
  });
  return page;
}

const free = (page) => page.locator('.hall .seat[aria-pressed="false"][aria-disabled="false"]');
// Chooses `count` free seats; their ids.
async function choose(page, count) {
  const ids = [];
  for (let i = 0; i < count; i += 1) {
    const seat = free(page).nth(3);
    ids.push(await seat.getAttribute("data-id"));
    await seat.click();
  }
  equal(await page.locator('.hall .seat[aria-pressed="true"]').count(), count, "chosen");
  return ids;
}

// Somebody else takes these seats.
async function taken({ id, schedule }, seatIds) {
  const rival = await member();
  const place = await turn(rival, id);
  const order = await ask("POST", "/orders", { ...rival, queueToken: place.queueToken, body: { scheduleId: schedule, seatIds } });
  equal(order.status, 201, JSON.stringify(order.body));
}

const holdAndPay = (page) => page.getByRole("button", { name: "Hold and pay" });
const focused = (page) => page.evaluate(() => document.activeElement.textContent);

export const cases = {
  async a_seat_lost_when_it_is_held_is_said_and_fewer_are_asked_for(performance) {
    const page = await hall(performance);
    await page.route(/\/schedules\/.*\/seats$/, (route) => route.abort());
    const [, second] = await choose(page, 2);
    await taken(performance, [second]);
    await page.unroute(/\/schedules\/.*\/seats$/);
    await page.route(/\/schedules\/.*\/seats$/, (route) => route.fulfill({ status: 304 })); // what is shown stays old
    await holdAndPay(page).focus();
    await page.keyboard.press("Enter");
    await says(page, "Someone was faster");
    await says(page, "You chose 2 seats; one is left");
    equal(await focused(page), "Hold and pay", "the focus stays");
    await page.keyboard.press("Enter");
    await new Promise((done) => setTimeout(done, 1000));
    equal(called(page, orders).length, 1, "one seat is not bought in place of two by the same button");
    await page.getByRole("button", { name: "Take 1 seat" }).click();
    await until("the order", () => page.url().includes("#/o/"));
    equal(called(page, orders).map((call) => call.status), [409, 201], "orders");
    equal(page.wrong, [], "errors of the page");
  },

  async a_seat_lost_while_choosing_is_said_until_another_is_chosen(performance) {
    const page = await hall(performance);
    const [first] = await choose(page, 2);
    await taken(performance, [first]);
    await says(page, "Someone was faster");
    await says(page, "You chose 2 seats; one is left");
    await holdAndPay(page).click({ force: true });
    equal(called(page, orders).length, 0, "nothing is bought before the choice is made again");
    await free(page).nth(2).click();
    await until("the words go", async () => !(await text(page)).includes("faster"));
    await holdAndPay(page).click();
    await until("the order", () => page.url().includes("#/o/"));
    await says(page, "Your seats are held for");
  },

  async all_seats_lost_are_said(performance) {
    const page = await hall(performance);
    const ids = await choose(page, 1);
    await taken(performance, ids);
    await says(page, "Someone was faster");
    await says(page, "Choose others");
  },

  async a_lost_answer_is_asked_for_again_with_the_same_key(performance) {
    const page = await hall(performance);
    await choose(page, 2);
    const keys = [];
    await page.route(/\/api\/v1\/orders$/, async (route) => {
      if (route.request().method() !== "POST") return route.continue();
      keys.push(route.request().headers()["idempotency-key"]);
      const answer = await route.fetch();
      if (keys.length === 1) return route.fulfill({ status: 502, body: "<html>" });
      return route.fulfill({ response: answer });
    });
    await holdAndPay(page).click();
    await says(page, "Press again");
    await holdAndPay(page).click();
    await until("the order", () => page.url().includes("#/o/"));
    equal(keys.length, 2, "tries");
    equal(keys[0], keys[1], "the key");
  },

  async another_wish_has_another_key(performance) {
    const page = await hall(performance);
    await choose(page, 1);
    const keys = [];
    await page.route(/\/api\/v1\/orders$/, async (route) => {
      keys.push(route.request().headers()["idempotency-key"]);
      await (keys.length === 1 ? route.fulfill({ status: 503, body: "", headers: { "Retry-After": "1" } }) : route.continue());
    });
    await holdAndPay(page).click();
    await says(page, "Press again");
    await free(page).nth(5).click();
    await holdAndPay(page).click();
    await until("the order", () => page.url().includes("#/o/"));
    holds(keys[0] !== keys[1], "another choice is another order");
  },

  async a_turn_is_asked_for_as_often_as_the_server_says(performance) {
    const page = await hall(performance);
    const told = [];
    page.on("response", async (answer) => {
      if (looks.test(`GET ${new URL(answer.url()).pathname}`) && answer.ok()) told.push({ at: Date.now(), wait: (await answer.json()).pollAfterMs });
    });
    await until("four answers", () => told.length >= 4, 120_000);
    // A busy machine may be late now and then; who waits ten seconds always is.
    const late = told.slice(1).map((one, i) => one.at - told[i].at - told[i].wait);
    holds(Math.min(...late) < 2500, `asked so many ms later than told: ${late}`);
  },

  async a_turn_ends_when_the_server_says(performance) {
    const page = await hall(performance, { ahead: 480_000 });
    await choose(page, 1);
    await new Promise((done) => setTimeout(done, 3000));
    holds(!(await text(page)).includes("has ended"), "a device eight minutes ahead ends the turn");
    await says(page, "Your turn ends in");
    await page.route(/tokens\/me$/, (route) => route.fulfill({ status: 410, contentType: "application/problem+json", body: JSON.stringify({ code: "QUEUE_TOKEN_EXPIRED" }) }));
    await says(page, "Your turn has ended");
    // What was under way may still be answered; nothing new is asked.
    const asked = [];
    page.on("request", (request) => asked.push(request.url()));
    await new Promise((done) => setTimeout(done, 5000));
    equal(asked, [], "nothing asks any more");
  },

  async a_tap_touches_one_seat_and_makes_no_formatter(performance) {
    const page = await hall(performance);
    const seats = await page.locator(".hall .seat").count();
    equal(seats, 1200, "seats");
    const did = await page.evaluate(async () => {
      const real = Intl.NumberFormat;
      let formats = 0;
      Intl.NumberFormat = function (...args) { formats += 1; return new real(...args); };
      const touched = new Set();
      const watch = new MutationObserver((changes) => changes.forEach((change) => touched.add(change.target)));
      watch.observe(document.querySelector(".hall"), { subtree: true, attributes: true, childList: true });
      document.querySelectorAll('.hall .seat[aria-disabled="false"]')[600].click();
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      watch.disconnect();
      return { formats, touched: touched.size };
    });
    equal(did.formats, 0, "formatters");
    holds(did.touched <= 2, `${did.touched} elements of the hall changed: the seat, and the one that had the focus`);
  },
};
