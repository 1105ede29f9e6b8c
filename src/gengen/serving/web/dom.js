// Elements are made of names and text, never of markup: what a model or a visitor writes stays text.

const SVG_SPACE = "http://www.w3.org/2000/svg";
const SVG = new Set(["svg", "g", "path", "line", "rect", "circle", "polyline", "text", "title"]);

/** Make an element. Attributes that begin with "on" are listeners; false and null are left out; true is "". */
export function h(name, attributes = {}, ...children) {
  const element = SVG.has(name) ? document.createElementNS(SVG_SPACE, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value") element.value = value; // the attribute is only what a field begins with
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

/** Put children in place of those that an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
  return element;
}

const present = (children) => children.flat(Infinity).filter((child) => (child ?? false) !== false);

/** A picture of base64 PNG, its pixels kept sharp. */
export function picture(base64, alt, attributes = {}) {
  return h("img", { src: `data:image/png;base64,${base64}`, alt, class: "picture", ...attributes });
}

/** A number as people read it: three digits that count. */
export function short(number) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  return size >= 100000 || size < 0.001 ? number.toExponential(1) : String(Number(number.toPrecision(3)));
}
