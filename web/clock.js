// The server's time, as its answers tell it: the clock of the device may be minutes off, and is
// never asked what time it is.

// The server's time is `performance.now()` plus a number between these two, in milliseconds.
let least = -Infinity;
let most = Infinity;
// How the device's two clocks stood to each other then: a device that slept moves only one.
let apart = null;
let asked = -Infinity;

const drift = () => Math.abs(Date.now() - performance.now() - apart);

// An answer was sent in the second that its `Date` names, between our asking and our hearing it.
export function hear(response, sent, heard) {
  const second = Date.parse(response.headers.get("Date"));
  if (Number.isNaN(second)) return;
  const [low, high] = [second - heard, second + 1000 - sent];
  // Answers that contradict each other: a clock was set, or the device slept. The newest counts.
  const fits = apart !== null && drift() < 1000 && low <= most && high >= least;
  least = fits ? Math.max(least, low) : low;
  most = fits ? Math.min(most, high) : high;
  apart = Date.now() - performance.now();
}

// Milliseconds since 1970 at the server, at most half a second and half a round trip off.
export function now() {
  if (apart === null) return Date.now(); // before the first answer
  return (least + most) / 2 + performance.now();
}

// Milliseconds from now to a time that the server named; negative when it has passed.
export const until = (time) => new Date(time).getTime() - now();

// Asks anew when the device may have slept, at most every ten seconds.
export async function check() {
  if (apart !== null && (drift() < 1000 || performance.now() - asked < 10_000)) return;
  asked = performance.now();
  const sent = performance.now();
  try {
    hear(await fetch("/web/icon.svg", { method: "HEAD", cache: "no-store" }), sent, performance.now());
  } catch { /* offline: whoever asks for more than the time says so */ }
}
