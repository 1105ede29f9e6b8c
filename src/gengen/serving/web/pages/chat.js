// A conversation, what of it the model reads, and answers that obey or are chosen among.

import { act } from "../act.js";
import { post, stream } from "../api.js";
import { choice, chosen, numberField, runChoice, textField } from "../controls.js";
import { copyBar, curl, python, settings } from "../copy.js";
import { fill, h } from "../dom.js";
import { masked } from "../masked.js";
import { rewardBar, rewardRuns, scores } from "../rewards.js";
import { controlFields, controlsOf, keywords } from "../settings.js";
import { visible } from "../tokens.js";

export const title = "Chat";
export const about =
  "A conversation is one text with markers between the messages; " +
  "the model goes on with it where the assistant speaks.";
export const makes = "python scripts/train.py stage=sft init_from=runs/base data=stories";
export const usable = (models) => models.filter((model) => model.gengen.chat);

const SCHEMA = {
  type: "object",
  properties: { name: { enum: ["cat", "dog", "bird"] }, tame: { type: "boolean" } },
  required: ["name", "tame"],
  additionalProperties: false,
};
const TOOLS = [
  {
    type: "function",
    function: {
      name: "feed",
      parameters: {
        type: "object",
        properties: { animal: { enum: ["cat", "dog"] } },
        required: ["animal"],
        additionalProperties: false,
      },
    },
  },
];
const FORMS = [["", "any text"], ["schema", "JSON that obeys a schema"], ["tool", "a call of a tool"]];

export function show(root, { state, runs, models, signal }) {
  const [past, read, answers, obey] = [
    h("ol", { class: "past" }),
    h("div", { class: "tokens" }),
    h("div", { class: "columns" }),
    h("div", { class: "wide" }),
  ];
  const main = act("Send", send, signal);

  async function send(stopped) {
    state.set({ shown: 1 });
    state.push();
    const { body } = asked(state, runs);
    fill(answers);
    showRead(read, await post("/v1/tokenize", { model: body.model, messages: body.messages }, stopped));
    const shown = Array.from({ length: body.n }, (_, i) => answerBox(`answer ${i}`));
    fill(answers, shown.map((one) => one.element));
    for await (const { choices } of stream("/v1/chat/completions", body, stopped)) {
      for (const one of choices) shown[one.index].add(one);
    }
    const { vocabulary } = chosen(state, runs).gengen;
    for (const one of shown) one.end(() => goOn(one.text), vocabulary);
    for (const { id } of rewardRuns(models)) {
      const given = await scores(id, { messages: body.messages }, shown, stopped);
      shown.forEach((one, i) => one.element.append(rewardBar(id, given, i)));
    }
    return `${shown.length} ${shown.length === 1 ? "answer" : "answers"}`;
  }

  /** Take an answer into the conversation. */
  function goOn(text) {
    const said = [
      ...messagesOf(state), { role: "user", content: state.get("say") }, { role: "assistant", content: text },
    ];
    state.set({ messages: JSON.stringify(said), say: null, shown: null });
    state.push();
    fill(answers);
    showPast();
    say.querySelector("textarea").value = "";
    say.querySelector("textarea").focus();
  }

  function showPast() {
    const again = h(
      "button",
      { type: "button", onclick: () => (state.set({ messages: null, shown: null }), state.push(), showPast()) },
      "Begin anew",
    );
    const said = messagesOf(state);
    const message = ({ role, content }) =>
      h("li", { class: role }, h("strong", {}, role), " ", h("span", { class: "said" }, content));
    fill(past, said.map(message), said.length ? h("li", {}, again) : null);
  }

  function showObey() {
    const form = state.get("form");
    const example = JSON.stringify(form === "tool" ? TOOLS : SCHEMA);
    const label = form === "tool" ? "Tools, as OpenAI has them" : "Schema";
    const hint = "every token that would break it is forbidden: the form is certain, the sense is the model's";
    fill(obey, form && textField(state, form, label, { rows: 4, value: example, hint }));
  }

  const say = textField(state, "say", "You say", { rows: 2 });
  fill(
    root,
    past,
    h("form", { onsubmit: (event) => event.preventDefault() },
      runChoice(state, runs),
      textField(state, "system", "System", { hint: "said before all else; empty: nothing" }),
      say,
      numberField(state, "n", "Answers", { value: 1, min: 1, max: 16, hint: "go on with the one you like" }),
      numberField(state, "max_tokens", "Tokens", { value: 100, min: 1 }),
      numberField(state, "seed", "Seed", { value: 0, min: 0 }),
      choice(state, "form", "The answer is", FORMS, { changed: showObey }),
      obey,
      main.element),
    answers,
    h("h2", {}, "What the model reads"),
    h("p", { class: "about" }, "Markers are tokens of their own, which no message can spell."),
    read,
    h(
      "details",
      {},
      h("summary", {}, "How the next token is drawn"),
      h("form", { onsubmit: (event) => event.preventDefault() }, controlFields(state)),
    ),
    copyBar(() => ways(state, runs)),
  );
  showPast();
  showObey();
  if (state.get("shown")) main.run();
}

function messagesOf(state) {
  const said = JSON.parse(state.get("messages", "[]"));
  return Array.isArray(said) ? said : [];
}

/** The request, and what of it makes an answer obey. */
function asked(state, runs) {
  const system = state.get("system") ? [{ role: "system", content: state.get("system") }] : [];
  const messages = [...system, ...messagesOf(state), { role: "user", content: state.get("say") }];
  const how = {
    n: state.number("n", 1),
    seed: state.number("seed", 0),
    max_tokens: state.number("max_tokens", 100),
    ...controlsOf(state),
  };
  const form = state.get("form");
  const wanted = form && parsed(state.get(form, JSON.stringify(form === "tool" ? TOOLS : SCHEMA)), form);
  const schema = { response_format: { type: "json_schema", json_schema: { name: "answer", schema: wanted } } };
  const forms = { "": {}, schema, tool: { tools: wanted, tool_choice: "required" } };
  const { id, gengen } = chosen(state, runs);
  const told = form && !gengen.filters.length ? { logprobs: true } : {}; // with them comes what the form forbids
  return { messages, how, form, wanted, body: { model: id, messages, ...how, ...forms[form], ...told } };
}

function parsed(text, form) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${form === "tool" ? "the tools are" : "the schema is"} no JSON: ${error.message}`);
  }
}

/** Where an answer comes in: { element, text, ended, add(choice), end(goOn, vocabulary) }. */
function answerBox(label) {
  const text = h("div", { class: "tokens answer", role: "group", tabindex: "0", "aria-label": label });
  const ending = h("small", {});
  const element = h("figure", {}, h("figcaption", {}, label, " ", ending), text);
  const box = { element, text: "", ended: false, allowed: null };
  box.add = ({ delta, finish_reason, gengen }) => {
    const call = delta.tool_calls?.[0].function;
    box.text += call ? `${call.name}(${call.arguments})` : delta.content ?? "";
    text.textContent = box.text;
    if (!finish_reason) return;
    Object.assign(box, { ended: finish_reason !== "length", allowed: gengen?.allowed });
    fill(ending, box.ended ? "· ended" : "· cut off, no whole answer");
  };
  box.end = (goOn, vocabulary) => {
    if (box.allowed) box.element.append(masked(box.allowed, vocabulary));
    box.element.append(h("button", { type: "button", onclick: goOn }, "Go on with this"));
  };
  return box;
}

function showRead(element, { pieces, count, context }) {
  const shown = ({ special, text, bytes }) =>
    special
      ? h("span", { class: "special", title: "a marker" }, special)
      : h("span", { class: "piece", title: bytes }, visible(text));
  fill(element, pieces.map(shown));
  element.append(h("p", {}, h("small", {}, `${count} tokens of ${context} that fit`)));
}

function ways(state, runs) {
  const { messages, how, form, wanted, body } = asked(state, runs);
  const schema = { schema: python(wanted), tool: `tool_schema(${python(wanted)})` }[form];
  const imports = ["import gengen", "from gengen.data.dialogue.template import prompt_tokens"];
  if (form) imports.push("from gengen.generation.text.grammar import GrammarSpec");
  if (form === "tool") imports.push("from gengen.generation.text.tools import tool_schema");
  const run = `runs/${body.model}`;
  const grammar = form ? `, grammar=GrammarSpec(json_schema=${schema})` : "";
  const given = `overflow="end", ${keywords(how, python)}${grammar}`;
  const draw = `run.generate([prompt_tokens(run.tokenizer, messages)], ${given})`;
  const lines = [`run = gengen.load(${python(run)})`, `messages = ${python(messages)}`, `for sample in ${draw}:`];
  const command = `python scripts/sample.py ${run} overflow=end ${settings({ prompt: state.get("say"), ...how })}`;
  const none = "# a command takes one message, and a schema from a file: see its --help";
  return {
    Python: [...imports, "", ...lines, "    print(sample.text)"].join("\n"),
    curl: curl("/v1/chat/completions", body),
    command: messages.length > 1 || form ? none : command,
  };
}
