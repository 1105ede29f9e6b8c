// Noise on its way to a picture: each step that was sent, one of them large, and where it is in the schedule.

import { lines } from "./chart.js";
import { fill, h, picture } from "./dom.js";
import { labelled } from "./controls.js";

const share = ({ alpha, sigma }) => sigma / (alpha + sigma);
const percent = (frame) => `${Math.round(100 * share(frame))} % noise`;

/** Returns { element, add(frame), end(base64) }. The step looked at is `step` of the state, else the newest. */
export function strip(state, steps) {
  const frames = [];
  const items = h("div", { class: "strip", tabindex: "0", role: "group", "aria-label": "all steps" });
  const [large, result] = [h("div", { class: "fields" }), h("div")];
  const [chart, said] = [h("div"), h("p", { role: "status" })];
  const scrubber = h(
    "input", { type: "range", min: 0, max: 0, step: 1, oninput: () => choose(Number(scrubber.value)) },
  );
  const field = labelled("Look at a step", scrubber, "arrow keys go from step to step");

  function choose(i) {
    state.values.set("step", frames[i].step);
    state.save();
    look(i);
  }

  function look(i) {
    const frame = frames[i];
    scrubber.value = i;
    scrubber.setAttribute("aria-valuetext", `step ${frame.step + 1} of ${steps}, ${percent(frame)}`);
    fill(
      said,
      `Step ${frame.step + 1} of ${steps}: ${percent(frame)}, ${100 - Math.round(100 * share(frame))} % picture.`,
    );
    fill(
      large,
      shown(frame.x_t, "What the network is given: noise and a picture, mixed (x_t)"),
      shown(frame.x_0, "Which picture it sees behind that noise (its estimate of x_0)"),
    );
    const points = frames.map((one) => [one.step + 1, share(one)]);
    const series = [{ name: "share of noise", points }];
    fill(chart, lines(series, "Share of noise in what the network is given", { x: "step", cursor: frame.step + 1 }));
    items.querySelectorAll("figure").forEach((item, k) => item.classList.toggle("chosen", k === i));
  }

  const wanted = () => frames.findIndex((frame) => frame.step === state.number("step"));

  function add(frame) {
    const i = frames.push(frame) - 1;
    const number = frame.step + 1;
    const pair = [small(frame.x_t, `state in step ${number}`), small(frame.x_0, `estimate in step ${number}`)];
    items.append(h("figure", { onclick: () => choose(i) }, pair, h("figcaption", {}, `${number}: ${percent(frame)}`)));
    scrubber.max = i;
    look(wanted() < 0 ? i : wanted());
  }

  const end = (base64) => fill(result, shown(base64, "The picture in the end", "picture large result"));
  const pictures = h("div", { class: "columns" }, large, result);
  const names = h("h2", {}, "All steps: what it is given above, what it sees in it below");
  return { element: h("section", {}, pictures, field, said, names, items, chart), add, end };
}

const shown = (base64, caption, name = "picture large") =>
  h("figure", {}, picture(base64, caption, { class: name }), h("figcaption", {}, caption));
const small = (base64, alt) => picture(base64, alt, { class: "picture small" });
