// A table of pictures, drawn one after the other, each with what it cost.

import { post } from "./api.js";
import { fill, h, picture } from "./dom.js";

/**
 * rows, columns: [name, change of the request]; base: the request. Each cell is a request of its own, so that the time
 * under it is its own. Returns how many were drawn.
 */
export async function drawGrid(place, { corner, rows, columns, base }, signal) {
  const cells = rows.map(() => columns.map(() => h("td", {}, "…")));
  const head = h(
    "tr", {}, h("th", { scope: "col" }, corner), columns.map(([name]) => h("th", { scope: "col" }, name)),
  );
  const body = rows.map(([name], r) => h("tr", {}, h("th", { scope: "row" }, name), cells[r]));
  fill(
    place,
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": corner }, h("table", {}, head, body)),
  );
  for (const [r, [row, above]] of rows.entries()) {
    for (const [c, [column, beside]] of columns.entries()) {
      const drawn = await post("/gengen/v1/denoise", { ...base, ...above, ...beside, frames: 1 }, signal);
      const cost = `${drawn.calls} calls, ${drawn.seconds.toFixed(1)} s`;
      fill(cells[r][c], h("figure", {}, picture(drawn.b64_json, `${row}, ${column}`), h("figcaption", {}, cost)));
    }
  }
  return rows.length * columns.length;
}

/** The requests of a grid, in the order in which they are drawn. */
export function requests({ rows, columns, base }) {
  return rows.flatMap(([, above]) => columns.map(([, beside]) => ({ ...base, ...above, ...beside })));
}
