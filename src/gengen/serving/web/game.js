// How the game of a GAN went: what training drew on the way, and how the two networks stood then.

import { get } from "./api.js";
import { lines } from "./chart.js";
import { Curve } from "./curve.js";
import { fill, h } from "./dom.js";
import { fileUrl, samplesOf, scrubber } from "./scrubber.js";

const WAY =
  "Training draws this itself, always from the same noise: what changes is the generator. The dashed line is where it was then. " +
  "The gap is how much more the discriminator gave real pictures than drawn ones. KID is how far drawn pictures are from held-out " +
  "ones: less is better. Coverage is how much of the variety of the training pictures is drawn: it falls where the generator collapses.";
const CHARTS = { d_real_minus_fake: "The gap, real minus drawn", "val/kid": "KID", "val/coverage": "Coverage" };

/** Fill an element with the past of a run, as its files tell it. */
export async function onTheWay(element, state, run, signal) {
  element.dataset.run = run;
  const parts = await past(state, run, signal).catch((problem) => h("p", {}, `It cannot be shown: ${problem.message}.`));
  if (element.dataset.run === run && !signal.aborted) fill(element, h("h2", {}, "On the way here"), parts); // no other was chosen meanwhile
}

async function past(state, name, signal) {
  const { data } = await get("/gengen/v1/runs", signal);
  if (!data.some((run) => run.name === name)) return h("p", {}, "This run is not in the folder of runs, so its past is not shown.");
  const [files, curve, charts] = [await samplesOf(name, signal), new Curve(), h("div", { class: "columns" })];
  curve.add(await get(fileUrl(name, "metrics?after=-1"), signal));
  const known = Object.entries(CHARTS).filter(([column]) => curve.points(column, "step").length);
  const chart = ([column, label], step) => lines([{ name, points: curve.points(column, "step") }], label, { x: "steps", cursor: step });
  const changed = (step) => fill(charts, known.map((one) => chart(one, step)));
  const slider = scrubber(state, [{ name, files }], signal, changed);
  return slider ? [h("p", {}, WAY), slider, charts] : h("p", {}, "Its training drew nothing.");
}
