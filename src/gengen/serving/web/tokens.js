// A text as its tokens: each shaded by its surprisal, and reached by the arrow keys.

import { fill, h, short } from "./dom.js";

export class Drawn {
  /** label: which text this is. pick(i), where it is given, is called when a token is clicked, or entered. */
  constructor(label, pick = null) {
    this.tokens = []; // { id, name, logprob, offset }: offset in characters, not in UTF-16
    this.characters = [];
    this.pick = pick;
    const onkeydown = (event) => this.key(event);
    const onclick = (event) => this.choose([...this.list.children].indexOf(event.target.closest(".token")));
    const said = { role: "listbox", "aria-label": `tokens: ${label}`, "aria-orientation": "horizontal" };
    this.list = h("div", { class: "tokens", ...said, onkeydown, onclick });
    this.caption = h("span", {}, label);
    this.ending = h("small", {});
    this.element = h("figure", {}, h("figcaption", {}, this.caption, " ", this.ending), this.list);
  }

  /** Add what a choice has gained; returns how many tokens that is. */
  add({ text, logprobs, gengen }) {
    for (const character of text) this.characters.push(character);
    const first = Math.max(0, this.tokens.length - 1); // the last one may have been half a character
    const gained = logprobs?.tokens.length ?? 0;
    for (let i = 0; i < gained; i++) {
      const [id, name, logprob] = [logprobs.token_ids[i], logprobs.tokens[i], logprobs.token_logprobs[i]];
      this.tokens.push({ id, name, logprob, offset: logprobs.text_offset[i] });
    }
    for (let i = first; i < this.tokens.length; i++) this.show(i);
    if (gengen) fill(this.ending, ENDINGS[gengen.finish_reason] ?? gengen.finish_reason);
    return gained;
  }

  /** A character that several tokens make stands at the last of them; those before are empty. */
  show(i) {
    const { offset, name, logprob } = this.tokens[i];
    const text = this.characters.slice(offset, this.tokens[i + 1]?.offset).join("");
    let element = this.list.children[i];
    if (!element) {
      element = h("span", { role: "option", "aria-selected": "false", tabindex: i ? "-1" : "0" });
      this.list.append(element);
    }
    element.textContent = text;
    element.className = `token ${this.shade(i)}${text.includes("\n") ? " newline" : ""}`;
    element.title = `${name}: ${short(-logprob)} nats`;
    element.setAttribute("aria-label", visible(text || name));
  }

  shade(i) {
    return `shade-${Math.min(9, Math.floor(-this.tokens[i].logprob))}`;
  }

  get text() {
    return this.characters.join("");
  }

  get ids() {
    return this.tokens.map((token) => token.id);
  }

  get surprisals() {
    return this.tokens.map((token, i) => [i, -token.logprob]);
  }

  key(event) {
    const now = [...this.list.children].indexOf(document.activeElement);
    const last = this.tokens.length - 1;
    if (now < 0 || event.ctrlKey || event.metaKey) return;
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: last }[event.key];
    if (to !== undefined) this.move(Math.max(0, Math.min(last, to)));
    else if (event.key === "Enter" || event.key === " ") this.choose(now);
    else return;
    event.preventDefault();
  }

  move(i) {
    for (const token of this.list.querySelectorAll("[tabindex='0']")) token.tabIndex = -1;
    this.list.children[i].tabIndex = 0;
    this.list.children[i].focus();
  }

  choose(i) {
    if (i >= 0 && this.pick) this.pick(i);
  }

  /** Mark one token, or none. */
  mark(i) {
    [...this.list.children].forEach((token, j) => {
      token.classList.toggle("chosen", i === j);
      token.setAttribute("aria-selected", String(i === j));
    });
  }
}

const ENDINGS = {
  end: "· the model ended it", length: "· cut off: no more tokens were asked for, or fit", stop: "· ended",
};

/** A text with what cannot be seen made visible. */
export function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}
