// Sign in, or sign up and be signed in.

import { call, session } from "/web/api.js";
import { h, say, show } from "/web/dom.js";

function field(name, label, attributes) {
  return h("div", {},
    h("label", { for: name }, label),
    h("input", { id: name, name, required: true, "aria-describedby": `${name}-err`, ...attributes }),
    h("p", { class: "err", id: `${name}-err`, hidden: true }));
}

export function signIn(_, search) {
  let joining = search.has("join");
  const next = search.get("next");
  const draw = () => {
    const wrong = h("p", { class: "err", role: "alert" });
    const submit = h("button", { class: "go", type: "submit" }, joining ? "Create my account" : "Sign in");
    const form = h("form", { class: "card" },
      h("h1", {}, joining ? "Create an account" : "Sign in"),
      next && h("p", { class: "soft" }, "You need an account to book. Your place is kept on it."),
      joining && field("name", "Name", { autocomplete: "name", maxlength: 100 }),
      field("email", "E-mail", { type: "email", autocomplete: "email" }),
      field("password", joining ? "Password (8 characters or more)" : "Password",
        { type: "password", minlength: joining ? 8 : null, autocomplete: joining ? "new-password" : "current-password" }),
      wrong, submit,
      h("button", { class: "plain", type: "button", onclick: () => { joining = !joining; draw(); } },
        joining ? "I have an account" : "I am new here"));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      submit.disabled = true;
      wrong.textContent = "";
      form.querySelectorAll(".err[id]").forEach((line) => { line.hidden = true; });
      const { name, email, password } = Object.fromEntries(new FormData(form));
      try {
        if (joining) await call("POST", "/users", { body: { name, email, password }, bare: true });
        await session.start(email, password);
        say(`Signed in as ${session.user.name}`);
        location.replace(next?.startsWith("/") ? `#${next}` : "#/");
      } catch (error) {
        wrong.textContent = error.message;
        for (const { field, message } of error.body?.errors ?? []) {
          const line = form.querySelector(`#${CSS.escape(field)}-err`);
          if (line) { line.textContent = message; line.hidden = false; }
        }
        submit.disabled = false;
      }
    });
    show(form);
    form.querySelector("input").focus();
  };
  draw();
}
