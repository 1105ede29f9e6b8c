// A text as it is drawn, and at each place what else could have been drawn.

import { act } from "../act.js";
import { post, stream } from "../api.js";
import { lines } from "../chart.js";
import { chosen, numberField, runChoice, textField } from "../controls.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h } from "../dom.js";
import { NextTokens } from "../next.js";
import { anyOf, controlFields, controlsOf, keywords, otherFields } from "../settings.js";
import { Drawn } from "../tokens.js";

export const title = "Text";
export const about =
  "A language model draws one token after another. The darker a token, the less the model expected it.";
export const makes = "python scripts/train.py model=gpt data=tinystories";
export const usable = (models) => models.filter(
  (model) => model.gengen.kind === "text" && model.gengen.stage !== "reward"
);

const OTHER = "b_"; // keys of the second settings

export function show(root, { state, runs, signal }) {
  const [texts, line, origin] = [h("div", { class: "columns" }), h("div"), h("div")];
  const next = new NextTokens(branch);
  let [drawn, marked, wanted] = [[], null, state.get("token")]; // wanted: of a link, once it is there
  const main = act("Generate", generate, signal);

  async function generate(stopped) {
    const restored = wanted;
    wanted = "";
    state.set({ shown: 1, token: restored });
    state.push();
    next.clear();
    [drawn, marked] = [[], null];
    fill(texts);
    fill(line);
    await showOrigin(stopped);
    let count = 0;
    for (const group of planned(state, runs)) {
      group.texts = group.labels.map((label, i) => add(label, group, `${group.key}.${i}`));
      for await (const { choices } of stream("/v1/completions", group.body, stopped)) {
        for (const choice of choices) count += group.texts[choice.index].add(choice);
      }
    }
    const series = drawn.map(({ text, label }) => ({ name: label, points: text.surprisals }));
    fill(line, lines(series, "Surprisal of each token", { x: "tokens", y: "nats" }), sameness(drawn));
    const [key, i] = [restored.slice(0, restored.lastIndexOf(".")), Number(restored.split(".").pop())];
    const one = drawn.find((text) => text.key === key);
    if (one && one.text.tokens[i]) await pick(one, i, stopped);
    return `${count} tokens`;
  }

  function add(label, group, key) {
    const one = { label, group, key };
    one.text = new Drawn(label, (i) => pick(one, i, signal).catch((error) => next.fail(error)));
    drawn.push(one);
    texts.append(one.text.element);
    return one.text;
  }

  async function pick(one, i, stopped) {
    for (const other of drawn) other.text.mark(other === one ? i : -1);
    marked = one;
    state.set({ token: `${one.key}.${i}` });
    const { model, prompt } = one.group.body;
    await next.ask(
      { model, prompt }, one.text.ids.slice(0, i), one.text.tokens[i], controlsOf(state, one.group.prefix), stopped,
    );
  }

  function branch(ids) {
    state.set({ from: ids.join(","), token: null });
    main.run();
  }

  /** What is gone on from, where that is not the prompt: a token was chosen. */
  async function showOrigin(stopped) {
    fill(origin);
    if (!state.get("from")) return;
    const found = await post("/v1/detokenize", { model: chosen(state, runs).id, tokens: idsOf(state) }, stopped);
    const back = h("button", { type: "button", onclick: () => branch([]) }, "Back to the prompt alone");
    fill(
      origin,
      h("p", {}, "Goes on from here, where a token was chosen: "),
      h("pre", { tabindex: "0" }, found.text),
      back,
    );
  }

  const changed = () => next.draw(controlsOf(state, marked?.group.prefix));
  const otherPrompt = () => state.set({ from: null });
  fill(
    root,
    h("form", { onsubmit: (event) => event.preventDefault() },
      runChoice(state, runs, { changed: otherPrompt }),
      textField(
        state,
        "prompt",
        "Prompt",
        { rows: 2, hint: "how the text begins; empty: the model begins one", changed: otherPrompt },
      ),
      numberField(state, "max_tokens", "Tokens", { value: 100, min: 1 }),
      numberField(state, "seed", "Seed", { value: 0, min: 0, hint: "the same seed draws the same text" }),
      numberField(state, "n", "Texts", { value: 1, min: 1, max: 16, hint: "of each seed" }),
      numberField(state, "seeds", "Seeds", { value: 1, min: 1, max: 8, hint: "this one and the next" }),
      main.element),
    origin, texts, line,
    h("h2", {}, "How the next token is drawn"),
    h("form", { onsubmit: (event) => event.preventDefault() }, controlFields(state, changed)),
    h("details", { open: anyOf(state, OTHER) },
      h("summary", {}, "Draw a second time beside it: the same seed, other controls"),
      h("form", { onsubmit: (event) => event.preventDefault() }, otherFields(state, OTHER, changed))),
    next.element,
    copyBar(() => ways(state, runs)),
  );
  if (state.get("shown")) main.run();
}

const idsOf = (state) => state.get("from").split(",").filter(Boolean).map(Number);

/** The requests: for each seed one, or two where there are other controls. */
function planned(state, runs) {
  const [n, first] = [state.number("n", 1), state.number("seed", 0)];
  const prefixes = anyOf(state, OTHER) ? ["", OTHER] : [""];
  const seeds = Array.from({ length: state.number("seeds", 1) }, (_, i) => first + i);
  return seeds.flatMap((seed) => prefixes.map((prefix) => {
    const how = { n, seed, max_tokens: state.number("max_tokens", 100), ...controlsOf(state, prefix) };
    const body = { model: chosen(state, runs).id, prompt: promptOf(state), ...how, logprobs: 0 };
    const labels = Array.from({ length: n }, (_, i) => `seed ${seed}, text ${i}${prefix ? ", other controls" : ""}`);
    return { prefix, seed, body, labels, key: `${prefix}${seed}` };
  }));
}

function promptOf(state) {
  return state.get("from") ? idsOf(state) : state.get("prompt");
}

/** Where texts of one seed and different controls part. */
function sameness(drawn) {
  return drawn.filter((one) => one.group.prefix).map((one) => {
    const other = drawn.find(({ key }) => OTHER + key === one.key);
    const [a, b] = [one.text.ids, other.text.ids];
    const same = a.findIndex((id, i) => id !== b[i]);
    return h(
      "p", {}, `${other.label}: ${same < 0 ? "all" : `the first ${same}`} tokens are the same under both controls.`,
    );
  });
}

function ways(state, runs) {
  const bodies = planned(state, runs).map(({ body: { logprobs, ...body } }) => body);
  const [{ model, prompt }] = bodies;
  const ofTokens = Array.isArray(prompt);
  const begun = python(ofTokens ? [prompt] : prompt);
  const draw = ({ model: _, prompt: __, ...how }) =>
    `for sample in run.generate(${begun}, overflow="end", ${keywords(how, python)}):\n    print(sample.text)`;
  const command = ({ model: _, ...how }) => `python scripts/sample.py runs/${model} overflow=end ${settings(how)}`;
  const none = "# a command goes on from a text; this goes on from tokens, one of which was chosen";
  return {
    Python: `import gengen\n\nrun = gengen.load(${python(`runs/${model}`)})\n${bodies.map(draw).join("\n")}`,
    curl: bodies.map((body) => curl("/v1/completions", body)).join("\n"),
    command: ofTokens ? none : bodies.map(command).join("\n"),
  };
}
