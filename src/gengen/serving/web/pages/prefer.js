// Two samples, and which is better: votes that a reward model learns from.

import { act } from "../act.js";
import { get, post } from "../api.js";
import { numberField, runChoice, slider, textField } from "../controls.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h } from "../dom.js";
import { promptSource } from "../prompts.js";

export const title = "Prefer";
export const about =
  "Which of two texts is better? Your votes are what a reward model learns from; " +
  "which run wrote which is told after the vote.";
export const makes = "python scripts/train.py model=gpt data=tinystories";
export const usable = (models) => models.filter(
  (model) => model.gengen.kind === "text" && model.gengen.stage !== "reward"
);

const KEYS = { 1: "left", 2: "right", 3: "tie", 4: "bad", s: "skip" };
const WORDS = { left: "Left is better", right: "Right is better", tie: "Equally good", bad: "Both bad", skip: "Skip" };
const IMPORTS = "import gengen\nfrom gengen.data.dialogue.template import prompt_tokens";
const API = "/gengen/v1/preference";

export async function show(root, { state, runs, signal }) {
  const parts = Object.fromEntries(["pair", "told", "figures"].map((name) => [name, h("div", {})]));
  const source = promptSource(state, () => named(state, runs, "run"), signal);
  const view = { state, runs, signal, parts, source, pair: null, last: null, following: null, since: 0 };
  const main = act("Show a pair", (stopped) => ask(view, stopped), signal);
  fill(parts.told, h("p", {}, "Nothing voted on yet."));
  fill(
    root, form(state, runs, main, source), parts.pair,
    h("h2", {}, "Your last vote"), h("div", { role: "status" }, parts.told),
    h("h2", {}, "What your votes say"), parts.figures);
  document.addEventListener("keydown", (event) => pressed(view, main, event), { signal });
  view.next = main.run;
  await count(view);
  if (state.get("number")) await main.run(); // a reload shows the same pair
}

function form(state, runs, main, source) {
  const anew = () => state.set({ number: null }); // another annotator has pairs of her own
  return h("form", { onsubmit: (event) => event.preventDefault() },
    textField(
      state, "annotator", "Your name",
      { value: "me", hint: "votes are counted for each name by itself", changed: anew },
    ),
    runChoice(state, runs, { key: "run", label: "One text by", changed: source.show }),
    runChoice(state, runs, { key: "other", label: "The other by" }),
    slider(state, "temperature", "Temperature", { value: 1, min: 0, max: 2 }),
    numberField(state, "max_tokens", "Tokens at most", { value: 60, min: 1, max: 512 }),
    numberField(state, "seed", "Seed", { value: 0, min: 0 }),
    source.element,
    main.element);
}

const named = (state, runs, key) => (runs.some((run) => run.id === state.get(key)) ? state.get(key) : runs[0].id);
const annotator = (state) => state.get("annotator", "me");

/** What is asked for: pair `number` and all that decides on its texts. */
async function wanted({ state, runs, source }, number) {
  const prompts = await source.prompts();
  return {
    annotator: annotator(state), number, model: named(state, runs, "run"), other: named(state, runs, "other"),
    prompt: prompts[(number - 1) % prompts.length] ?? "", seed: state.number("seed", 0),
    temperature: state.number("temperature", 1), max_tokens: state.number("max_tokens", 60),
  };
}

async function ask(view, signal) {
  const { state, parts } = view;
  const summary = await count(view);
  const number = view.following ?? state.number("number") ?? summary.next;
  const pair = await post(`${API}/pair`, await wanted(view, number), signal);
  state.set({ number: pair.number }); // not before: the address of the pair before would be lost
  state.push();
  Object.assign(view, { pair, following: null, since: performance.now() });
  const text = (side) => h("figure", {},
    h("figcaption", {}, side === "left" ? "Left" : "Right"),
    h("div", { class: "tokens", tabindex: "0", role: "region", "aria-label": `the ${side} text` }, pair[side]));
  const buttons = Object.entries(KEYS).map(([key, vote]) =>
    h(
      "button",
      { type: "button", "aria-keyshortcuts": key, onclick: () => voted(view, vote) },
      `${WORDS[vote]} (${key})`,
    ));
  const undo = h(
    "button", { type: "button", "aria-keyshortcuts": "u", onclick: () => undone(view) }, "Undo the last vote (u)",
  );
  const prompt = h("pre", { tabindex: "0", role: "region", "aria-label": "the prompt" }, pair.prompt);
  fill(parts.pair, h("h2", {}, `Pair ${pair.number}`), prompt,
    h("div", { class: "columns" }, text("left"), text("right")),
    h("p", { class: "buttons", role: "group", "aria-label": "your vote" }, ...buttons, undo));
  if (pair.voted) tell(view, pair.voted);
  return `pair ${pair.number}`;
}

function pressed(view, main, event) {
  const writing = event.target.closest?.("input, textarea, select");
  if (writing || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === "u") undone(view);
  else if (KEYS[event.key] && view.pair) voted(view, KEYS[event.key]);
}

/** Write a vote, and show the next pair. The same vote asked for twice is written once. */
async function voted(view, vote) {
  const pair = view.pair;
  if (!pair || view.busy) return;
  view.busy = true;
  try {
    const seconds = Math.min(86400, (performance.now() - view.since) / 1000);
    const told = await post(API, { id: pair.id, vote, seconds }, view.signal);
    tell(view, told);
    Object.assign(view, { pair: null, following: pair.number + 1 });
    await view.next();
  } catch (error) {
    if (!view.signal.aborted) fill(view.parts.told, h("p", { role: "alert", class: "error" }, error.message));
  } finally {
    view.busy = false;
  }
}

async function undone(view) {
  if (!view.last || view.busy) return;
  view.busy = true;
  try {
    const { id, number } = view.last;
    await post(`${API}/undo`, { id }, view.signal);
    Object.assign(view, { last: null, following: number });
    fill(view.parts.told, h("p", {}, `The vote on pair ${number} was taken back.`));
    await view.next();
  } catch (error) {
    if (!view.signal.aborted) fill(view.parts.told, h("p", { role: "alert", class: "error" }, error.message));
  } finally {
    view.busy = false;
  }
}

/** Say where the texts came from, now that the vote is given. */
function tell(view, told) {
  view.last = { id: told.id, number: told.number };
  const one = ({ name, step, index }) => `${name} (step ${step}, sample ${index} of seed ${told.seed})`;
  const seen = "You had seen this pair before, sides swapped: whether you said the same is counted below.";
  const vote = `Pair ${told.number}: ${WORDS[told.vote].toLowerCase()}.`;
  const runs = `Left was by ${one(told.left)}, right by ${one(told.right)}.`;
  fill(view.parts.told,
    h("p", {}, [vote, runs, told.again ? seen : ""].join(" ")),
    copyBar(() => ways(told)));
}

/** Both texts of a pair, as the library draws them. */
function ways(told) {
  const { temperature, max_tokens } = told.settings;
  const how = `seed=${told.seed}, temperature=${python(temperature)}, max_tokens=${max_tokens}, overflow="end"`;
  const messages = [{ role: "user", content: told.prompt }];
  const prompt = (side) => (
    told[side].chat ? `[prompt_tokens(run.tokenizer, ${python(messages)})]` : python(told.prompt)
  );
  const lines = (side) => [
    `run = gengen.load(${python(`runs/${told[side].name}`)})`,
    `print(run.generate(${prompt(side)}, n=2, ${how})[${told[side].index}].text)`,
  ];
  const body = (side) => {
    const asked = told[side].chat ? { messages } : { prompt: told.prompt };
    return { model: told[side].name, ...asked, n: 2, seed: told.seed, temperature, max_tokens };
  };
  const words = settings({ temperature, max_tokens, seed: told.seed, prompt: told.prompt });
  const command = (side) => `python scripts/sample.py runs/${told[side].name} n=2 overflow=end ${words}`;
  const path = (side) => (told[side].chat ? "/v1/chat/completions" : "/v1/completions");
  return {
    Python: [IMPORTS, "", ...lines("left"), ...lines("right")].join("\n"),
    curl: [curl(path("left"), body("left")), curl(path("right"), body("right"))].join("\n"),
    command: [command("left"), command("right")].join("\n"),
  };
}

async function count(view) {
  const found = await get(`${API}?annotator=${encodeURIComponent(annotator(view.state))}`, view.signal);
  const percent = (number) => Math.round(100 * number);
  const sure = (one) => `${one.count} of ${one.of}; 95 % interval ${percent(one.low)} to ${percent(one.high)} %`;
  const share = (one) => (one ? `${percent(one.count / one.of)} % (${sure(one)})` : "none yet");
  const wins = found.wins.map((one) => [`${one.run} preferred to ${one.over}`, share(one)]);
  const rows = [
    ["Pairs to learn from", `${found.pairs} of yours, ${found.all_pairs} in the file`],
    ["Ties, both bad, skipped", `${found.tie}, ${found.bad}, ${found.skip}`],
    ["You agree with yourself", share(found.agreement)],
    ["You chose the left one", share(found.left)],
    ...wins,
  ];
  fill(view.parts.figures,
    h(
      "table",
      {},
      h("tbody", {}, ...rows.map(([name, said]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, said)))),
    ),
    h("p", {},
      "One pair in ten comes again with its sides swapped. Half of the time left is what a fair eye chooses."),
    h("p", {}, `Every vote is a line of ${found.file}. This trains a reward model on them:`),
    h("pre", { tabindex: "0", role: "region", "aria-label": "the command" }, found.train));
  return found;
}
