// A picture, and what of it is open: painted by mouse, touch or keyboard, in cells of the brush's size.

import { choice } from "./controls.js";
import { fill, h } from "./dom.js";

const SCREEN = 384; // pixels a side, about
/** What a word opens: x0, y0, x1, y1 in quarters of the picture. */
export const WORDS = {
  left: [0, 0, 2, 4], right: [2, 0, 4, 4], top: [0, 0, 4, 2], bottom: [0, 2, 4, 4], center: [1, 1, 3, 3],
};

/** The mask of the state, an array of side * side truth values: a word, or its bits. */
export function readMask(text, side) {
  const open = new Array(side * side).fill(false);
  if (!text) return open;
  if (text in WORDS) {
    const [x0, y0, x1, y1] = WORDS[text];
    const quarter = (value) => Math.floor((value * 4) / side);
    const inside = (value, low, high) => low <= quarter(value) && quarter(value) < high;
    return open.map((_, i) => inside(i % side, x0, x1) && inside(Math.floor(i / side), y0, y1));
  }
  const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return open.map((_, i) => Boolean(bytes.charCodeAt(i >> 3) & (1 << (i & 7))));
}

/** A mask as the state has it: the word that means it, else its bits; "" where nothing is open. */
export function writeMask(open, side) {
  const same = (word) => readMask(word, side).every((value, i) => value === open[i]);
  const word = Object.keys(WORDS).find(same);
  if (word || !open.includes(true)) return word ?? "";
  const bytes = new Uint8Array(Math.ceil(open.length / 8));
  open.forEach((value, i) => value && (bytes[i >> 3] |= 1 << (i & 7)));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}

/** A mask as a picture, white where it is open: base64 of a PNG. */
export function maskPicture(open, side) {
  const canvas = h("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  for (let i = 0; i < open.length; i++) {
    context.fillStyle = open[i] ? "#fff" : "#000";
    context.fillRect(i % side, Math.floor(i / side), 1, 1);
  }
  return canvas.toDataURL("image/png").split(",")[1];
}

/** Returns { element, show(image) }. The mask is `mask` of the state; image: what is drawn under it, or null. */
export function maskEditor(state, side) {
  const scale = Math.max(1, Math.round(SCREEN / side));
  const canvas = h(
    "canvas", { width: side * scale, height: side * scale, class: "painting", tabindex: "0", role: "application" },
  );
  const said = h("p", { role: "status" });
  const sizes = [1, 2, 4, 8, 16].filter((pixels) => pixels <= Math.max(1, side >> 2));
  const brush = sizes.findLast((pixels) => pixels <= Math.max(1, side >> 3));
  let [open, image, at, painting] = [readMask(state.get("mask"), side), null, [0, 0], null];
  const size = () => Math.min(side, state.number("brush", brush));

  function cells([x, y]) {
    const found = [];
    for (let row = y; row < Math.min(side, y + size()); row++) {
      for (let column = x; column < Math.min(side, x + size()); column++) found.push(row * side + column);
    }
    return found;
  }

  function draw() {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
    open.forEach((value, i) => value && hatch(context, (i % side) * scale, Math.floor(i / side) * scale, scale));
    const [x, y] = at;
    for (const [style, inset] of [["#000", 0.5], ["#fff", 1.5]]) {
      context.strokeStyle = style;
      context.strokeRect(x * scale + inset, y * scale + inset, size() * scale - 2 * inset, size() * scale - 2 * inset);
    }
    const count = open.filter(Boolean).length;
    canvas.setAttribute(
      "aria-label", `The picture, ${count} of ${side * side} pixels open. Arrow keys move, space opens or closes.`,
    );
    const here = open[y * side + x] ? "open" : "kept";
    fill(said, `Row ${y + 1}, column ${x + 1}: ${here}. ${count} of ${side * side} pixels are open.`);
  }

  function change(next) {
    open = next;
    state.set({ mask: writeMask(open, side) });
    draw();
  }

  function paint(place, value) {
    const inside = new Set(cells(place));
    at = place;
    change(open.map((old, i) => (inside.has(i) ? value : old)));
  }

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    const place = (offset, length) => Math.max(0, Math.min(side - 1, Math.floor((offset / length) * side)));
    const found = [place(event.clientX - box.left, box.width), place(event.clientY - box.top, box.height)];
    return found.map((value) => value - (value % size()));
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    const [x, y] = placeOf(event);
    painting = !open[y * side + x];
    paint([x, y], painting);
  });
  canvas.addEventListener("pointermove", (event) => painting !== null && paint(placeOf(event), painting));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (painting = null));
  canvas.addEventListener("keydown", (event) => {
    const step = {
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0],
    }[event.key];
    if (!step) return;
    event.preventDefault();
    const last = Math.floor((side - 1) / size()) * size();
    at = at.map((value, axis) => Math.max(0, Math.min(last, value - (value % size()) + step[axis] * size())));
    if (event.key === " ") paint(at, !open[at[1] * side + at[0]]);
    else draw();
  });

  const button = (name, next) => h("button", { type: "button", onclick: () => change(next()) }, name);
  draw();
  return {
    element: h("div", { class: "editor" }, canvas, said,
      h("div", { class: "buttons", role: "group", "aria-label": "Open" },
        Object.keys(WORDS).map((word) => button(word, () => readMask(word, side))),
        button("the rest instead", () => open.map((value) => !value)), button("nothing", () => readMask("", side))),
      choice(state, "brush", "Brush, pixels", sizes, { value: String(brush), changed: draw })),
    show(next) {
      image = next;
      draw();
    },
  };
}

/** Stripes over a pixel: they are seen on every colour. */
function hatch(context, x, y, size) {
  context.fillStyle = "rgba(255,255,255,.55)";
  context.fillRect(x, y, size, size);
  context.fillStyle = "rgba(21,80,184,.6)";
  for (let i = 0; i < size; i++) if ((x + y + i) % 6 < 3) context.fillRect(x + i, y, 1, size);
}
