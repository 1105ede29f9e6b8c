// What an autoencoder's latent is: draws, channels that are moved, ways between draws, what is left of a picture.

import { act } from "../act.js";
import { post } from "../api.js";
import { choice, chosen, numberField, runChoice, slider } from "../controls.js";
import { copyBar } from "../copy.js";
import { fill, h, picture, short } from "../dom.js";
import { waysOf } from "../latent_ways.js";
import { distance, pixelsOf, sharpness } from "../pixels.js";
import { asKept, asSent, uploadField } from "../upload.js";

export const title = "Autoencoder";
export const about = "An autoencoder squeezes a picture into a few numbers and draws it again from them. " +
  "Here are those numbers, to be moved by hand.";
export const makes = "python scripts/train.py model=vae data=emoji";
export const usable = (models) => models.filter((model) => model.gengen.latent);

const CHANNELS = 8; // that get a slider
const VIEWS = {
  sliders: ["Move its numbers",
    "Each slider is one channel of the code, in standard deviations from its mean. " +
    "Those that change the picture most come first."],
  path: [
    "Go from one picture to another",
    "Codes between two codes are pictures too: nothing fades in or out, things turn into each other.",
  ],
  plane: [
    "A map of two numbers",
    "Two channels, one down and one across, from -3 to 3 deviations. All else stays as it was drawn.",
  ],
  reconstruct: [
    "Take a picture through",
    "What the code does not hold is lost: fine detail first, which is why the copy looks blurred.",
  ],
};

export function show(root, { state, runs, signal }) {
  const output = h("div", { class: "output", role: "group", "aria-label": "what was drawn" });
  const [fields, note] = [h("div", { class: "fields" }), h("p", {})];
  const main = act("Draw", draw, signal);

  async function draw(stopped) {
    state.push();
    const said = await SHOWN[view(state)](output, { state, run: chosen(state, runs), changed }, stopped);
    return said;
  }
  function changed() {
    fill(fields, ...fieldsOf(state, chosen(state, runs), main.run));
    const { shape, prior } = chosen(state, runs).gengen.latent;
    const size = `A code of this run is ${shape.join(" x ")} = ${shape.reduce((a, b) => a * b)} numbers.`;
    const weak = "This run was not trained to be drawn from: its draws show what the decoder makes of any code.";
    fill(note, [VIEWS[view(state)][1], size, prior ? "" : weak].join(" "));
    fill(output);
    main.run();
  }

  const views = Object.entries(VIEWS).map(([key, [name]]) => [key, name]);
  fill(
    root,
    h("form", { onsubmit: (event) => event.preventDefault() },
      runChoice(state, runs, { changed }),
      choice(state, "view", "Show", views, { value: "sliders", changed }),
      fields,
      main.element),
    note, output, copyBar(() => waysOf(view(state), asked(state, chosen(state, runs)))),
  );
  changed();
}

const view = (state) => (state.get("view") in VIEWS ? state.get("view") : "sliders");

function fieldsOf(state, run, changed) {
  const take = (base64) => {
    state.set({ picture: asKept(base64) });
    changed();
  };
  const seed = numberField(state, "seed", "Seed", { value: 0, min: 0 });
  const which = (label) => numberField(state, "first", label, { value: 0, min: 0 });
  const channel = (key, label, value) => numberField(
    state, key, label, { value, min: 0, max: run.gengen.latent.shape[0] - 1 },
  );
  return {
    sliders: () => [which("Draw number"), seed],
    path: () => [which("Path number"), seed, numberField(state, "steps", "Pictures", { value: 8, min: 2, max: 32 })],
    plane: () => [
      which("Draw number"), seed, channel("down", "Channel down", 0), channel("across", "Channel across", 1),
    ],
    reconstruct: () => uploadField("Picture", run.gengen.side, take),
  }[view(state)]();
}

/** The request of what is shown. */
function asked(state, run) {
  const [seed, first] = [state.number("seed", 0), state.number("first", 0)];
  const drawn = { model: run.id, seed, first };
  const deviations = Array.from({ length: run.gengen.latent.shape[0] }, (_, z) => state.number(`c${z}`));
  const moved = deviations.some((d) => d !== null) ? { deviations } : {};
  return {
    sliders: () => ({ ...drawn, ...moved }),
    path: () => ({ model: run.id, seed, first: 2 * first, to: 2 * first + 1, steps: state.number("steps", 8) }),
    plane: () => ({ ...drawn, channels: [state.number("down", 0), state.number("across", 1)] }),
    reconstruct: () => ({ model: run.id, image: asSent(state.get("picture")) }),
  }[view(state)]();
}

const SHOWN = { sliders, path, plane, reconstruct };

async function sliders(output, { state, run, changed }, stopped) {
  const found = await post("/gengen/v1/latent", { ...asked(state, run), channels: CHANNELS }, stopped);
  const image = picture(found.b64_json, "what is decoded from the code", { class: "picture large" });
  const error = h("p", { role: "alert", class: "error" });
  let latest = new AbortController();

  async function moved() {
    latest.abort(); // only the newest place of a slider counts
    latest = new AbortController();
    const { signal } = latest;
    stopped.addEventListener("abort", () => latest.abort(), { once: true });
    try {
      image.src = picture((await post("/gengen/v1/latent", asked(state, run), signal)).b64_json, "").src;
    } catch (problem) {
      if (!signal.aborted) fill(error, problem.message);
    }
  }
  const size = found.deviations.length / found.shape[0]; // numbers of a channel
  const mean = (z) => found.deviations.slice(z * size, (z + 1) * size).reduce((a, b) => a + b, 0) / size;
  const knob = (z) => slider(
    state, `c${z}`, `channel ${z}`, { value: Number(mean(z).toFixed(2)), min: -3, max: 3, changed: moved },
  );
  const back = () => {
    state.set(Object.fromEntries(found.channels.map((z) => [`c${z}`, null])));
    state.push();
    changed();
  };
  const reset = h("button", { type: "button", onclick: back }, "Back to the draw");
  fill(
    output,
    h(
      "div",
      { class: "columns" },
      h("div", {}, image, h("p", {}, reset), error),
      h("div", {}, found.channels.map(knob)),
    ),
  );
}

async function path(output, { state, run }, stopped) {
  const { data } = await post("/gengen/v1/latent/path", asked(state, run), stopped);
  const name = (at) => (at === 0 ? "one draw" : at === 1 ? "another draw" : `${Math.round(100 * at)} % of the way`);
  const figures = data.map(
    (row) => h("figure", {}, picture(row.b64_json, name(row.gengen.at)), h("figcaption", {}, name(row.gengen.at)))
  );
  fill(output, h("div", { class: "strip", tabindex: "0", role: "group", "aria-label": "the way" }, figures));
  return `${data.length} pictures`;
}

async function plane(output, { state, run, changed }, stopped) {
  const { rows, deviations, gengen } = await post("/gengen/v1/latent/plane", asked(state, run), stopped);
  const [down, across] = gengen.channels;
  const names = deviations.map((d) => short(d));
  const open = (i, j) => () => {
    state.set({ view: null, [`c${down}`]: deviations[i], [`c${across}`]: deviations[j] });
    state.push();
    dispatchEvent(new PopStateEvent("popstate")); // the page is shown anew, as by a link
  };
  const cell = (png, i, j) => h("td", {}, h("button", { type: "button", class: "plain", onclick: open(i, j) },
    picture(png, `channel ${down} at ${names[i]}, channel ${across} at ${names[j]}`, { class: "picture small" })));
  const head = h(
    "tr", {}, h("th", { scope: "col" }, `${down} \\ ${across}`), names.map((name) => h("th", { scope: "col" }, name)),
  );
  const body = rows.map(
    (row, i) => h("tr", {}, h("th", { scope: "row" }, names[i]), row.map((png, j) => cell(png, i, j)))
  );
  const caption = h(
    "caption", {}, `channel ${down} changes down, channel ${across} across; choose a picture to go on from it`,
  );
  fill(
    output,
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": "the map" },
      h("table", {}, caption, head, body),
    ),
  );
  return `${rows.length * deviations.length} pictures`;
}

async function reconstruct(output, { state, run }, stopped) {
  if (!state.get("picture")) {
    fill(output, h("p", {}, "Choose a picture above: PNG, JPEG or WebP."));
    return "nothing to take through yet";
  }
  const { b64_json, original } = await post("/gengen/v1/reconstruct", asked(state, run), stopped);
  const [before, after] = await Promise.all([original, b64_json].map(pixelsOf));
  const left = sharpness(before) ? Math.round((100 * sharpness(after)) / sharpness(before)) : 100;
  const [numbers, side] = [run.gengen.latent.shape.reduce((a, b) => a * b), run.gengen.side];
  const shown = (png, name) => h(
    "figure", {}, picture(png, name, { class: "picture large" }), h("figcaption", {}, name),
  );
  fill(
    output,
    h(
      "div",
      { class: "columns" },
      shown(original, "the picture, as the model takes it"),
      shown(b64_json, "drawn again from its code"),
    ),
    h("p", {}, `${numbers} numbers stand for ${side} x ${side} pixels. `,
      `${left} % of the contrast between neighbouring pixels is left; `,
      `a pixel is off by ${short(distance(before, after))} of 255 on average.`),
  );
}
