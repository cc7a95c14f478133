// Waiting: what is shown while the server, the line, or another tab does something unusual.

import { ask, called, device, equal, holds, member, says, tab, text, turn, until } from "./lib.mjs";

const admin = process.env.PAGE_ADMIN;
const looks = /^GET .*\/tokens\/me$/;

// A page of somebody who waits: all turns are taken.
async function waiting({ id }, buyer) {
  await turn(await member(), id);
  const context = await device(buyer ?? await member());
  const page = await tab(context, `/p/${id}/queue`);
  await says(page, "Your number is");
  return [page, context];
}

const change = async ({ id }, what) => {
  const { status, body } = await ask("PATCH", `/admin/v1/queues/${id}`, { token: admin, body: { ...what, reason: "a test of the page" } });
  equal(status, 200, JSON.stringify(body));
};

export const cases = {
  async offline_is_shown_and_ends(performance) {
    const [page, context] = await waiting(performance);
    await page.getByRole("button", { name: "Leave the queue" }).first().focus();
    await context.setOffline(true);
    await says(page, "Your place is kept. Trying again by itself.");
    holds((await text(page)).includes("Last answer at"), "the time of the last answer");
    await context.setOffline(false);
    await until("the words go", async () => !(await text(page)).includes("Trying again"));
    equal(await page.evaluate(() => document.activeElement.textContent), "Leave the queue", "the focus stays");
    equal(page.wrong, [], "errors of the page");
  },

  async a_server_away_is_shown_and_asked_ever_more_slowly(performance) {
    const [page] = await waiting(performance);
    let asked = 0;
    await page.route(/tokens\/me$/, (route) => { asked += 1; return route.fulfill({ status: 502, body: "<html>bad gateway" }); });
    await says(page, "Your place is kept. Trying again by itself.");
    const before = asked;
    await new Promise((done) => setTimeout(done, 6000));
    holds(asked - before <= 4, `${asked - before} calls in six seconds`);
    await page.unroute(/tokens\/me$/);
    await until("the words go", async () => !(await text(page)).includes("Trying again"));
    equal(page.wrong, [], "errors of the page");
  },

  async a_server_that_never_answers_is_shown(performance) {
    const [page] = await waiting(performance);
    await page.route(/tokens\/me$/, () => {});
    await says(page, "The server does not answer. Your place is kept.");
  },

  async a_pause_is_told_and_has_no_estimate(performance) {
    const [page] = await waiting(performance);
    await change(performance, { paused: true });
    await says(page, "The queue is paused");
    await says(page, "No estimate");
    holds(!/About \d/.test(await text(page)), "an estimate while nobody is let in");
    await change(performance, { paused: false });
    await until("the words go", async () => !(await text(page)).includes("paused"));
  },

  async leaving_asks(performance) {
    const [page] = await waiting(performance);
    const leave = page.getByRole("button", { name: "Leave the queue" });
    await leave.first().click();
    await page.getByText("Your place goes to the next person").waitFor();
    await page.getByRole("button", { name: "Keep my place" }).click();
    equal(called(page, /^DELETE /).length, 0, "nothing is given up before the answer");
    await leave.first().click();
    await page.getByRole("dialog").getByRole("button", { name: "Leave the queue" }).click();
    await until("the page of the show", () => page.url().endsWith(`#/p/${performance.id}`));
    equal(called(page, /^DELETE /).map((call) => call.status), [204], "it is given up");
    await until("nothing asks any more", async () => {
      const before = called(page, looks).length;
      await new Promise((done) => setTimeout(done, 3000));
      return called(page, looks).length === before;
    });
  },

  async one_loop_asks_however_often_the_line_stops(performance) {
    const [page] = await waiting(performance);
    // Sold out for those who wait, again and again, each with a time to ask again.
    await page.route(/tokens\/me$/, (route) => route.fulfill({
      status: 409, contentType: "application/problem+json", body: JSON.stringify({ code: "SOLD_OUT", title: "Sold out", pollAfterMs: 1000 }),
    }));
    let asked = 0;
    page.on("request", (request) => { if (/tokens\/me$/.test(request.url())) asked += 1; });
    await says(page, "All seats are sold");
    const before = asked;
    await new Promise((done) => setTimeout(done, 5500));
    holds(asked - before <= 6, `${asked - before} calls in 5.5 s, a second apart`);
    await page.unroute(/tokens\/me$/);
    await says(page, "Your number is");
  },

  async two_tabs_renew_their_session_once(performance) {
    const buyer = await member();
    buyer.tokens = { ...buyer.tokens, accessToken: "not.a.token" }; // as one that has expired
    const context = await device(buyer);
    const [one, two] = [await tab(context, "/"), await tab(context, "/")];
    // The answer is long on its way: the second tab asks meanwhile.
    let renewals = 0;
    await context.route(/auth\/refresh$/, async (route) => {
      renewals += 1;
      const answer = await route.fetch();
      await new Promise((done) => setTimeout(done, 2000));
      await route.fulfill({ response: answer });
    });
    await Promise.all([one, two].map((page) => page.evaluate(() => { location.hash = "#/orders"; })));
    await Promise.all([says(one, "You have no orders yet"), says(two, "You have no orders yet")]);
    equal(renewals, 1, "renewals");
  },

  async a_server_away_signs_nobody_out(performance) {
    const buyer = await member();
    buyer.tokens = { ...buyer.tokens, accessToken: "not.a.token" };
    const context = await device(buyer);
    await context.route(/auth\/refresh$/, (route) => route.fulfill({ status: 503, body: "" }));
    const page = await tab(context, "/orders");
    await says(page, "That did not work");
    equal(await page.evaluate(() => JSON.parse(localStorage.getItem("tp:tokens")).refreshToken), buyer.tokens.refreshToken, "the session stays");
    await context.unroute(/auth\/refresh$/);
    await says(page, "You have no orders yet"); // by itself
  },

  async signing_out_in_one_tab_signs_out_the_other(performance) {
    const context = await device(await member());
    const [one, two] = [await tab(context, "/orders"), await tab(context, "/orders")];
    await Promise.all([says(one, "You have no orders yet"), says(two, "You have no orders yet")]);
    await one.getByRole("button", { name: /Sign out/ }).click();
    await until("the other asks to sign in", () => two.url().includes("sign-in"));
  },
};
