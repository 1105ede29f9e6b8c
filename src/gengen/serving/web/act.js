// The main act of a page: a button that begins it, and stops it while it is in progress. Ctrl+Enter does the same.

import { h, fill } from "./dom.js";

/**
 * work(signal) is called by the button; leaving the page (`outer`) aborts its signal too.
 * Returns { element, run }: the button with a line that says what happens, and a function that does the act.
 */
export function act(label, work, outer) {
  let running = null;
  const button = h(
    "button", { type: "button", class: "main", onclick: () => (running ? running.abort() : run()) }, label,
  );
  const status = h("span", { role: "status" });
  const error = h("p", { role: "alert", class: "error" });

  async function run() {
    running?.abort();
    const mine = (running = new AbortController());
    outer.addEventListener("abort", () => mine.abort(), { once: true });
    button.textContent = "Stop";
    fill(error);
    fill(status, "working");
    const began = performance.now();
    try {
      const said = await work(mine.signal);
      fill(status, `${said ?? "done"} in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    } catch (problem) {
      fill(status, mine.signal.aborted ? "stopped" : "");
      if (!mine.signal.aborted) fill(error, problem.message);
    } finally {
      if (running === mine) {
        running = null;
        button.textContent = label;
      }
    }
  }

  const onkeydown = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    run();
  };
  document.addEventListener("keydown", onkeydown, { signal: outer });
  return { element: h("div", { class: "act" }, button, " ", status, error), run };
}
