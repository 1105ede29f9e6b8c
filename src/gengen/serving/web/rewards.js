// What reward runs that are served think of answers.

import { post } from "./api.js";
import { bar } from "./chart.js";
import { h, short } from "./dom.js";

export const rewardRuns = (models) => models.filter((model) => model.gengen.stage === "reward");

/** question: { prompt } or { messages }; answers: [{ text, ended }]. Returns a score for each answer. */
export async function scores(model, question, answers, signal) {
  const found = new Array(answers.length).fill(null);
  for (const ended of [true, false]) { // a request is for answers that have ended, or for ones that have not
    const asked = answers.flatMap((answer, i) => (answer.ended === ended && (ended || answer.text) ? [i] : []));
    if (!asked.length) continue;
    const responses = asked.map((i) => answers[i].text);
    const { data } = await post("/gengen/v1/score", { model, ...question, responses, ended }, signal);
    data.forEach((row, j) => (found[asked[j]] = row.score));
  }
  return found;
}

/** A line for each answer: its score as a bar from the worst of them to the best. */
export function rewardBar(model, given, i) {
  const known = given.filter((score) => score !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  if (given[i] === null) return h("p", {}, `${model}: nothing to score`);
  const best = known.length > 1 && given[i] === high ? ", the best" : "";
  return h(
    "p",
    { class: "reward" },
    `${model}: `,
    bar(high > low ? 0.05 + (0.95 * (given[i] - low)) / (high - low) : 1, `${short(given[i])}${best}`),
  );
}
