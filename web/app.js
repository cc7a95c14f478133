// The way through: which view stands behind which address.

import { session } from "/web/api.js";
import { h, leave, notice, onFailed, onLeave, show } from "/web/dom.js";
import { performance, shows } from "/web/shows.js";
import { signIn } from "/web/members.js";
import { backoff, queue } from "/web/queue.js";
import { seats } from "/web/seats.js";
import { order, orders } from "/web/orders.js";

const id = "([0-9a-f-]{36})";
const routes = [
  [/^\/?$/, shows, "Shows"],
  [/^\/sign-in$/, signIn, "Sign in"],
  [new RegExp(`^/p/${id}$`), performance, "Show"],
  [new RegExp(`^/p/${id}/queue$`), queue, "Queue", true],
  [new RegExp(`^/p/${id}/seats$`), seats, "Seats", true],
  [/^\/orders$/, orders, "My orders", true],
  [new RegExp(`^/o/${id}$`), order, "Order", true],
];

function menu() {
  const nav = document.getElementById("nav");
  const user = session.user;
  nav.replaceChildren(
    h("a", { href: "#/" }, "Shows"),
    user && h("a", { href: "#/orders" }, "My orders") || "",
    user
      ? h("button", { class: "plain", type: "button", onclick: () => { session.end(); location.hash = "#/"; } }, `Sign out ${user.name}`)
      : h("a", { href: "#/sign-in" }, "Sign in"),
  );
}

// Failures in a row to show what is asked for.
let failures = 0;

async function go() {
  const [path, search] = (location.hash.slice(1) || "/").split("?");
  leave();
  const found = routes.find(([pattern]) => pattern.test(path));
  if (!found) {
    show(h("h1", {}, "There is nothing here"), h("a", { href: "#/" }, "All shows"));
    return;
  }
  const [pattern, view, title, members] = found;
  if (members && !session.tokens) {
    location.replace(`#/sign-in?next=${encodeURIComponent(location.hash.slice(1))}`);
    return;
  }
  document.title = `${title} · Ticketping`;
  document.getElementById("view").focus({ preventScroll: true });
  scrollTo(0, 0);
  let here = true;
  onLeave(() => { here = false; });
  const used = session.tokens?.refreshToken;
  const wrong = (error) => {
    if (!here) return;
    leave();
    if (error.status === 401 && members) {
      session.forget(used);
      location.replace(`#/sign-in?next=${encodeURIComponent(location.hash.slice(1))}`);
      return;
    }
    show(
      h("h1", {}, error.status === 404 ? "Not found" : "That did not work"),
      notice("bad", error.message, error.away && h("p", { class: "small" }, "Trying again by itself.")),
      h("button", { type: "button", onclick: go }, "Try again"),
    );
    if (!error.away) return;
    const timer = setTimeout(go, Math.max((error.retryAfter ?? 0) * 1000, backoff(failures)));
    onLeave(() => clearTimeout(timer));
    failures += 1;
  };
  onFailed(wrong);
  try {
    await view(path.match(pattern)[1], new URLSearchParams(search));
    failures = 0;
  } catch (error) {
    wrong(error);
  }
}

// Signed in or out, here or in another tab.
let member = session.user?.id;
function changed() {
  menu();
  if (member === session.user?.id) return;
  member = session.user?.id;
  const path = location.hash.slice(1).split("?")[0] || "/";
  if (routes.some(([pattern, , , members]) => members && pattern.test(path))) go();
}

addEventListener("hashchange", go);
addEventListener("session", changed);
menu();
go();
