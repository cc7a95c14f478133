// The hall, with two seats chosen: for README.md.

import { ask, close, device, member, tab, turn, until, url } from "./lib.mjs";

const performances = (await ask("GET", "/performances?limit=24")).body.items;
const open = performances.find((one) => one.booking === "OPEN" && one.remainingSeats > 100);
const buyer = await member();
const context = await device(buyer, { place: { performance: open.id, is: await turn(buyer, open.id) } });
const page = await tab(context);
await page.setViewportSize({ width: 1000, height: 760 });
await page.goto(`${url}/#/p/${open.id}/seats`);
const free = page.locator('.hall .seat[aria-pressed="false"][aria-disabled="false"]');
await until("the hall", () => free.count());
for (const at of [40, 40]) await free.nth(at).click();
await page.mouse.move(0, 0);
await page.screenshot({ path: process.env.PAGE_FILE });
await close();
process.exit(0);
