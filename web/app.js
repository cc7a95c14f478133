// The way through: which view stands behind which address.

import { session } from "/web/api.js";
import { h, leave, notice, onLeave, show } from "/web/dom.js";
import { performance, shows } from "/web/shows.js";
import { signIn } from "/web/members.js";
import { queue } from "/web/queue.js";
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
  try {
    await view(path.match(pattern)[1], new URLSearchParams(search));
  } catch (error) {
    if (!here) return;
    if (error.status === 401 && members) {
      session.end();
      location.replace(`#/sign-in?next=${encodeURIComponent(location.hash.slice(1))}`);
      return;
    }
    show(
      h("h1", {}, error.status === 404 ? "Not found" : "That did not work"),
      notice("bad", error.message),
      h("button", { type: "button", onclick: go }, "Try again"),
    );
  }
}

addEventListener("hashchange", go);
addEventListener("session", menu);
menu();
go();
