// A picture that is there, changed by a diffusion model: in part, as a whole, beyond its edges; and two prompts mixed.

import { act } from "../act.js";
import { post, stream } from "../api.js";
import { choice, chosen, numberField, runChoice, slider, textField } from "../controls.js";
import { copyBar, curl, python } from "../copy.js";
import { fill, h, picture, short } from "../dom.js";
import { maskEditor, maskPicture, readMask, WORDS } from "../mask.js";
import { argumentsOf, sampling, samplingFields, usable, wanted, wantedField, wordsOf } from "../sampling.js";
import { isOwn, ownPicture, sampleRequest, sourceFields, sourcePicture } from "../source.js";
import { asKept } from "../upload.js";

export { usable };
export const title = "Edit";
export const about =
  "A diffusion model can also begin with a picture that is there: " +
  "part of it is drawn anew, or noise added to it and taken away again.";
export const makes = "python scripts/train.py model=unet data=animals";

const STEPS = 10; // rounds behind a mask make ten times as many calls of them
const WAYS = {
  inpaint: {
    name: "draw a part of it anew",
    says: "Paint on the picture. What is striped is drawn anew to fit the rest, which stays as it is, to the bit.",
  },
  vary: {
    name: "change all of it, more or less",
    says:
      "Noise is added to the picture, and taken away again. " +
      "At low strength it hardly changes; at 1 nothing of it is left.",
  },
  outpaint: {
    name: "carry it on beyond its edges",
    says: "What lies beyond the edges is drawn square by square, each to fit the last.",
  },
  remix: {
    name: "mix two prompts",
    says: "From the same noise, step by step from what the model reads in one prompt to what it reads in the other.",
  },
};
const TO = "a blue heart";
const ROUNDS = "more fit better and take longer; empty = 10, or none if the run was trained for it";
const SIDES = ["left", "right", "top", "bottom"];

export function show(root, { state, runs, signal }) {
  const [views, fields] = [h("div", { class: "fields" }), h("div", { class: "fields" })];
  const [says, source, output] = [h("p", { class: "wide" }), h("div"), h("div", { class: "output" })];
  const main = act("Draw", draw, signal);
  const problem = h("p", { role: "alert", class: "error" });
  const [run, way] = [() => chosen(state, runs), () => wayOf(state, chosen(state, runs))];
  let given = Promise.resolve(""); // the picture, base64 of a PNG
  let known = ""; // the same, once it is here

  function arrange() {
    const names = Object.keys(WAYS).filter((name) => name !== "remix" || run().gengen.captions);
    const options = names.map((name) => [name, WAYS[name].name]);
    fill(views, choice(state, "way", "Do what", options, { value: "inpaint", changed: arrangeWay }));
    arrangeWay();
  }

  function arrangeWay() {
    fill(says, WAYS[way()].says);
    fill(fields, fieldsOf(state, run(), way()));
    fill(output);
    output.classList.remove("wider");
    if (way() === "remix") return fill(source);
    const editor = way() === "inpaint" ? maskEditor(state, run().gengen.side) : plainPicture();
    const from = form(sourceFields(state, run(), () => load(editor)));
    fill(source, h("h2", {}, "The picture"), from, editor.element);
    load(editor);
  }

  function load(editor) {
    fill(problem);
    given = sourcePicture(state, run(), signal);
    known = "";
    const shown = given.then((base64) => decoded((known = base64))).then(editor.show);
    shown.catch((error) => signal.aborted || fill(problem, error.message));
  }

  async function draw(stopped) {
    state.set({ drawn: 1 });
    state.push();
    fill(output);
    if (way() === "remix") return drawRemix(output, remixRequest(state, run()), stopped);
    return drawEdits(output, { ...editRequest(state, run(), way()), image: await given }, stopped, goOn);
  }

  function goOn(base64) {
    state.set({ picture: asKept(base64), mask: null, drawn: null });
    state.push();
    arrangeWay();
  }

  arrange();
  fill(
    root,
    form(runChoice(state, runs, { changed: arrange }), views, says),
    source,
    problem,
    h("h2", {}, "What becomes of it"),
    form(fields, main.element),
    output,
    copyBar(() => ways(state, run(), way(), known)),
  );
  if (state.get("drawn")) main.run();
}

const form = (...fields) => h("form", { onsubmit: (event) => event.preventDefault() }, fields);

function wayOf(state, run) {
  const way = state.get("way", "inpaint");
  return way in WAYS && (way !== "remix" || run.gengen.captions) ? way : "inpaint";
}

function fieldsOf(state, run, way) {
  const half = Math.max(1, run.gengen.side >> 1);
  if (way === "remix") {
    return [
      wantedField(state, run, { label: "From the prompt" }),
      textField(state, "to", "to the prompt", { value: TO }),
      numberField(state, "pictures", "Pictures", { value: 6, min: 2, max: 16 }),
      samplingFields(state, run, { steps: STEPS }),
    ];
  }
  const limits = (side) => ({ value: side === "right" ? half : null, min: 0, max: 4 * half });
  return [
    wantedField(state, run, { any: "whatever fits" }),
    way === "outpaint"
      ? SIDES.map((side) => numberField(state, side, `Pixels: ${side}`, limits(side)))
      : slider(state, "strength", "Strength", { value: strengthOf(way), min: 0.05, max: 1, step: 0.05 }),
    way === "vary" ? null : numberField(state, "resamples", "Rounds a step", { min: 1, max: 50, hint: ROUNDS }),
    numberField(state, "n", "Pictures", { value: 2, min: 1, max: 16 }),
    samplingFields(state, run, { steps: STEPS }),
  ].filter(Boolean);
}

const strengthOf = (way) => (way === "vary" ? 0.7 : 1);

function editRequest(state, run, way) {
  const prompt = wanted(state, run, { any: true });
  const body = { model: run.id, prompt, n: state.number("n", 2), ...sampling(state, run, { steps: STEPS }) };
  if (way !== "vary" && state.number("resamples") !== null) body.resamples = state.number("resamples");
  if (way === "outpaint") {
    for (const side of SIDES) if (added(state, run, side)) body[side] = added(state, run, side);
    return body;
  }
  body.strength = state.number("strength", strengthOf(way));
  if (way === "inpaint") body.mask = maskOf(state, run.gengen.side);
  return body;
}

const added = (state, run, side) => state.number(side, side === "right" ? Math.max(1, run.gengen.side >> 1) : 0);

/** A mask as a request has it: a word, or a picture. */
function maskOf(state, side) {
  const mask = state.get("mask");
  if (!mask) throw new Error("Nothing is open: paint on the picture, or choose a half, what is to be drawn anew");
  return mask in WORDS ? mask : maskPicture(readMask(mask, side), side);
}

function remixRequest(state, run) {
  const [to, pictures] = [state.get("to", TO), state.number("pictures", 6)];
  return { model: run.id, prompt: wanted(state, run), to, pictures, ...sampling(state, run, { steps: STEPS }) };
}

async function drawEdits(output, body, stopped, goOn) {
  const wide = SIDES.some((side) => body[side]);
  output.classList.toggle("wider", wide);
  const cells = Array.from({ length: body.n }, (_, i) => h("figure", {}, h("figcaption", {}, `picture ${i}`)));
  fill(output, cells);
  const asked = { ...body, partial_images: wide ? 0 : 4 };
  for await (const { type, b64_json: base64, gengen } of stream("/gengen/v1/images/edits", asked, stopped)) {
    const done = type === "image_edit.completed";
    const caption = h("figcaption", {}, done ? `picture ${gengen.index}` : `step ${gengen.step + 1} of ${body.steps}`);
    const further = done && !wide && h("button", { type: "button", onclick: () => goOn(base64) }, "Go on from this");
    const alt = `picture ${gengen.index}${done ? "" : ", on the way"}`;
    fill(cells[gengen.index], picture(base64, alt, { class: done ? "picture result" : "picture" }), caption, further);
  }
  return `${body.n} pictures`;
}

async function drawRemix(output, body, stopped) {
  const { data } = await post("/gengen/v1/remix", body, stopped);
  const named = (at) => (at === 0 ? body.prompt : at === 1 ? body.to : `${short(100 * at)} % of the way`);
  const shown = ({ b64_json: base64, gengen: { at } }) =>
    h("figure", {}, picture(base64, named(at), { class: "picture result" }), h("figcaption", {}, named(at)));
  fill(output, data.map(shown));
  return `${data.length} pictures`;
}

/** Base64 of a PNG -> what a canvas draws. */
async function decoded(base64) {
  const image = picture(base64, "");
  await image.decode();
  return image;
}

function plainPicture() {
  const element = h("div");
  return {
    element,
    show: (image) => fill(element, h("img", { src: image.src, alt: "the picture to change", class: "picture large" })),
  };
}

// --- the same elsewhere

function ways(state, run, way, known) {
  const load = `import base64\nimport io\n\nimport gengen\n\nrun = gengen.load(${python(`runs/${run.id}`)})\n`;
  const sample = `python scripts/sample.py runs/${run.id}`;
  return way === "remix" ? remixWays(state, run, load, sample) : editWays(state, run, way, known, load, sample);
}

function remixWays(state, run, load, sample) {
  const { model, prompt, to, ...how } = remixRequest(state, run);
  const both = wordsOf(run, { prompt, ...how }) + " " + wordsOf(run, { prompt: to });
  return {
    Python: `${load}images = run.remix(${python(prompt)}, ${python(to)}, 1, ${argumentsOf(run, how)})[0]`,
    curl: curl("/gengen/v1/remix", { model, prompt, to, ...how }),
    command: `${sample} what=remix n=1 ${both} out=remix`,
  };
}

function editWays(state, run, way, known, load, sample) {
  const { model, mask, ...how } = editRequest(state, run, way);
  const painted = mask && !(mask in WORDS);
  const what = way === "outpaint" ? "outpaint" : "edit";
  const [from, first] = [isOwn(state) ? "picture.png" : "picture/00000.png", sampleRequest(state, run)];
  const bytes = (base64) => `io.BytesIO(base64.b64decode(${python(base64)}))`;
  const written = (base64, name) => `echo ${base64} | base64 -d > ${name}`;
  const open = mask ? `mask=${painted ? bytes(mask) : python(mask)}, ` : "";
  const taken = isOwn(state) ? bytes(ownPicture(state)) : `run.generate(1, ${argumentsOf(run, first)})[0]`;
  const openFile = mask ? `mask=${painted ? "mask.png" : mask} ` : "";
  return {
    Python:
      `${load}picture = ${taken}\n` +
      `images = run.${what}(picture, ${open}${argumentsOf(run, how)})`,
    curl: curl("/gengen/v1/images/edits", { model, ...how, mask, image: known }),
    command: [
      isOwn(state) ? written(ownPicture(state), from) : `${sample} n=1 ${wordsOf(run, first)} out=picture`,
      painted && written(mask, "mask.png"),
      `${sample} what=${what} image=${from} ${openFile}${wordsOf(run, how)} out=changed`,
    ].filter(Boolean).join("\n"),
  };
}
