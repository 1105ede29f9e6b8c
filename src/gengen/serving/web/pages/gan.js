// A generator against its discriminator: what one draws, what the other thinks of it, and ways between two draws.

import { act } from "../act.js";
import { post } from "../api.js";
import { choice, chosen, numberField, runChoice, slider } from "../controls.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h, picture, short } from "../dom.js";
import { onTheWay } from "../game.js";
import { above, bestLine, duel, logitsShown, pairsOf, real, toldApart } from "../judged.js";
import { pixelsOf, twins } from "../pixels.js";

export const title = "GAN";
export const about =
  "A generator draws, a discriminator tells drawn from real: " +
  "here is what the one draws, and how far it fools the other.";
export const makes = "python scripts/train.py model=gan data=emoji";
export const usable = (models) => models.filter((model) => model.gengen.family === "gan");

const MOST = 16; // images of a request
const MOST_REAL = 64; // real ones that are judged
const PAIRS = 12; // that are shown
const SAME = 2; // of 255, on average: below that two pictures look the same
const LOGIT =
  "The number under a picture is the discriminator's logit: the larger, the more real the picture looks to it. ";
const COMPARES =
  "It was trained to find the real one of two pictures, so only a difference counts, and 0 is no border. ";
const JUDGES = "It was trained to put real pictures above 0 and drawn ones below. ";
const METS =
  "It is as the last step of training left it, while the generator's weights may be an average over steps: " +
  "they are not quite the two that met.";
const VIEWS = [["draws", "Many draws, judged"], ["walk", "A walk between two draws"]];

export function show(root, { state, runs, signal }) {
  const output = h("div", { class: "output", role: "group", "aria-label": "what was drawn" });
  const main = act("Draw", draw, signal);
  const [fields, meaning, way] = [h("div", { class: "fields" }), h("p", {}), h("div", {})];

  async function draw(stopped) {
    state.push();
    return (isWalk(state) ? walk : draws)(output, state, chosen(state, runs), stopped);
  }
  function changed() {
    const run = chosen(state, runs);
    const { classes, compares } = run.gengen;
    fill(meaning, LOGIT, compares ? COMPARES : JUDGES, METS);
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
    if (way.dataset.run !== run.id) onTheWay(way, state, run.id, signal);
    main.run();
  }
  fill(
    root,
    h("form", { onsubmit: (event) => event.preventDefault() },
      runChoice(state, runs, { changed }), choice(state, "view", "Show", VIEWS, { value: "draws", changed }), fields,
      numberField(state, "seed", "Seed", { value: 0, min: 0 }),
      slider(
        state,
        "truncation",
        "Truncation",
        { value: 1, min: 0.05, max: 2, step: 0.05, hint: "less: safer, more alike" },
      ),
      main.element),
    meaning, output, way, copyBar(() => ways(state, chosen(state, runs))),
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
  const names = data.map(
    ({ gengen: { at } }) => (at === 0 ? "one draw" : at === 1 ? "another" : `${Math.round(100 * at)} %`)
  );
  fill(output, h("p", {}, "Both ends are draws; all between lies on the great arc, as long as a draw of noise is. ",
      "A good generator has a picture everywhere on it."),
    h("div", { class: "strip", tabindex: "0", role: "group", "aria-label": "the walk" }, cards(data, names)));
  return `${data.length} pictures`;
}

/** The requests of many draws: with all classes in turn, each goes on where the one before ended. */
function requests(state, run) {
  const { prompt, ...same } = how(state, run);
  const [n, { classes }] = [state.number("n", 32), run.gengen];
  const turn = (first) => prompt || classes.map((_, i) => String((first + i) % classes.length)).join(", ");
  const firsts = Array.from({ length: Math.ceil(n / MOST) }, (_, i) => i * MOST);
  return firsts.map((first) => ({ model: run.id, prompt: turn(first), ...same, first, n: Math.min(MOST, n - first) }));
}

async function draws(output, state, run, stopped) {
  const [n, rows, { prompt }] = [state.number("n", 32), [], how(state, run)];
  for (const body of requests(state, run)) rows.push(...(await post("/gengen/v1/gan", body, stopped)).data);
  const held = await real(run.id, "val", prompt, MOST_REAL, stopped);
  const learnt = await real(run.id, "train", prompt, MOST_REAL, stopped);
  const alike = twins(await Promise.all(rows.map((row) => pixelsOf(row.b64_json))), SAME);
  fill(
    output,
    verdict(rows, held, run.gengen.compares),
    h("p", {}, `${alike} of ${n} drawn pictures look like another of them (less than ${SAME} of 255 apart): `,
      "many of those, and the generator has collapsed onto a few pictures."),
    judged(rows, held, learnt, run.gengen.compares),
    h("h2", {}, "Drawn"), h("div", { class: "grid drawn" }, cards(rows)),
    duels(rows, held),
  );
  return `${n} pictures`;
}

const logitsOf = (rows) => rows.map((row) => row.logit);

/** Who wins, in a sentence. */
function verdict(rows, held, compares) {
  const logits = logitsOf(rows);
  if (held.data.length) {
    const share = Math.round(100 * toldApart(logits, logitsOf(held.data)));
    return h(
      "p",
      { class: "verdict" },
      `Shown a drawn and a real picture, the discriminator finds the real one ${share} times of 100. `,
      "50 is a coin: it is fooled. 100: it is never fooled.");
  }
  const said = compares ? "" : `${above(logits, 0)} of ${rows.length} pass for real. `;
  const why = held.missing ?? "none of this class are held out";
  return h("p", { class: "verdict" }, said, h("small", {}, `No real pictures are shown: ${why}.`));
}

/** Drawn and real pictures two by two, as the discriminator meets them. */
function duels(rows, held) {
  const pairs = pairsOf(rows, held.data).slice(0, PAIRS);
  if (!pairs.length) return null;
  const says = "As the two meet in training: a drawn picture and a real one, held out, of the same class. " +
    "The larger logit is what the " +
    "discriminator takes for real.";
  return [h("h2", {}, "Pair by pair"), h("p", {}, says), h("ul", { class: "duels" }, pairs.map(duel))];
}

/** The logits of drawn pictures beside those of real ones, held out and learnt from. */
function judged(rows, held, learnt, compares) {
  const all = [["drawn", rows], ["real, held out", held.data], ["real, learnt from", learnt.data]];
  const groups = all.filter(([, of]) => of.length);
  const zero = compares ? [] : [{ name: "the border that it was trained to", at: 0 }];
  const best = () => bestLine(logitsOf(rows), logitsOf(held.data));
  const parted = () => [{ name: "the border that tells drawn from held out best", at: best() }];
  const borders = [...zero, ...(held.data.length ? parted() : [])];
  const learns =
    "Where pictures that it learnt from score above those held out, the discriminator knows them by heart.";
  const shown = logitsShown(groups.map(([name, of]) => ({ name, logits: logitsOf(of) })), borders);
  return [shown, learnt.data.length ? h("p", {}, learns) : null];
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
      curl: requests(state, run).map((body) => curl("/gengen/v1/gan", body)).join("\n"),
      command: `${name} ${settings({ n, ...words, out: "draws" })}`,
    };
  }
  const { first, to, n } = walkOf(state);
  const label = Math.max(0, run.gengen.classes.indexOf(prompt));
  const ends = `a, b = ${truncation} * model.latents([${first}, ${to}], seed=${seed})`;
  const walked = { what: "interpolation", n: first / 2 + 1, steps: n, ...words, out: "walk" };
  return {
    Python: `${load}${ends}\nimages = model.interpolate(a, b, ${label}, ${n})`,
    curl: curl("/gengen/v1/gan", { model: run.id, prompt, seed, truncation, first, to, n }),
    command: `${name} ${settings(walked)}  # the last row of it`,
  };
}
