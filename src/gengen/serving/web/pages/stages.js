// One prompt through several runs of a model, and what each thinks of the others' answers.

import { act } from "../act.js";
import { post, stream } from "../api.js";
import { chosen, numberField, runChoice, slider, textField } from "../controls.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h, short } from "../dom.js";
import { rewardBar, rewardRuns, scores } from "../rewards.js";
import { keywords } from "../settings.js";
import { Drawn } from "../tokens.js";

export const title = "Stages";
export const about =
  "The same prompt and seed through runs before and after fine-tuning: what each answers, " +
  "and how likely the others would have been to say it.";
export const makes =
  "python scripts/train.py run=sft stage=sft init_from=runs/base data=stories\n" +
  "python scripts/serve.py runs/base runs/sft playground=true";
const texts = (models) => models.filter((model) => model.gengen.kind === "text" && model.gengen.stage !== "reward");
const alike = (runs, one) => runs.filter((run) => run.gengen.tokenizer === one.gengen.tokenizer);
export const usable = (models) => texts(models).filter((run, _, runs) => alike(runs, run).length > 1);

export function show(root, { state, runs, models, signal }) {
  const [answers, ratios] = [
    h("div", { class: "columns" }), h("section", { "aria-label": "the answer under other runs" }),
  ];
  const main = act("Ask all", ask, signal);
  let drawn = [];

  async function ask(stopped) {
    state.set({ shown: 1 });
    state.push();
    fill(ratios);
    drawn = alike(runs, chosen(state, runs)).map(
      (run) => ({ run, text: new Drawn(`${run.id} (${run.gengen.stage})`), ended: false })
    );
    fill(answers, drawn.map((one) => one.text.element));
    await Promise.all(drawn.map((one) => draw(one, stopped)));
    for (const { id } of rewardRuns(models)) await reward(id, stopped);
    for (const one of drawn) {
      const onclick = () => compare(one, signal);
      one.text.element.append(h("button", { type: "button", onclick }, "How likely under the others?"));
    }
    await compare(drawn.find(({ run }) => run.id === state.get("answer")) ?? drawn[0], stopped);
    return `${drawn.length} answers`;
  }

  async function draw(one, stopped) {
    const body = { ...request(state), model: one.run.id, logprobs: 0 };
    for await (const { choices } of stream("/v1/completions", body, stopped)) {
      one.text.add(choices[0]);
      one.ended ||= choices[0].gengen?.finish_reason === "end";
    }
  }

  async function reward(id, stopped) {
    const list = drawn.map(({ text, ended }) => ({ text: text.text, ended }));
    const given = await scores(id, { prompt: state.get("prompt") }, list, stopped);
    drawn.forEach((one, i) => one.text.element.append(rewardBar(id, given, i)));
  }

  /** One answer, its tokens shaded by how much likelier they are to its own run than to another. */
  async function compare(one, stopped) {
    state.set({ answer: one.run.id });
    const own = await logprobs(one.run.id, state.get("prompt"), one.text.ids, stopped);
    const rows = [];
    for (const { run } of drawn.filter((other) => other !== one)) {
      const theirs = await logprobs(run.id, state.get("prompt"), one.text.ids, stopped);
      rows.push(shaded(one, run.id, own.map((logprob, i) => logprob - theirs[i])));
    }
    if (state.get("answer") !== one.run.id) return; // another was asked for meanwhile
    const meaning =
      "Orange: likelier to its own run. Blue: likelier to the other. " +
      "A ratio is the difference of log-probabilities, in nats.";
    const name = h("h2", {}, `The answer of ${one.run.id} under the other runs`);
    fill(ratios, name, h("p", { class: "about" }, meaning), rows);
  }

  fill(
    root,
    h("form", { onsubmit: (event) => event.preventDefault() },
      runChoice(state, runs, { label: "All runs that share the tokens of" }),
      textField(state, "prompt", "Prompt", { rows: 2, hint: "a run of conversations reads it as a user's message" }),
      slider(state, "temperature", "Temperature", { value: 1, min: 0, max: 2 }),
      numberField(state, "max_tokens", "Tokens", { value: 60, min: 1 }),
      numberField(state, "seed", "Seed", { value: 0, min: 0 }),
      main.element),
    answers,
    ratios,
    copyBar(() => ways(state, runs)),
  );
  if (state.get("shown")) main.run();
}

function request(state) {
  return {
    prompt: state.get("prompt"),
    seed: state.number("seed", 0),
    max_tokens: state.number("max_tokens", 60),
    temperature: state.number("temperature", 1),
  };
}

/** The log-probability of each token of an answer after a prompt, as a run reads it. */
async function logprobs(model, prompt, ids, signal) {
  if (!ids.length) return [];
  const read = (await post("/gengen/v1/next", { model, prompt, top: 1 }, signal)).prompt;
  const body = { model, prompt: [...read, ...ids], echo: true, logprobs: 0, max_tokens: 0 };
  const { choices } = await post("/v1/completions", body, signal);
  return choices[0].logprobs.token_logprobs.slice(-ids.length);
}

function shaded(one, other, ratios) {
  const text = new Drawn(`${one.run.id} against ${other}`);
  const shade = (ratio) => `${ratio < 0 ? "less" : "shade"}-${Math.min(9, Math.ceil(2 * Math.abs(ratio)))}`;
  text.shade = (i) => (ratios[i] === undefined ? "" : shade(ratios[i]));
  const { tokens } = one.text;
  const all = {
    tokens: tokens.map(({ name }) => name),
    token_ids: one.text.ids,
    token_logprobs: tokens.map(({ logprob }) => logprob),
    text_offset: tokens.map(({ offset }) => offset),
  };
  text.add({ text: one.text.text, logprobs: all });
  [...text.list.children].forEach((token, i) => (token.title = `${short(ratios[i])} nats`));
  const total = ratios.reduce((a, b) => a + b, 0);
  fill(text.ending, `· in all ${short(total)} nats, ${short(total / ratios.length)} a token`);
  return text.element;
}

function ways(state, runs) {
  const { prompt, ...how } = request(state);
  const names = alike(runs, chosen(state, runs)).map((run) => run.id);
  const given = `${python(prompt)}, overflow="end", ${keywords(how, python)}`;
  const draw = `gengen.load(f"runs/{name}").generate(${given})[0].text`;
  return {
    Python: `import gengen\n\nfor name in ${python(names)}:\n    print(${draw})`,
    curl: names.map((model) => curl("/v1/completions", { model, prompt, ...how })).join("\n"),
    command: names.map(
      (name) => `python scripts/sample.py runs/${name} n=1 overflow=end ${settings({ prompt, ...how })}`
    ).join("\n"),
  };
}
