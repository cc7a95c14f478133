// The opening minute, on devices whose clocks are wrong, asleep, or in the background.

import { called, device, equal, holds, member, says, sleep, sql, tab, text, until } from "./lib.mjs";

// Opens the performance so many milliseconds from now; when that is.
async function opensIn({ id }, ms, preQueueMs) {
  const at = Date.now() + ms;
  await sql(`update performances.performances set booking_opens_at = to_timestamp(${at / 1000}) where id = '${id}'`);
  if (preQueueMs) await sql(`insert into queue.settings (performance_id, pre_queue_opens_at) values ('${id}', to_timestamp(${(Date.now() + preQueueMs) / 1000}))
    on conflict (performance_id) do update set pre_queue_opens_at = excluded.pre_queue_opens_at`);
  return at;
}

const entries = (page) => called(page, /^POST \/queues\/.*\/tokens$/);
const entered = (page) => entries(page).find((call) => call.status < 300);

// Enters by itself soon after the opening, as the server sees it, and asks seldom before.
async function entersInTime(page, opens) {
  const call = await until("it enters", () => entered(page), opens - Date.now() + 60_000)
    .catch(async (error) => { throw new Error(`${error.message}; ${await text(page)}; ${JSON.stringify(page.calls)}`); });
  holds(call.at >= opens - 200, `entered ${opens - call.at} ms before the opening`);
  // A second of spread, a second that the clocks of answers leave open, and a very busy machine: what
  // these cases are about came 45 s late, a minute late, or never.
  holds(call.at - opens < 15_000, `entered ${call.at - opens} ms after the opening`);
  holds(entries(page).length <= 6, `${entries(page).length} tries: ${JSON.stringify(entries(page))}`);
  equal(page.wrong, [], "errors of the page");
}

const waits = async (performance, options) => {
  const context = await device(await member(), options);
  const page = await tab(context);
  const opens = await opensIn(performance, 25_000);
  await sleep(1500); // the server's own caches of the opening are a second old at most
  await page.goto(`${process.env.PAGE_URL}/#/p/${performance.id}/queue`);
  await says(page, "The queue opens in");
  return [page, opens];
};

// Timers as in a background tab of Chrome after five minutes: who sets one from another, five deep,
// waits for the next full minute. https://developer.chrome.com/blog/timer-throttling-in-chrome-88
const background = () => {
  const [later, every] = [setTimeout.bind(globalThis), setInterval.bind(globalThis)];
  let depth = 0;
  const minute = () => 60_000 - (Date.now() % 60_000) + 20_000;
  globalThis.setTimeout = (act, ms, ...args) => {
    const mine = depth + 1;
    return later(() => { depth = mine; try { act(...args); } finally { depth = 0; } }, mine > 5 ? Math.max(ms, minute()) : ms);
  };
  globalThis.setInterval = (act, ms, ...args) => {
    let ran = 0;
    let due = 0;
    return every(() => {
      ran += 1;
      if (ran > 5 && Date.now() < due) return;
      due = Date.now() + minute();
      depth = ran; try { act(...args); } finally { depth = 0; }
    }, ms);
  };
};

// A device that sleeps: no timer runs, until somebody looks at the page again.
const asleep = () => {
  const real = setTimeout.bind(globalThis);
  globalThis.setTimeout = (act, ms, ...args) => real(() => { if (!globalThis.sleeping) act(...args); }, ms);
};

export const cases = {
  async ahead(performance) {
    const [page, opens] = await waits(performance, { ahead: 3000 });
    await entersInTime(page, opens);
    holds(!(await text(page)).includes("closed"), "it says that booking has closed");
  },

  async eight_minutes_ahead(performance) {
    const [page, opens] = await waits(performance, { ahead: 480_000 });
    await entersInTime(page, opens);
  },

  async behind(performance) {
    const [page, opens] = await waits(performance, { ahead: -45_000 });
    await entersInTime(page, opens);
  },

  async in_the_background(performance) {
    const [page, opens] = await waits(performance, { script: background });
    await entersInTime(page, opens);
  },

  async asleep(performance) {
    const [page, opens] = await waits(performance, { script: asleep });
    await page.evaluate(() => { globalThis.sleeping = true; });
    await until("the opening", () => Date.now() > opens + 3000);
    equal(entries(page).length, 1, "asleep, it does nothing");
    await page.evaluate(() => { globalThis.sleeping = false; document.dispatchEvent(new Event("visibilitychange", { bubbles: true })); });
    await until("awake, it enters", () => entered(page));
  },

  async before_the_pre_queue(performance) {
    const context = await device(await member(), { ahead: -45_000 });
    const page = await tab(context);
    const opens = await opensIn(performance, 70_000, 25_000);
    // The queue hears of the pre-queue when it looks at its settings next.
    await until("the pre-queue is known", async () => (await (await fetch(`${process.env.PAGE_URL}/api/v1/queues/${performance.id}`)).json()).preQueueOpensAt, 23_000);
    await page.goto(`${process.env.PAGE_URL}/#/p/${performance.id}/queue`);
    await says(page, "You can register in");
    await says(page, "You are registered");
    holds(Date.now() < opens, "registered before the opening");
    await says(page, "Places are drawn by lot in");
    const drawn = await until("the draw is made", () => called(page, /^GET .*\/tokens\/me$/).find((call) => call.status === 200 && call.at >= opens), 120_000);
    holds(drawn.at - opens < 20_000, `it asked ${drawn.at - opens} ms after the opening`);
    await until("a turn", async () => page.url().includes("/seats"));
    equal(entries(page).filter((call) => call.status === 201).length, 1, "registered once");
    equal(page.wrong, [], "errors of the page");
  },

  async a_show_that_is_not_open_says_when(performance) {
    await opensIn(performance, 3_600_000);
    const page = await tab(await device(null, { ahead: 7_200_000 }));
    await sleep(1500);
    await page.goto(`${process.env.PAGE_URL}/#/p/${performance.id}`);
    await says(page, "Booking opens");
    equal(await page.getByRole("link", { name: "Wait here" }).count(), 1, "a way to wait");
  },
};
