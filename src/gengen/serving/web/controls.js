// Fields that are bound to a key of the state. Each has a label, and says what changed by `changed(key, value)`.

import { h } from "./dom.js";

let fields = 0;

/** A label with its field, and a hint that screen readers read too. */
export function labelled(label, control, hint = "") {
  control.id ||= `field-${++fields}`;
  if (hint) control.setAttribute("aria-describedby", `${control.id}-hint`);
  return h(
    "div",
    { class: "field" },
    h("label", { for: control.id }, label),
    control,
    hint && h("small", { id: `${control.id}-hint` }, hint),
  );
}

function bound(state, key, changed) {
  return (event) => {
    state.set({ [key]: event.target.value });
    changed?.(key, event.target.value);
  };
}

export function textField(state, key, label, { value = "", rows = 1, hint = "", changed } = {}) {
  const attributes = { value: state.get(key, value), oninput: bound(state, key, changed), spellcheck: "false" };
  const control = rows > 1 ? h("textarea", { rows, ...attributes }) : h("input", { type: "text", ...attributes });
  return labelled(label, control, hint);
}

/** An empty field means that the control is off. */
export function numberField(state, key, label, { value = null, min, max, step = 1, hint = "", changed } = {}) {
  const given = state.number(key, value);
  const attributes = { type: "number", min, max, step, value: given ?? "", oninput: bound(state, key, changed) };
  return labelled(label, h("input", attributes), hint);
}

export function slider(state, key, label, { value, min, max, step = 0.01, hint = "", changed } = {}) {
  const now = h("output", {}, String(state.number(key, value)));
  const follow = bound(state, key, changed);
  const oninput = (event) => {
    now.textContent = event.target.value;
    follow(event);
  };
  const control = h("input", { type: "range", min, max, step, oninput });
  control.value = state.number(key, value); // after its range is known
  const field = labelled(label, control, hint);
  field.querySelector("label").append(" ", now);
  return field;
}

/** options: values, or [value, shown]. */
export function choice(state, key, label, options, { value = "", hint = "", changed } = {}) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const given = state.get(key, value);
  const control = h(
    "select", { onchange: bound(state, key, changed) }, ...pairs.map(([v, shown]) => h("option", { value: v }, shown)),
  );
  control.value = pairs.some(([v]) => String(v) === given) ? given : pairs[0]?.[0];
  return labelled(label, control, hint);
}

/** Which of some runs, by its name. */
export function runChoice(state, runs, { key = "run", label = "Run", changed } = {}) {
  const options = runs.map(
    (run) => [run.id, `${run.id} (${run.gengen.family}, ${run.gengen.stage}, step ${run.gengen.step})`]
  );
  return choice(state, key, label, options, { value: runs[0]?.id, changed });
}

/** The run that a state names, or the first. */
export function chosen(state, runs, key = "run") {
  return runs.find((run) => run.id === state.get(key)) ?? runs[0];
}
