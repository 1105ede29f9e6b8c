// Noise that becomes a picture; and what guidance, the sampler, its steps, the seed and the prompt change of it.

import { act } from "../act.js";
import { stream } from "../api.js";
import { choice, chosen, runChoice, textField } from "../controls.js";
import { copyBar, curl, python } from "../copy.js";
import { fill, h } from "../dom.js";
import { drawGrid, requests } from "../grid.js";
import { SAMPLERS, argumentsOf, numbers, sampling, samplingFields, usable } from "../sampling.js";
import { wanted, wantedField, wordsOf } from "../sampling.js";
import { strip } from "../strip.js";

export { usable };
export const title = "Diffusion";
export const about =
  "A diffusion model begins with noise alone. " +
  "Step by step it guesses the picture behind the noise, and takes some of the noise away.";
export const makes = "python scripts/train.py model=unet data=animals";

const MOST = 32; // steps that the server shows of a picture

// A view is a table but for the first: what its rows and columns change, of which the field `columns` has the latter.
const VIEWS = {
  strip: {
    name: "one picture, step by step",
    says:
      "The network sees a picture where you see only noise. Early steps settle what is where; late ones sharpen it.",
  },
  guidance: {
    name: "the same noise, at several guidances", rows: "prompts", key: "guidance",
    columns: ["guidances", "Guidances", "1, 2, 4, 8"],
    says:
      "Guidance exaggerates what was asked for: more obedient, less varied, and at twice the calls of the network. " +
      "1 is off.",
  },
  prompts: {
    name: "prompts by seeds", rows: "prompts", key: "seed", columns: ["seeds", "Seeds", "0, 1, 2, 3"],
    says: "A column begins with the same noise: so its pictures often share a pose. A row asks for the same thing.",
  },
  samplers: {
    name: "samplers by steps", rows: "samplers", key: "steps", columns: ["counts", "Steps", "2, 5, 10, 20"],
    says: "All begin with the same noise. Good samplers need few steps; the network's calls are what costs time.",
  },
};

export function show(root, { state, runs, signal }) {
  const [fields, says, output] = [
    h("div", { class: "fields" }), h("p", { class: "wide" }), h("div", { class: "output" }),
  ];
  const main = act("Draw", draw, signal);
  const run = () => chosen(state, runs);
  const view = () => (state.get("view") in VIEWS ? state.get("view") : "strip");

  function arrange() {
    fill(fields, fieldsOf(state, run(), view()));
    fill(says, VIEWS[view()].says);
    fill(output);
  }

  async function draw(stopped) {
    state.set({ drawn: 1 });
    state.push();
    if (view() === "strip") return drawStrip(output, state, run(), stopped);
    return `${await drawGrid(output, table(state, run(), view()), stopped)} pictures`;
  }

  const views = Object.entries(VIEWS).map(([key, { name }]) => [key, name]);
  const form = h("form", { onsubmit: (event) => event.preventDefault() },
    runChoice(state, runs, { changed: arrange }),
    choice(state, "view", "Look at", views, { value: "strip", changed: arrange }),
    fields, says, main.element);
  arrange();
  fill(root, form, output, copyBar(() => ways(state, run(), view())));
  if (state.get("drawn")) main.run();
}

function fieldsOf(state, run, view) {
  const { rows, key, columns } = VIEWS[view];
  const without = [key, rows === "samplers" ? "sampler" : "", view === "samplers" ? "interval" : ""];
  const { captions, classes } = run.gengen;
  const several = rows === "prompts" && (captions || classes.length);
  const hint = captions ? "one a line" : `one a line, of ${classes.join(", ")}`;
  return [
    several
      ? textField(state, "prompts", captions ? "Prompts" : "Classes", { value: examples(run), rows: 3, hint })
      : wantedField(state, run),
    columns && textField(state, columns[0], columns[1], { value: columns[2], hint: "a column each" }),
    samplingFields(state, run, { without }),
  ];
}

const examples = ({ gengen: { captions, classes } }) => (
  captions ? "a red circle\na blue heart" : classes.slice(0, 3).join("\n")
);

/** The table of a view: its rows, its columns, and what all its pictures share. */
function table(state, run, view) {
  const { rows, key, columns } = VIEWS[view];
  const values = numbers(state.get(columns[0], columns[2]), columns[1]);
  const lines = state.get("prompts", examples(run)).split("\n").map((line) => line.trim()).filter(Boolean);
  const conditional = run.gengen.captions || run.gengen.classes.length;
  const prompts = (lines.length && conditional ? lines : [""]).map(
    (prompt) => [prompt || "whatever comes", { prompt }]
  );
  const base = { model: run.id, prompt: wanted(state, run) ?? "", ...sampling(state, run) };
  return {
    corner: `${rows === "samplers" ? "sampler" : "prompt"} by ${key}`,
    rows: rows === "samplers" ? SAMPLERS.map((sampler) => [sampler, { sampler }]) : prompts,
    columns: values.map((value) => [`${key} ${value}`, { [key]: value }]),
    base,
  };
}

function stripRequest(state, run) {
  return { model: run.id, prompt: wanted(state, run) ?? "", ...sampling(state, run) };
}

async function drawStrip(output, state, run, stopped) {
  const body = stripRequest(state, run);
  const frames = Math.min(body.steps, MOST);
  const { element, add, end } = strip(state, body.steps);
  fill(output, element);
  let cost = "";
  for await (const event of stream("/gengen/v1/denoise", { ...body, frames }, stopped)) {
    if (event.type === "denoise.step") add(event);
    else {
      end(event.b64_json);
      cost = `${event.calls} calls of the network`;
    }
  }
  return frames < body.steps ? `${cost}; ${frames} of ${body.steps} steps are shown;` : cost;
}

function ways(state, run, view) {
  const asked = view === "strip" ? [stripRequest(state, run)] : requests(table(state, run, view));
  const load = `import gengen\n\nrun = gengen.load(${python(`runs/${run.id}`)})\n`;
  const without = ({ model, ...how }) => how;
  const draws = asked.map((body) => `    run.generate(1, ${argumentsOf(run, without(body))})[0],\n`).join("");
  const first = argumentsOf(run, without(asked[0]));
  const one = `frames = []  # the estimate after each step\nimages = run.generate(1, ${first}, frames=frames)`;
  const command = (body, i) =>
    `python scripts/sample.py runs/${run.id} n=1 ${wordsOf(run, without(body))} out=picture-${i}`;
  return {
    Python: load + (view === "strip" ? one : `images = [\n${draws}]`),
    curl: asked.map((body) => curl("/gengen/v1/denoise", body)).join("\n"),
    command: asked.map(command).join("\n"),
  };
}
