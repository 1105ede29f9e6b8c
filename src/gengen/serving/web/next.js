// What could have come at one place of a text: the likeliest tokens, before and after the controls. The logits are
// asked for once; as a control moves, the page computes the rest.

import { post } from "./api.js";
import { bar } from "./chart.js";
import { fill, h, short } from "./dom.js";
import { decoded, entropy, ranked, stages } from "./odds.js";
import { visible } from "./tokens.js";

const SHOWN = 20;

/** goOn(ids) is called with all tokens up to another one that was chosen. */
export class NextTokens {
  constructor(goOn) {
    this.goOn = goOn;
    this.found = null;
    this.element = h("section", { "aria-label": "the next token" });
    this.clear();
  }

  clear() {
    this.found = null;
    const how = "Choose a token of the text, by click or by arrow keys and Enter, to see what could have stood there.";
    fill(this.element, h("p", {}, how));
  }

  /** body: model and prompt; drawn: the tokens before; token: the one that stands there. */
  async ask(body, drawn, token, settings, signal) {
    const found = await post("/gengen/v1/next", { ...body, drawn, top: 100, logits: true }, signal);
    const names = new Map(found.tokens.map((one) => [one.id, nameOf(one)]));
    names.set(token.id, token.name);
    this.found = { token, prompt: found.prompt, logits: decoded(found.logits), names };
    this.draw(settings);
  }

  draw(settings) {
    if (!this.found) return;
    const { token, prompt, logits, names } = this.found;
    const after = stages(logits, settings, prompt.slice(1)); // what begins every text is not penalized
    const [before, last] = [after[0][1], after[after.length - 1][1]];
    const odds = `${percent(before[token.id])} by the model, ${percent(last[token.id])} after the controls`;
    const likeliest = ranked(before).sort((a, b) => last[b] - last[a]).slice(0, SHOWN);
    fill(
      this.element,
      h("p", { role: "status" }, `Here stands ${visible(token.name)}: ${odds}.`),
      table("What each control leaves", ["after", "entropy", "possible tokens"], after.map(effect)),
      h("div", { class: "scroll odds", tabindex: "0", role: "group", "aria-label": "next tokens" },
        table(`The ${likeliest.length} likeliest tokens at this place`,
          ["token", "by the model", "after the controls", "instead"],
          likeliest.map((id) => this.row(id, visible(names.get(id) ?? `token ${id}`), before[id], last[id])))),
    );
  }

  row(id, name, before, after) {
    const { token, prompt } = this.found;
    const goOn = h(
      "button",
      { type: "button", "aria-label": `go on with ${name}`, onclick: () => this.goOn([...prompt, id]) },
      "go on",
    );
    const cells = [bar(before, percent(before)), bar(after, percent(after)), goOn].map((cell) => h("td", {}, cell));
    return h("tr", { class: id === token.id && "here" }, h("th", { scope: "row" }, h("code", {}, name)), cells);
  }

  fail(error) {
    this.clear();
    this.element.append(h("p", { role: "alert", class: "error" }, error.message));
  }
}

function table(caption, names, rows) {
  const head = h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)));
  return h("table", {}, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, rows));
}

/** What is left after a control. Entropy: how uncertain the next token is. */
function effect([name, found]) {
  const possible = found.reduce((count, p) => count + (p > 0), 0);
  const cells = [`${short(entropy(found))} nats`, String(possible)].map((cell) => h("td", {}, cell));
  return h("tr", {}, h("th", { scope: "row" }, name === "model" ? "the model" : name), cells);
}

function nameOf({ bytes, text, special }) {
  return special ?? (text.includes("�") ? `bytes ${bytes}` : text);
}

const percent = (p) => `${short(100 * p)} %`;
