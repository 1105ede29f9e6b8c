// What a run drew while it was trained: the files that it wrote on the way, and a slider over their steps.

import { get } from "./api.js";
import { labelled } from "./controls.js";
import { fill, h } from "./dom.js";

/** The address of what a run's files say. */
export const fileUrl = (name, rest) => `/gengen/v1/runs/${encodeURIComponent(name)}/${rest}`;

/** What a run drew on the way, the oldest first: { step, name, kind }. */
export async function samplesOf(name, signal) {
  const { data } = await get(fileUrl(name, "samples"), signal);
  return data.map((file) => ({ ...file, step: Number(file.name.match(/^step-(\d+)/)?.[1] ?? 0) }));
}

/** A sample as it is: a picture, or a text. */
export async function sample(run, { name, kind, step }, said, signal) {
  const path = fileUrl(run, `samples/${encodeURIComponent(name)}`);
  const caption = h("figcaption", {}, `step ${step}`);
  if (kind === "picture") {
    return h("figure", {}, h("img", { src: path, alt: said, class: "sample", loading: "lazy" }), caption);
  }
  const response = await fetch(path, { signal });
  const text = response.ok ? await response.text() : `the server answered ${response.status}`;
  const words = h("pre", { tabindex: "0", role: "region", "aria-label": said }, text);
  return h("figure", { class: "words" }, words, caption);
}

/**
 * A slider over the steps at which some runs drew; of each run the newest sample up to that step is shown beside the
 * others'. lists: [{ name, files }]; `at` of the state is the step; changed(step) is called with each choice.
 * Returns null where nothing was drawn.
 */
export function scrubber(state, lists, signal, changed) {
  const steps = [...new Set(lists.flatMap(({ files }) => files.map((file) => file.step)))].sort((a, b) => a - b);
  if (!steps.length) return null;
  const [now, shown, made] = [h("output", {}), h("div", { class: "columns scrubbed" }), new Map()];
  const newest = (files, step) => files.findLast((file) => file.step <= step);
  const element = ({ name, files }, step) => {
    const file = newest(files, step);
    if (!file) return h("figure", {}, h("p", {}, `${name} had drawn nothing yet`));
    const key = `${name}/${file.name}`;
    if (!made.has(key)) made.set(key, sample(name, file, `${name} at step ${file.step}`, signal));
    return made.get(key);
  };
  let latest = null;
  async function show() {
    const step = (latest = steps[control.value]);
    now.textContent = `${step} of ${steps.at(-1)}`;
    control.setAttribute("aria-valuetext", `step ${step}`);
    changed?.(step);
    const failed = (problem) => h("p", {}, problem.message);
    const elements = await Promise.all(lists.map((one) => element(one, step))).catch(failed);
    // else the slider has gone on meanwhile, or the page was left
    if (step === latest && !signal.aborted) fill(shown, elements);
  }
  const oninput = () => (state.set({ at: steps[control.value] }), show());
  const control = h("input", { type: "range", min: 0, max: steps.length - 1, step: 1, oninput });
  const wanted = steps.findLastIndex((step) => step <= state.number("at", Infinity));
  control.value = Math.max(0, wanted);
  const field = labelled("Step of training", control, "what training drew at each of its steps");
  field.querySelector("label").append(" ", now);
  show();
  return h("div", {}, h("form", { onsubmit: (event) => event.preventDefault() }, field), shown);
}
