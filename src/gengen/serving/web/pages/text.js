// A text as it is drawn: each token shaded by how much it surprised the model.

import { act } from "../act.js";
import { stream } from "../api.js";
import { chosen, numberField, runChoice, slider, textField } from "../controls.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h, short } from "../dom.js";

export const title = "Text";
export const about = "A language model draws one token after another. The darker a token, the less it was expected.";
export const makes = "python scripts/train.py model=gpt data=tinystories";
export const usable = (models) => models.filter((model) => model.gengen.kind === "text" && model.gengen.stage !== "reward");

export function show(root, { state, runs, signal }) {
  const output = h("div", { class: "tokens", role: "group", "aria-label": "the text", "aria-live": "polite" });
  const main = act("Generate", generate, signal);

  async function generate(stopped) {
    state.push();
    fill(output);
    let drawn = 0;
    for await (const { choices } of stream("/v1/completions", request(state, runs), stopped)) {
      for (const choice of choices) drawn += append(output, choice);
    }
    return `${drawn} tokens`;
  }

  fill(
    root,
    h("form", { onsubmit: (event) => event.preventDefault() },
      runChoice(state, runs),
      textField(state, "prompt", "Prompt", { rows: 3 }),
      slider(state, "temperature", "Temperature", { value: 1, min: 0, max: 2 }),
      numberField(state, "top_k", "top k", { min: 1 }),
      numberField(state, "max_tokens", "Tokens", { value: 100, min: 1 }),
      numberField(state, "seed", "Seed", { value: 0, min: 0 }),
      main.element),
    output,
    copyBar(() => ways(state, runs)),
  );
}

function request(state, runs) {
  const body = { model: chosen(state, runs).id, prompt: state.get("prompt"), logprobs: 0 };
  for (const [key, fallback] of [["temperature", 1], ["top_k", null], ["max_tokens", 100], ["seed", 0]]) {
    const value = state.number(key, fallback);
    if (value !== null) body[key] = value;
  }
  return body;
}

/** Add the tokens of a piece; returns how many. */
function append(output, { logprobs, text }) {
  if (!logprobs) output.append(text);
  const tokens = logprobs?.tokens ?? [];
  tokens.forEach((token, i) => {
    const surprisal = -logprobs.token_logprobs[i];
    const shade = Math.min(9, Math.floor(surprisal));
    output.append(h("span", { class: `token shade-${shade}`, title: `${short(surprisal)} nats` }, token));
  });
  return tokens.length;
}

function ways(state, runs) {
  const { model, prompt, logprobs, ...how } = request(state, runs);
  const named = Object.entries(how).map(([key, value]) => `${key}=${python(value)}`).join(", ");
  return {
    Python: `import gengen\n\nprint(gengen.load(${python(`runs/${model}`)}).generate(${python(prompt)}, overflow="end", ${named})[0].text)`,
    curl: curl("/v1/completions", { model, prompt, ...how }),
    command: `python scripts/sample.py runs/${model} n=1 overflow=end ${settings({ prompt, ...how })}`,
  };
}
