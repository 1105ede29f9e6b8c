// Which picture is changed: a sample of the run, which its seed says, or one of the visitor's own.

import { post } from "./api.js";
import { numberField } from "./controls.js";
import { h } from "./dom.js";
import { wanted, wantedField } from "./sampling.js";
import { asKept, asSent, uploadField } from "./upload.js";

const [KEY, HOW] = ["of", { sampler: "ddim", steps: 20 }];

/** The request of the sample that a state names. */
export function sampleRequest(state, run) {
  return { prompt: wanted(state, run, { key: KEY }) ?? "", seed: state.number("picture_seed", 0), ...HOW };
}

/** Whether the picture is the visitor's own; it is then `picture` of the state, base64 with - and _. */
export const isOwn = (state) => Boolean(state.get("picture"));
export const ownPicture = (state) => asSent(state.get("picture"));

/** The picture, base64 of a PNG. */
export async function sourcePicture(state, run, signal) {
  if (isOwn(state)) return ownPicture(state);
  const { data } = await post("/v1/images/generations", { model: run.id, ...sampleRequest(state, run) }, signal);
  return data[0].b64_json;
}

/** The fields of it; changed() is called once another one is wanted. */
export function sourceFields(state, run, changed) {
  const own = (base64) => {
    state.set({ picture: asKept(base64) });
    changed();
  };
  const sample = () => {
    state.set({ picture: null });
    changed();
  };
  return [
    wantedField(state, run, { key: KEY, label: "A sample that shows" }),
    numberField(state, "picture_seed", "of the seed", { value: 0, min: 0 }),
    h("div", { class: "field lone" }, h("button", { type: "button", onclick: sample }, "Take this sample")),
    uploadField("or a picture of your own", run.gengen.side, own),
  ];
}
