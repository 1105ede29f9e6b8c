// Runs as their files tell: curves, samples and speed, as they come, several beside each other.

import { get } from "../api.js";
import { choice } from "../controls.js";
import { copyBar, python, quoted } from "../copy.js";
import { lines } from "../chart.js";
import { Curve } from "../curve.js";
import { fill, h, short } from "../dom.js";
import { fileUrl, sample, samplesOf, scrubber } from "../scrubber.js";

export const title = "Runs";
export const about =
  "What training does to a model: how its loss falls, how fast it goes, what it draws on the way. " +
  "One that trains now moves as you look.";
export const usable = (models) => models; // it shows what is on the disk, whatever is served

const MEANING =
  "Loss is what training makes small. train/ is measured on what is learnt from, val/ on data held out: " +
  "where val/loss rises while train/loss falls, the model learns by heart.";
const EVERY_MS = 2000;
const MOST_SAMPLES = 8;
const FIRST = /^(train\/loss|val\/.*|.*_per_second|reward.*|kl)$/; // what is looked at first
const PREVIEWS =
  "Training draws these itself, always from the same seeds or prompts: what changes from step to step is the model. " +
  "Pull the slider " +
  "to see it learn; several runs are shown at the same step.";

export async function show(root, { state, signal }) {
  const parts = Object.fromEntries(
    ["list", "table", "curves", "others", "samples"].map((name) => [name, h("div", {})])
  );
  const view = { state, signal, parts, runs: [], curves: new Map(), drawn: "" };
  const axes = [["step", "steps"], ["seconds", "seconds of training"]];
  const across = choice(state, "across", "Curves over", axes, { value: "step", changed: () => draw(view) });
  const more = h("details", { class: "wide" }, h("summary", {}, "All other columns of metrics.csv"), parts.others);
  const seen = h("h2", {}, "What it drew on the way");
  const curves = [h("h2", {}, "Curves"), h("form", {}, across), h("p", {}, MEANING), parts.curves, more];
  fill(root, parts.list, parts.table, curves, seen, parts.samples, copyBar(() => ways(view)));
  do await look(view);
  while (await pause(signal));
}

/** Read what is new, and show it. A server that does not answer is asked again. */
async function look(view) {
  const { state, signal, parts } = view;
  try {
    const answer = await get("/gengen/v1/runs", signal);
    listRuns(view, answer);
    view.runs = answer.data;
    await Promise.all(chosen(view).map((run) => read(view, run)));
    draw(view);
    await samples(view);
  } catch (error) {
    const said = h("p", { role: "alert", class: "error" }, `${error.message}; asking again`);
    if (!signal.aborted) fill(parts.table, said);
  }
}

/** Resolve after a while, false once the page was left. It waits while nobody looks. */
function pause(signal) {
  return new Promise((done) => {
    const timer = setInterval(() => !document.hidden && end(true), EVERY_MS);
    const end = (goes) => (clearInterval(timer), done(goes));
    if (signal.aborted) end(false);
    signal.addEventListener("abort", () => end(false), { once: true });
  });
}

/** The runs that are shown: those of the address, else those that train now, else the newest. */
function chosen({ state, runs }) {
  const named = state.get("runs").split("/"); // no name of a file has a slash
  const found = runs.filter((run) => named.includes(run.name));
  if (found.length) return found;
  const training = runs.filter((run) => run.training);
  return training.length ? training : runs.slice(0, 1);
}

const saying = (run) => run.error ?? `${run.family}, ${run.stage}${run.training ? ", training now" : ""}`;

function listRuns(view, { data, left_out }) {
  const same = (run, i) => view.runs[i]?.name === run.name && saying(view.runs[i]) === saying(run);
  if (data.length === view.runs.length && data.every(same)) return; // who has the focus keeps it
  const now = new Set(chosen({ ...view, runs: data }).map((run) => run.name));
  const boxes = data.map((run) => {
    const box = h("input", { type: "checkbox", value: run.name, checked: now.has(run.name), onchange: changed });
    return h("label", { class: "check" }, box, ` ${run.name} `, h("small", {}, saying(run)));
  });
  const older = left_out > 0 && h("p", {}, `and ${left_out} older ones`);
  fill(view.parts.list, h("fieldset", { class: "checks" }, h("legend", {}, "Runs to compare"), ...boxes, older));

  function changed() {
    const names = [...view.parts.list.querySelectorAll("input:checked")].map((box) => box.value);
    view.state.set({ runs: names.join("/") });
    view.state.push();
    look(view);
  }
}

async function read(view, { name }) {
  if (!view.curves.has(name)) view.curves.set(name, new Curve());
  const curve = view.curves.get(name);
  const answer = await get(fileUrl(name, `metrics?after=${curve.after}`), view.signal);
  if (!curve.add(answer)) curve.add(await get(fileUrl(name, "metrics?after=-1"), view.signal));
}

function draw(view) {
  const runs = chosen(view).map((run) => ({ run, curve: view.curves.get(run.name) })).filter(({ curve }) => curve);
  fill(view.parts.table, table(runs));
  const across = view.state.get("across", "step");
  const all = new Set(runs.flatMap(({ curve }) => curve.names));
  const columns = [...all].filter((name) => !["step", "seconds"].includes(name));
  const series = (column) => runs.map(({ run, curve }) => ({ name: run.name, points: curve.points(column, across) }));
  const chart = (column) => lines(series(column), column, { x: across === "step" ? "steps" : "s" });
  const [first, others] = [columns.filter((name) => FIRST.test(name)), columns.filter((name) => !FIRST.test(name))];
  fill(view.parts.curves, h("div", { class: "columns" }, ...first.map(chart)));
  fill(view.parts.others, h("div", { class: "columns" }, ...others.map(chart)));
}

function table(runs) {
  const row = ({ run, curve }) => {
    const speed = curve.names.find((name) => name.endsWith("_per_second"));
    const value = (name) => (name && curve.latest(name) !== null ? short(curve.latest(name)) : "");
    const step = `${Math.max(0, curve.last)}${run.max_steps ? ` of ${run.max_steps}` : ""}`;
    const state = run.training ? "training now" : "not training";
    const second = speed ? `${value(speed)} ${speed.split("_")[0]}` : "";
    return [run.name, state, step, value("train/loss"), value("val/loss"), second, curve.remarks()];
  };
  const heads = ["Run", "State", "Step", "Training loss", "Held-out loss", "Speed, a second", "Remarks"];
  const caption = h("caption", {}, "Where each run is; it is looked at every two seconds");
  const head = h("thead", {}, h("tr", {}, ...heads.map((name) => h("th", { scope: "col" }, name))));
  const body = h("tbody", {}, ...runs.map((one) => h("tr", {}, ...row(one).map((value) => h("td", {}, value)))));
  return region("where each run is", "scroll", h("table", {}, caption, head, body));
}

/** What may be wider than the screen: the keyboard scrolls it. */
function region(label, name, ...children) {
  return h("div", { class: name, tabindex: "0", role: "region", "aria-label": label }, ...children);
}

/** What each run drew, at a step of the slider, and evenly over its steps, the newest sample among them. */
async function samples(view) {
  const listed = async ({ name }) => ({ name, files: await samplesOf(name, view.signal) });
  const lists = await Promise.all(chosen(view).map(listed));
  const drawn = JSON.stringify(lists);
  if (drawn === view.drawn) return;
  view.drawn = drawn;
  const strips = await Promise.all(lists.map(async ({ name, files }) => {
    const every = Math.ceil(files.length / MOST_SAMPLES) || 1;
    const some = files.filter((_, i) => (files.length - 1 - i) % every === 0);
    const shown = (file) => sample(name, file, `what ${name} drew at step ${file.step}`, view.signal);
    const figures = await Promise.all(some.map(shown));
    const count = files.length ? `${some.length} of ${files.length} samples` : "nothing drawn yet";
    return [h("h3", {}, `${name}: ${count}`), region(`samples of ${name}`, "strip", ...figures)];
  }));
  const slider = scrubber(view.state, lists, view.signal);
  fill(view.parts.samples, slider && h("p", {}, PREVIEWS), slider, ...strips);
}

function ways(view) {
  const names = chosen(view).map((run) => run.name);
  const last = (name) => `print(list(csv.DictReader(open(${python(`runs/${name}/metrics.csv`)})))[-1])`;
  return {
    Python: ["import csv", ...names.map(last)].join("\n"),
    curl: names.map((name) => `curl ${quoted(`${location.origin}${fileUrl(name, "metrics?after=-1")}`)}`).join("\n"),
    command: names.map((name) => `tail -n 1 ${quoted(`runs/${name}/metrics.csv`)}`).join("\n"),
  };
}
