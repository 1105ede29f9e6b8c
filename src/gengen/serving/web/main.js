// Which page is shown, and for which runs.

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { State } from "./state.js";
import * as autoencoder from "./pages/autoencoder.js";
import * as chat from "./pages/chat.js";
import * as diffusion from "./pages/diffusion.js";
import * as edit from "./pages/edit.js";
import * as gan from "./pages/gan.js";
import * as ideas from "./pages/ideas.js";
import * as prefer from "./pages/prefer.js";
import * as run from "./pages/run.js";
import * as stages from "./pages/stages.js";
import * as text from "./pages/text.js";

// A page is a module: title, about (a sentence), usable(models) (those it can show), makes (the command that makes
// such a run), show(root, { state, runs, models, signal }): runs are the usable ones, signal aborts as it is left.
const PAGES = { ideas, text, chat, stages, diffusion, edit, autoencoder, gan, run, prefer };

let leave = new AbortController();

async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const state = new State();
  const main = document.querySelector("main");
  const models = (await get("/v1/models")).data;
  if (signal.aborted) return;
  const first = Object.keys(PAGES).find((name) => PAGES[name].usable(models).length);
  if (!Object.hasOwn(PAGES, state.page)) state.page = first ?? "text";
  const page = PAGES[state.page];
  document.title = `${page.title} · gengen`;
  const link = ([name, { title }]) =>
    h("a", { href: `#${name}`, "aria-current": name === state.page && "page" }, title);
  fill(document.querySelector("nav"), Object.entries(PAGES).map(link));
  const root = h("div", { class: `page ${state.page}` });
  fill(main, h("h1", {}, page.title), h("p", { class: "about" }, page.about), root);
  const runs = page.usable(models);
  if (!runs.length && page.makes) {
    fill(
      root,
      h("p", {}, "None of the runs that are served can show this. One that can:"),
      h("pre", { tabindex: "0" }, page.makes),
    );
    return;
  }
  try {
    await page.show(root, { state, runs, models, signal });
  } catch (error) {
    if (!signal.aborted) root.append(h("p", { role: "alert", class: "error" }, error.message));
  }
}

addEventListener("popstate", show); // of links and of the back button alike
show().catch(
  (error) => fill(document.querySelector("main"), h("p", { role: "alert", class: "error" }, error.message))
);
