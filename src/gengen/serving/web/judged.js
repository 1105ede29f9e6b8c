// Logits of a discriminator: of drawn and of real pictures, and the lines that tell them apart.

import { post } from "./api.js";
import { lines } from "./chart.js";
import { h, picture, short } from "./dom.js";

const BINS = 16;

/** Pictures of a run's own data with their logits, { of, data }; { missing } says why there are none. */
export async function real(model, part, prompt, n, signal) {
  try {
    return await post("/gengen/v1/real", { model, part, prompt, n }, signal);
  } catch (problem) {
    if (problem.code !== "no_data") throw problem;
    return { of: 0, data: [], missing: problem.message };
  }
}

export const above = (logits, line) => logits.filter((logit) => logit > line).length;

/** In which share of all pairs the real picture has the larger logit: 1/2 is a coin's. */
export function toldApart(drawn, held) {
  const points = (one, other) => (one > other ? 1 : one === other ? 0.5 : 0);
  const won = held.reduce((sum, one) => sum + drawn.reduce((count, other) => count + points(one, other), 0), 0);
  return won / (drawn.length * held.length);
}

/** The line that most pictures are on the right side of: real above, drawn below, either kind counting half. */
export function bestLine(drawn, held) {
  const all = [...drawn, ...held].sort((a, b) => a - b);
  const between = all.slice(1).map((logit, i) => (logit + all[i]) / 2);
  const right = (line) => above(held, line) / held.length - above(drawn, line) / drawn.length;
  return between.reduce((best, line) => (right(line) > right(best) ? line : best), between[0]);
}

/** Drawn pictures, each with a real one of its class that no other has, while there are some. */
export function pairsOf(drawn, held) {
  const left = [...held];
  return drawn.flatMap((one) => {
    const at = left.findIndex((other) => other.gengen.class === one.gengen.class);
    return at < 0 ? [] : [[one, ...left.splice(at, 1)]];
  });
}

/** Two pictures as the discriminator meets them, and which it takes for the real one. */
export function duel([drawn, held]) {
  const gap = held.logit - drawn.logit;
  const said = gap > 0 ? `found, by ${short(gap)}` : `fooled, by ${short(-gap)}`;
  const one = ({ b64_json, gengen, logit }, kind) => {
    const name = gengen.class ? `${kind}, ${gengen.class}` : kind;
    return h("figure", {}, picture(b64_json, name), h("figcaption", {}, `${name}: ${short(logit)}`));
  };
  return h("li", {}, h("div", { class: "duel" }, one(drawn, "drawn"), one(held, "real")), said);
}

/** groups: [{ name, logits }]; borders: [{ name, at }]. A chart of how many logits lie where, and a table of it. */
export function logitsShown(groups, borders) {
  const all = groups.flatMap((one) => one.logits);
  const marked = [...all, ...borders.map((one) => one.at)];
  const [low, high] = [Math.min(...marked), Math.max(...marked)];
  const width = (high - low) / BINS || 1;
  const series = groups.map(({ name, logits }) => ({ name, points: steps(logits, low, width) }));
  const cursor = borders.map((one) => one.at);
  const chart = lines(series, "Where the logits lie", { x: "logit", y: "share of the pictures, %", cursor });
  const over = borders.map(({ name, at }) => `Above ${short(at)} (${name})`);
  const heads = ["Pictures", "Number", "Middle logit", ...over];
  const row = ({ name, logits }) => {
    const shares = borders.map(({ at }) => `${above(logits, at)} of ${logits.length}`);
    const cells = [logits.length, short(median(logits)), ...shares];
    return h("tr", {}, h("th", { scope: "row" }, name), cells.map((cell) => h("td", {}, String(cell))));
  };
  const head = h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)));
  const caption = h("caption", {}, "Dashed in the chart: the borders of this table");
  const table = h("table", {}, caption, head, groups.map(row));
  const about = { class: "scroll", tabindex: "0", role: "region", "aria-label": "how pictures score" };
  return [chart, h("div", about, table)];
}

function steps(logits, low, width) {
  return Array.from({ length: BINS }, (_, i) => {
    const [from, to] = [low + i * width, low + (i + 1) * width];
    const inside = logits.filter((logit) => (logit >= from || i === 0) && (logit < to || i === BINS - 1));
    const share = (100 * inside.length) / logits.length;
    return [[from, share], [to, share]];
  }).flat();
}

function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}
