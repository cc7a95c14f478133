// Runs one group of cases, all at once: `node main.mjs GROUP`. Each has a performance of its own.

import { close } from "./lib.mjs";

const { cases } = await import(`./${process.argv[2]}.mjs`);
const performances = JSON.parse(process.env.PAGE_PERFORMANCES);
const only = process.env.PAGE_ONLY;
const names = Object.keys(cases).filter((name) => !only || name.includes(only));
if (names.length > performances.length) throw new Error(`${names.length} cases, ${performances.length} performances`);
const results = await Promise.all(names.map(async (name, at) => {
  try {
    await cases[name](performances[at]);
    return null;
  } catch (error) {
    return `${name}: ${error.stack}`;
  }
}));
await close();
const wrong = results.filter(Boolean);
console.error(`${names.length} cases, ${wrong.length} failed${wrong.map((one) => `\n- ${one}`).join("")}`);
process.exit(wrong.length ? 1 : 0);
