// Where prompts come from: those that a visitor writes, or those that were held out from a run's training, ten at a
// time.

import { post } from "./api.js";
import { textField } from "./controls.js";
import { fill, h } from "./dom.js";

const AT_ONCE = 10;

/**
 * `own` of the state is the number of the first held-out prompt; without it the written ones count.
 * run(): the name of the run. Returns { element, prompts(), show() }: prompts() waits until they are there.
 */
export function promptSource(state, run, signal) {
  const element = h("div", { class: "wide" });
  const button = (label, own) => h("button", { type: "button", onclick: () => choose(own) }, label);
  let ready = Promise.resolve([]);

  function choose(own) {
    state.set({ own, number: null }); // pairs begin anew
    state.push();
    show();
  }
  function written() {
    const field = textField(state, "prompts", "Prompts, one a line, taken in turn", { rows: 3 });
    const hint = h("small", {}, "ten that were held out from its training");
    fill(element, field, h("p", {}, button("Prompts of the run", 0), " ", hint));
    return null;
  }
  async function held(first) {
    const { of, prompts } = await post("/gengen/v1/prompts", { model: run(), first, n: AT_ONCE }, signal);
    const next = first + AT_ONCE < of ? first + AT_ONCE : 0;
    const range =
      `Prompts ${first + 1} to ${first + prompts.length} of ${of} that were held out from ${run()}, taken in turn`;
    const list = h("ol", { start: first + 1 }, prompts.map((prompt) => h("li", {}, prompt)));
    const buttons = h("p", { class: "buttons" }, button("The next ten", next), button("Write them myself", null));
    fill(element, h("p", { role: "status" }, range), list, buttons);
    return prompts;
  }
  function show() {
    const own = state.number("own");
    if (own === null) return (ready = Promise.resolve(written()));
    ready = held(own);
    ready.catch((problem) => {
      const said = h("p", { role: "alert", class: "error" }, problem.message);
      if (!signal.aborted) fill(element, said, button("Write them myself", null));
    });
    return ready;
  }
  show();
  return { element, show, prompts: async () => (await ready) ?? state.get("prompts").split("\n").filter(Boolean) };
}
