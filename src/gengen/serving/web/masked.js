// How much of the vocabulary the form of an answer forbids, step by step.

import { lines } from "./chart.js";
import { h } from "./dom.js";

/** allowed: how many tokens could come next, at each step; vocabulary: how many there are. */
export function masked(allowed, vocabulary) {
  const points = allowed.map((count, i) => [i + 1, 100 * (1 - count / vocabulary)]);
  const forced = allowed.filter((count) => count === 1).length;
  const name = "Share of all tokens that the form forbids";
  const range = `${Math.min(...allowed)} to ${Math.max(...allowed)} of ${vocabulary} tokens may come next at a step. `;
  const said =
    `At ${forced} of ${allowed.length} steps it is one alone: there the form writes, and the model has no say.`;
  const chart = lines([{ name, points }], name, { x: "steps", y: "%" });
  return h("div", { class: "masked" }, chart, h("p", {}, range, said));
}
