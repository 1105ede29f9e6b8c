// How the game of a GAN went: what training drew on the way, and how the two networks stood then.

import { get, post } from "./api.js";
import { lines } from "./chart.js";
import { Curve } from "./curve.js";
import { fill, h } from "./dom.js";
import { fileUrl, samplesOf, scrubber } from "./scrubber.js";

const WAY =
  "Training draws this itself, always from the same noise: what changes is the generator. " +
  "The dashed line is where it was then. " +
  "The gap is how much more the discriminator gave real pictures than drawn ones. " +
  "KID is how far drawn pictures are from held-out " +
  "ones: less is better. Coverage is how much of the variety of the training pictures is drawn: it falls where the " +
  "generator collapses.";
const CHARTS = { d_real_minus_fake: "The gap, real minus drawn", "val/kid": "KID", "val/coverage": "Coverage" };

/** Fill an element with the past of a run, as its files tell it. */
export async function onTheWay(element, state, run, signal) {
  element.dataset.run = run;
  const failed = (problem) => h("p", {}, `It cannot be shown: ${problem.message}.`);
  const parts = await past(state, run, signal).catch(failed);
  const chosen = element.dataset.run === run; // no other was meanwhile
  if (chosen && !signal.aborted) fill(element, h("h2", {}, "On the way here"), parts);
}

async function past(state, name, signal) {
  const { data } = await get("/gengen/v1/runs", signal);
  if (!data.some((run) => run.name === name)) {
    return h("p", {}, "This run is not in the folder of runs, so its past is not shown.");
  }
  const [files, curve, charts] = [await samplesOf(name, signal), new Curve(), h("div", { class: "columns" })];
  curve.add(await get(fileUrl(name, "metrics?after=-1"), signal));
  const known = Object.entries(CHARTS).filter(([column]) => curve.points(column, "step").length);
  const chart = ([column, label], step) =>
    lines([{ name, points: curve.points(column, "step") }], label, { x: "steps", cursor: step });
  const changed = (step) => fill(charts, known.map((one) => chart(one, step)));
  const slider = scrubber(state, [{ name, files }], signal, changed);
  const drawn = slider ? [h("p", {}, WAY), slider, charts] : h("p", {}, "Its training drew nothing.");
  return [drawn, meeting(state, name, signal)];
}

/** A button that lets each saved discriminator judge what each saved generator draws, and the table of it. */
function meeting(state, name, signal) {
  const [place, said] = [h("div", {}), h("p", { role: "status" })];
  async function meet() {
    state.set({ met: 1 });
    fill(said, "working");
    try {
      const body = { model: name, seed: state.number("seed", 0) };
      const { steps, told } = await post("/gengen/v1/gan/game", body, signal);
      fill(place, table(steps, told));
      fill(said, steps.length > 1 ? "" : "One checkpoint is kept: trainer.keep=8 keeps more.");
    } catch (problem) {
      fill(said, problem.message);
    }
  }
  if (state.get("met")) meet();
  const button = h("button", { type: "button", onclick: meet }, "Let saved checkpoints meet");
  return [h("p", { class: "buttons" }, button), said, place];
}

function table(steps, told) {
  const head = h("tr", {}, h("td", {}), steps.map((step) => h("th", { scope: "col" }, `generator of step ${step}`)));
  const row = (step, i) => h("tr", {}, h("th", { scope: "row" }, `discriminator of step ${step}`),
    told[i].map((share) => h("td", {}, String(Math.round(100 * share)))));
  const caption = "How many times of 100 a discriminator finds the real one of two pictures: 50 is a coin. " +
    "Down a column, one generator " +
    "meets later and later judges; along a row, one judge meets later and later generators.";
  const whole = h("table", {}, h("caption", {}, caption), head, steps.map(row));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "who wins" }, whole);
}
