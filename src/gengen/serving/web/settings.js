// How the next token is drawn: the fields, and what a request says of them.

import { numberField, slider } from "./controls.js";

const NEUTRAL = { temperature: 1, top_k: null, top_p: 1, min_p: 0, repetition_penalty: 1 };

/** The controls that are on. Those of a prefix are as the ones without where they are not given. */
export function controlsOf(state, prefix = "") {
  const found = {};
  for (const [key, neutral] of Object.entries(NEUTRAL)) {
    const value = state.number(prefix + key, state.number(key, neutral));
    if (value !== neutral || key === "temperature") found[key] = value;
  }
  return found;
}

export const anyOf = (state, prefix) => Object.keys(NEUTRAL).some((key) => state.get(prefix + key) !== "");

export function controlFields(state, changed) {
  return [
    slider(
      state,
      "temperature",
      "Temperature",
      { value: 1, min: 0, max: 2, hint: "below 1 surer, above 1 wilder", changed },
    ),
    numberField(state, "top_k", "Top k", { min: 1, hint: "only the k likeliest; empty: all", changed }),
    slider(
      state,
      "top_p",
      "Top p",
      { value: 1, min: 0.01, max: 1, hint: "only the likeliest that hold this share", changed },
    ),
    slider(
      state,
      "min_p",
      "Min p",
      { value: 0, min: 0, max: 1, hint: "only those this likely, the likeliest being 1", changed },
    ),
    slider(
      state,
      "repetition_penalty",
      "Repetition penalty",
      { value: 1, min: 1, max: 2, hint: "above 1: less repeated", changed },
    ),
  ];
}

/** The same again, for a second draw: an empty field is as above. */
export function otherFields(state, prefix, changed) {
  const field = (key, label, limits) => numberField(state, prefix + key, label, { ...limits, changed });
  return [
    field("temperature", "Temperature", { min: 0, max: 2, step: 0.1 }),
    field("top_k", "Top k", { min: 1 }),
    field("top_p", "Top p", { min: 0.05, max: 1, step: 0.05 }),
    field("min_p", "Min p", { min: 0, max: 1, step: 0.05 }),
    field("repetition_penalty", "Repetition penalty", { min: 1, max: 2, step: 0.1 }),
  ];
}

/** The settings of a draw as Python's keywords. */
export function keywords(values, python) {
  return Object.entries(values).map(([key, value]) => `${key}=${python(value)}`).join(", ");
}
