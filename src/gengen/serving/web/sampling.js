// What a run of diffusion is asked for, as fields, as parts of a request, and as words of Python and of a command.

import { choice, numberField, textField } from "./controls.js";
import { python, settings } from "./copy.js";
import { h } from "./dom.js";
import { keywords } from "./settings.js";

export const SAMPLERS = ["heun", "dpmpp_2m", "ddim", "ancestral"];
const FAST = { sampler: "ddim", steps: 20 }; // one call a step: what is seen soon teaches more
const PROMPT = "a red circle";

export const usable = (models) => models.filter((model) => model.gengen.edits);

/** What is to be shown: a prompt, or one of the classes; null for a run that knows neither. any: a choice of none. */
export function wantedField(state, run, { key = "prompt", label = "", any = "" } = {}) {
  const { captions, classes } = run.gengen;
  if (captions) return textField(state, key, label || "Prompt", { value: any ? "" : PROMPT });
  const options = any ? [["", any], ...classes] : classes;
  return classes.length ? choice(state, key, label || "Class", options, { value: any ? "" : classes[0] }) : null;
}

export function wanted(state, run, { key = "prompt", any = false } = {}) {
  return state.get(key, any ? "" : run.gengen.captions ? PROMPT : run.gengen.classes[0]);
}

/** The fields of the sampler, but those that a view chooses by itself; those that few need are behind "more". */
export function samplingFields(state, run, { without = [], steps = FAST.steps } = {}) {
  const { captions, classes } = run.gengen;
  const guided = captions || classes.length;
  const fields = {
    seed: () => numberField(state, "seed", "Seed", { value: 0, min: 0 }),
    steps: () => numberField(state, "steps", "Steps", { value: steps, min: 1, max: 250 }),
    guidance: () => guided && numberField(
      state, "guidance", "Guidance", { min: 0, max: 100, step: 0.5, hint: "1 = off; empty = usual" },
    ),
  };
  const more = {
    sampler: () => choice(state, "sampler", "Sampler", SAMPLERS, { value: FAST.sampler }),
    interval: () => guided && [
      numberField(state, "guide_from", "Guide from", { min: 0, max: 1, step: 0.05, hint: "share of noise, 0 to 1" }),
      numberField(state, "guide_to", "Guide to", { min: 0, max: 1, step: 0.05, hint: "share of noise, 0 to 1" }),
    ],
    negative: () => captions && textField(state, "negative", "Not this", { hint: "a text to lead away from" }),
  };
  const wantedOf = (group) => Object.entries(group).filter(([name]) => !without.includes(name));
  const shown = (group) => wantedOf(group).flatMap(([, field]) => field() || []);
  const rest = shown(more);
  const behind = h("details", { class: "wide" }, h("summary", {}, "More"), h("div", { class: "more" }, rest));
  return [...shown(fields), rest.length ? behind : null];
}

/** The settings that these fields say, those that are left empty left out. */
export function sampling(state, run, { steps = FAST.steps } = {}) {
  const how = {
    seed: state.number("seed", 0), sampler: state.get("sampler", FAST.sampler), steps: state.number("steps", steps),
  };
  for (const key of ["guidance", "guide_from", "guide_to"]) {
    if (state.number(key) !== null) how[key] = state.number(key);
  }
  if (run.gengen.captions && state.get("negative")) how.negative = state.get("negative");
  return how;
}

/** Arguments of Python, of a request without its model. */
export function argumentsOf(run, { prompt = "", ...how }) {
  return keywords({ ...asked(run, prompt, (name) => [name]), ...how }, python);
}

/** Words of the command `sample`, likewise. */
export function wordsOf(run, { prompt = "", ...how }) {
  const { prompts, ...classes } = asked(run, prompt, (name) => name);
  return settings({ prompt: prompts, ...classes, ...how });
}

function asked(run, prompt, labels) {
  if (!prompt) return {};
  return run.gengen.captions ? { prompts: prompt } : { labels: labels(prompt) };
}

/** The numbers of a text such as "1, 2, 4". */
export function numbers(text, label) {
  const parts = text.split(/[\s,]+/).filter(Boolean);
  const wrong = parts.find((part) => !Number.isFinite(Number(part)));
  if (wrong !== undefined || !parts.length) throw new Error(
    `${label}: ${wrong ?? "nothing"} is no number; write 1, 2, 4`
  );
  return parts.map(Number);
}
