// Lines and bars as SVG, each with a name that a screen reader says; colours are classes of style.css.

import { h, short } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM] = [480, 200, 52, 24];

/** Lines over a number. series: [{ name, points: [[x, y], ...] }]; label: what the whole shows; cursor: a place on x
 * that
 *  is marked, or several. */
export function lines(series, label, { x = "", y = "", cursor = null } = {}) {
  const all = series.flatMap((one) => one.points).filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
  if (!all.length) return h("p", {}, `${label}: nothing yet`);
  const [x0, x1] = span(all.map((point) => point[0]));
  const [y0, y1] = span(all.map((point) => point[1]));
  const across = (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - 8);
  const up = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - 8);
  const finite = (points) => points.filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
  const path = (points) => finite(points).map(([a, b]) => `${across(a).toFixed(1)},${up(b).toFixed(1)}`).join(" ");
  const drawn = series.map((one, i) => {
    const title = h("title", {}, one.name);
    const [alone, ...others] = finite(one.points);
    const kind = `line series-${i % 6}`;
    if (!alone || others.length) return h("polyline", { points: path(one.points), class: kind }, title);
    return h("circle", { cx: across(alone[0]), cy: up(alone[1]), r: 3, class: kind }, title);
  });
  const places = [cursor].flat().filter((place) => place !== null);
  const mark = places.map((place) =>
    h("line", { x1: across(place), x2: across(place), y1: 8, y2: HEIGHT - BOTTOM, class: "cursor" })
  );
  const edges = [
    h("text", { x: LEFT - 4, y: 14, "text-anchor": "end" }, short(y1)),
    h("text", { x: LEFT - 4, y: HEIGHT - BOTTOM, "text-anchor": "end" }, short(y0)),
    h("text", { x: LEFT, y: HEIGHT - 6 }, short(x0)),
    h("text", { x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, `${short(x1)} ${x}`),
  ];
  const axes = h("path", { d: `M${LEFT},8V${HEIGHT - BOTTOM}H${WIDTH - 8}`, class: "axis" });
  const svg = h(
    "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, axes, drawn, mark, edges,
  );
  return h("figure", { class: "chart" }, h("figcaption", {}, y ? `${label} (${y})` : label), svg, legend(series));
}

function span(values) {
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function legend(series) {
  if (series.length < 2) return null;
  return h("ul", { class: "legend" }, ...series.map((one, i) => h("li", { class: `key series-${i % 6}` }, one.name)));
}

/** A bar of a share 0..1, beside its number. */
export function bar(share, text = short(share)) {
  const svg = h(
    "svg",
    { viewBox: "0 0 100 8", class: "bar", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("rect", { width: Math.max(0, Math.min(1, share)) * 100, height: 8 }),
  );
  return h("span", { class: "bar" }, svg, h("span", {}, text));
}
