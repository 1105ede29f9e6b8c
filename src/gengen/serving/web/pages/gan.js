// A generator against its discriminator: what one draws, what the other thinks of it, and ways between two draws.

import { act } from "../act.js";
import { post } from "../api.js";
import { bar } from "../chart.js";
import { choice, chosen, numberField, runChoice, slider } from "../controls.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h, picture, short } from "../dom.js";
import { pixelsOf, twins } from "../pixels.js";

export const title = "GAN";
export const about = "A generator draws, a discriminator tells drawn from real: here is what the one draws, and how far it fools the other.";
export const makes = "python scripts/train.py model=gan data=emoji";
export const usable = (models) => models.filter((model) => model.gengen.family === "gan");

const MOST = 16; // images of a request
const SAME = 2; // of 255, on average: below that two pictures look the same
const VIEWS = [["draws", "Many draws, judged"], ["walk", "A walk between two draws"]];

export function show(root, { state, runs, signal }) {
  const output = h("div", { class: "output", role: "group", "aria-label": "what was drawn" });
  const main = act("Draw", draw, signal);
  const fields = h("div", { class: "fields" });

  async function draw(stopped) {
    state.push();
    return (isWalk(state) ? walk : draws)(output, state, chosen(state, runs), stopped);
  }
  function changed() {
    const run = chosen(state, runs);
    const { classes } = run.gengen;
    const all = ["", isWalk(state) ? classes[0] : "all in turn"];
    fill(
      fields,
      classes.length ? choice(state, "prompt", "Class", [all, ...classes]) : null,
      isWalk(state)
        ? [numberField(state, "first", "Walk number", { value: 0, min: 0 }),
          numberField(state, "steps", "Pictures", { value: 8, min: 2, max: MOST })]
        : numberField(state, "n", "Pictures", { value: 32, min: 1, max: 256 }),
    );
    fill(output);
    main.run();
  }
  fill(
    root,
    h("form", { onsubmit: (event) => event.preventDefault() },
      runChoice(state, runs, { changed }), choice(state, "view", "Show", VIEWS, { value: "draws", changed }), fields,
      numberField(state, "seed", "Seed", { value: 0, min: 0 }),
      slider(state, "truncation", "Truncation", { value: 1, min: 0.05, max: 2, step: 0.05, hint: "less: safer, more alike" }),
      main.element),
    h("p", {}, "The number under a picture is the discriminator's logit: above 0 it takes the picture for a real one. ",
      "The discriminator is as the last step of training left it, while ",
      "the generator's weights may be an average over steps: they are not quite the two that met."),
    output, copyBar(() => ways(state, chosen(state, runs))),
  );
  changed();
}

const isWalk = (state) => state.get("view") === "walk";

function how(state, run) {
  const prompt = state.get("prompt") || (isWalk(state) ? run.gengen.classes[0] ?? "" : "");
  return { prompt, seed: state.number("seed", 0), truncation: state.number("truncation", 1) };
}

function walkOf(state) {
  const i = state.number("first", 0);
  return { first: 2 * i, to: 2 * i + 1, n: state.number("steps", 8) };
}

function cards(rows, names) {
  return rows.map(({ b64_json, logit, gengen }, i) => {
    const name = names?.[i] ?? gengen.class ?? `number ${gengen.index}`;
    return h("figure", {}, picture(b64_json, name), h("figcaption", {}, `${name}: ${short(logit)}`));
  });
}

async function walk(output, state, run, stopped) {
  const { data } = await post("/gengen/v1/gan", { model: run.id, ...how(state, run), ...walkOf(state) }, stopped);
  const names = data.map(({ gengen: { at } }) => (at === 0 ? "one draw" : at === 1 ? "another" : `${Math.round(100 * at)} %`));
  fill(output, h("p", {}, "Both ends are draws; all between lies on the great arc, as long as a draw of noise is. ",
      "A good generator has a picture everywhere on it."),
    h("div", { class: "strip", tabindex: "0", role: "group", "aria-label": "the walk" }, cards(data, names)));
  return `${data.length} pictures`;
}

async function draws(output, state, run, stopped) {
  const [n, rows] = [state.number("n", 32), []];
  const { prompt, ...same } = how(state, run);
  const classes = run.gengen.classes;
  while (rows.length < n) {
    const first = rows.length; // with all classes in turn, each request goes on where the one before ended
    const turn = prompt || classes.map((_, i) => String((first + i) % classes.length)).join(", ");
    const body = { model: run.id, prompt: turn, ...same, first, n: Math.min(MOST, n - first) };
    rows.push(...(await post("/gengen/v1/gan", body, stopped)).data);
  }
  const logits = rows.map((row) => row.logit);
  const fooled = logits.filter((logit) => logit > 0).length;
  const alike = twins(await Promise.all(rows.map((row) => pixelsOf(row.b64_json))), SAME);
  fill(
    output,
    h("p", { class: "verdict" }, `${fooled} of ${n} pass for real. ${alike} of ${n} look like another of them (less than ${SAME} of 255 apart): `,
      "many of those, and the generator has collapsed onto a few pictures."),
    histogram(logits),
    h("p", {}, "How real pictures score is not shown: this server holds none of what the run was trained on."),
    h("div", { class: "grid" }, cards(rows)),
  );
  return `${n} pictures`;
}

/** A table of how many logits lie where; the line at 0 is where drawn turns into real. */
function histogram(logits) {
  const ends = [-Infinity, -4, -2, -1, 0, 1, 2, 4, Infinity];
  const rows = ends.slice(0, -1).map((low, i) => {
    const count = logits.filter((logit) => logit > low && logit <= ends[i + 1]).length;
    const name = low === -Infinity ? "to -4" : ends[i + 1] === Infinity ? "above 4" : `${low} to ${ends[i + 1]}`;
    const judged = ends[i + 1] <= 0 ? "drawn" : "real";
    return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, judged), h("td", {}, bar(count / logits.length, String(count))));
  });
  const head = h("tr", {}, ["logit", "taken for", "pictures"].map((name) => h("th", { scope: "col" }, name)));
  return h("table", {}, h("caption", {}, "What the discriminator thinks of the draws"), head, rows);
}

function ways(state, run) {
  const { prompt, seed, truncation } = how(state, run);
  const load = `import gengen\n\nmodel = gengen.load(${python(`runs/${run.id}`)})\n`;
  const [name, labels] = [`python scripts/sample.py runs/${run.id}`, prompt ? [prompt] : []];
  const words = { labels: prompt ? JSON.stringify(labels) : null, seed, truncation };
  if (!isWalk(state)) {
    const n = state.number("n", 32);
    return {
      Python: `${load}images = model.generate(${n}, ${python(labels)}, seed=${seed}, truncation=${truncation})`,
      curl: curl("/gengen/v1/gan", { model: run.id, prompt, seed, truncation, n: Math.min(n, MOST) }),
      command: `${name} ${settings({ n, ...words })}`,
    };
  }
  const { first, to, n } = walkOf(state);
  const label = Math.max(0, run.gengen.classes.indexOf(prompt));
  return {
    Python: `${load}a, b = ${truncation} * model.latents([${first}, ${to}], seed=${seed})\nimages = model.interpolate(a, b, ${label}, ${n})`,
    curl: curl("/gengen/v1/gan", { model: run.id, prompt, seed, truncation, first, to, n }),
    command: `${name} ${settings({ what: "interpolation", n: first / 2 + 1, steps: n, ...words })}  # row ${first / 2}`,
  };
}
