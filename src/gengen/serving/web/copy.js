// How to repeat what is seen without the page: as Python, as a request, as a command.

import { h } from "./dom.js";

/** A word of a shell, whatever it holds. */
export function quoted(text) {
  return `'${String(text).replaceAll("'", "'\\''")}'`;
}

/** A value of Python: strings, numbers, truth values, null, lists and objects of them. */
export function python(value) {
  if (value === null || value === undefined) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return JSON.stringify(value); // its escapes are Python's, but for surrogate pairs
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  return `{${Object.entries(value).map(([key, item]) => `${python(key)}: ${python(item)}`).join(", ")}}`;
}

export function curl(path, body) {
  return `curl ${location.origin}${path} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`;
}

/** key=value words of a command, those that are not given left out. */
export function settings(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return given.map(([key, value]) => quoted(`${key}=${value}`)).join(" ");
}

/** `ways` returns { Python, curl, command }, some of them; it is called when one is asked for. What is no such line is
 *  a comment that says so. */
export function copyBar(ways) {
  const shown = h("pre", { tabindex: "0", "aria-label": "what was copied" });
  const said = h("span", { role: "status" });
  const button = (name) => {
    const onclick = async () => {
      shown.textContent = ways()[name] ?? "# there is none for this";
      const copied = await navigator.clipboard.writeText(shown.textContent).then(() => true, () => false);
      said.textContent = copied ? "copied" : "select and copy it";
    };
    return h("button", { type: "button", onclick }, name);
  };
  return h(
    "details",
    { class: "copy" },
    h("summary", {}, "Repeat this elsewhere"),
    button("Python"),
    button("curl"),
    button("command"),
    " ",
    said,
    shown,
  );
}
