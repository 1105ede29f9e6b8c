// The ideas side by side: what each family learns, how it draws, what that costs, and where it fails, on runs that are
// served.

import { act } from "../act.js";
import { post } from "../api.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h, picture, short } from "../dom.js";
import { pixelsOf, sharpness, twins } from "../pixels.js";
import { keywords } from "../settings.js";

export const title = "Ideas";
export const about =
  "Two ideas make almost everything here: predict what comes next, and undo noise. " +
  "Two older families stand beside them.";
export const makes = "";
export const usable = (models) => models;

const OUTSIDE = "The capital of the planet Zqorx is"; // what no training text holds
const DIFFUSION = { prompt: "", sampler: "ddim", seed: 0 };

// is(gengen): whether a run is of the family; live(run, signal): { shown, calls, fails }
const FAMILIES = [
  {
    name: "Predict the next token (GPT)", makes: "python scripts/train.py model=gpt data=tinystories",
    is: (g) => g.kind === "text" && g.stage !== "reward",
    learns: "Learns: the odds of the next token after all before it.",
    draws: "Draws: one token, then the next; one call of the network for each.",
    fails: "Fails: it always has an answer. Asked for what does not exist, it is still sure of something:", live: text,
  },
  {
    name: "Undo noise (diffusion)", makes: "python scripts/train.py model=unet data=emoji", is: (g) => g.edits,
    learns: "Learns: which picture is behind a noisy one.",
    draws: "Draws: from pure noise, a little less of it in each step; one or two calls a step.",
    fails: "Fails: it needs its steps. The same noise in 2 steps and in 20:", live: diffusion,
  },
  {
    name: "Squeeze and unfold (autoencoder)", makes: "python scripts/train.py model=vae data=emoji",
    is: (g) => g.latent,
    learns: "Learns: a few numbers from which a picture can be drawn again.",
    draws: "Draws: numbers at random, unfolded in one call.",
    fails:
      "Fails: what the numbers do not hold is blurred. " +
      "A picture with fine lines, made by this page, before and after:",
    live: autoencoder,
  },
  {
    name: "Fool a judge (GAN)", makes: "python scripts/train.py model=gan data=emoji", is: (g) => g.family === "gan",
    learns: "Learns: pictures that a judge, which learns too, takes for real.",
    draws: "Draws: noise into a picture, in one call.",
    fails: "Fails: it may fool the judge with a few pictures again and again. Sixteen draws:", live: gan,
  },
];

export function show(root, { state, models, signal }) {
  const found = FAMILIES.map(
    (family) => ({ family, run: models.find((model) => family.is(model.gengen)), place: h("div", { class: "live" }) })
  );
  const costs = h("div", {});
  const main = act("Draw one of each", draw, signal);

  async function draw(stopped) {
    state.set({ drawn: 1 });
    state.push();
    const rows = [];
    for (const { family, run, place } of found) {
      if (!run) continue;
      const result = await family.live(run, stopped, family);
      rows.push([family.name, run.id, `${(result.ms / 1000).toFixed(2)} s`, result.calls]);
      fill(place, result.shown);
      fill(costs, table(rows));
    }
    return `${rows.length} of ${FAMILIES.length} families`;
  }
  const section = ({ family, run, place }) => h("section", {},
    h("h2", {}, family.name), h("p", {}, family.learns, " ", family.draws),
    run
      ? place
      : [h("p", {}, "No run of this family is served. One that can be:"), h("pre", { tabindex: "0" }, family.makes)]);
  fill(root, main.element, found.map(section), costs, copyBar(() => ways(found)));
  if (state.get("drawn")) main.run();
}

function table(rows) {
  const head = h(
    "tr", {}, ["family", "run", "time of one", "calls of the network"].map((name) => h("th", { scope: "col" }, name)),
  );
  const body = rows.map(
    ([name, ...rest]) => h("tr", {}, h("th", { scope: "row" }, name), rest.map((cell) => h("td", {}, String(cell))))
  );
  const scrolled = { class: "scroll", tabindex: "0", role: "group", "aria-label": "costs" };
  return [h("h2", {}, "What one costs"), h("div", scrolled, h("table", {}, head, body))];
}

/** What work returns, and its milliseconds. */
async function timed(work) {
  const began = performance.now();
  return [await work(), performance.now() - began];
}

function pair(images, names) {
  return h(
    "div",
    { class: "strip" },
    images.map((png, i) => h("figure", {}, picture(png, names[i]), h("figcaption", {}, names[i]))),
  );
}

const TEXT = { prompt: "Once upon a time", max_tokens: 60, seed: 0 };

async function text(run, signal, family) {
  const [answer, ms] = await timed(() => post("/v1/completions", { model: run.id, ...TEXT }, signal));
  const next = await post("/gengen/v1/next", { model: run.id, prompt: OUTSIDE, top: 1 }, signal);
  const [token] = next.tokens;
  const { marked, said } = await copied(run, TEXT.prompt + answer.choices[0].text, signal);
  return {
    ms, calls: answer.usage.completion_tokens,
    shown: [
      h("blockquote", { class: "tokens" }, marked),
      h("p", {}, family.fails),
      h("p", { class: "verdict" }, `“${OUTSIDE}” goes on with `, h("code", {}, JSON.stringify(token.text)),
        `, at ${short(100 * token.probability.model)} %.`),
      h("p", {}, "Fails: it may copy what it was trained on, word for word."), said,
      h("p", {}, "How much of many texts is copied counts ",
        h("code", {}, `python scripts/evaluate.py runs/${run.id}`), "."),
    ],
  };
}

/** A text with its longest passage marked that stands so in the training text, and what is said of that. */
async function copied(run, text, signal) {
  try {
    const found = await post("/gengen/v1/copied", { model: run.id, text }, signal);
    const [before, passage, after] = found.pieces;
    const passages = (count) => (count ? `${count} tokens in a row` : `no ${found.least} tokens in a row`);
    const of = `the ${found.training_tokens.toLocaleString("en")} tokens that it was trained on`;
    const marks = found.longest ? ": those that are marked" : "";
    const said = [
      h("p", { class: "verdict" }, `Of the text above, ${passages(found.longest)} stand so in ${of}${marks}.`),
      h("p", {}, `Of eight texts that it never saw, as long, it is ${passages(found.held_out)} at most: `,
        "far more than that would be learnt by heart."),
    ];
    return { marked: found.longest ? [before, h("mark", {}, passage), after] : text, said };
  } catch (problem) {
    if (problem.code !== "no_data") throw problem;
    return { marked: text, said: h("p", {}, `Whether it did so here cannot be looked up: ${problem.message}.`) };
  }
}

async function diffusion(run, signal, family) {
  const draw = (steps) => post("/gengen/v1/denoise", { model: run.id, ...DIFFUSION, steps, frames: 1 }, signal);
  const few = await draw(2);
  const [many, ms] = await timed(() => draw(20));
  const calls = many.calls ?? "20, twice that with guidance";
  return {
    ms, calls, shown: [h("p", {}, family.fails), pair([few.b64_json, many.b64_json], ["2 steps", "20 steps"])],
  };
}

/** A picture of fine lines and a letter, base64 of a PNG. */
function lines(side) {
  const canvas = h("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.fillStyle = "#000";
  for (let x = 0; x < side; x += 4) context.fillRect(x, 0, 1, side / 2);
  for (let y = side / 2; y < side; y += 3) context.fillRect(0, y, side, 1);
  return canvas.toDataURL("image/png").split(",")[1];
}

async function autoencoder(run, signal, family) {
  const [draw, ms] = await timed(() => post("/gengen/v1/latent", { model: run.id }, signal));
  const { original, b64_json } = await post(
    "/gengen/v1/reconstruct", { model: run.id, image: lines(run.gengen.side) }, signal,
  );
  const [before, after] = await Promise.all([original, b64_json].map(pixelsOf));
  const left = Math.round((100 * sharpness(after)) / sharpness(before));
  return {
    ms, calls: 1,
    shown: [
      pair([draw.b64_json], ["a draw"]),
      h("p", {}, family.fails),
      pair([original, b64_json], ["before", "after"]),
      h("p", { class: "verdict" }, `${left} % of the contrast between neighbouring pixels is left.`)],
  };
}

async function gan(run, signal, family) {
  const [, ms] = await timed(() => post("/gengen/v1/gan", { model: run.id }, signal));
  const { data } = await post("/gengen/v1/gan", { model: run.id, n: 16, prompt: run.gengen.classes[0] ?? "" }, signal);
  const alike = twins(await Promise.all(data.map((row) => pixelsOf(row.b64_json))), 2);
  const of = run.gengen.classes.length ? ` of the class ${run.gengen.classes[0]}` : "";
  return {
    ms, calls: 1,
    shown: [h("p", {}, family.fails), pair(data.map((row) => row.b64_json), data.map((_, i) => `number ${i}`)),
      h("p", { class: "verdict" }, `${alike} of 16${of} look like another of them (less than 2 of 255 apart).`)],
  };
}

/** The sample of a run elsewhere: arguments of Python, words of a command, a request. */
function asked({ family, run: { id: model, gengen } }) {
  const [{ prompt, ...how }, classes] = [TEXT, gengen.classes?.slice(0, 1) ?? []];
  const labels = classes.length ? JSON.stringify(classes) : null;
  return {
    text: {
      given: `${python(prompt)}, temperature=1.0, overflow="end", ${keywords(how, python)}`,
      words: { prompt, n: 1, temperature: 1, overflow: "end", ...how },
      request: ["/v1/completions", { model, prompt, ...how }],
    },
    diffusion: {
      given: '1, sampler="ddim", steps=20, seed=0',
      words: { n: 1, sampler: "ddim", steps: 20, seed: 0, out: "diffusion" },
      request: ["/gengen/v1/denoise", { model, ...DIFFUSION, steps: 20 }],
    },
    autoencoder: {
      given: "1, seed=0",
      words: { n: 1, seed: 0, out: "autoencoder" },
      request: ["/gengen/v1/latent", { model }],
    },
    gan: {
      given: `16, ${python(classes)}, seed=0`,
      words: { n: 16, labels, seed: 0, out: "gan" },
      request: ["/gengen/v1/gan", { model, n: 16, prompt: classes[0] ?? "" }],
    },
  }[family.live.name];
}

function ways(found) {
  const served = found.filter(({ run }) => run).map(
    (one) => ({ ...asked(one), name: one.family.live.name, id: one.run.id })
  );
  const line = ({ name, id, given }) => `${name} = gengen.load(${python(`runs/${id}`)}).generate(${given})`;
  return {
    Python: `import gengen\n\n${served.map(line).join("\n")}`,
    curl: served.map(({ request }) => curl(...request)).join("\n"),
    command: served.map(({ id, words }) => `python scripts/sample.py runs/${id} ${settings(words)}`).join("\n"),
  };
}
