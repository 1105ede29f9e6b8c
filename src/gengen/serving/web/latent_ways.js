// How to repeat a page of an autoencoder elsewhere: as Python, as a request, as a command.

import { curl, python, settings } from "./copy.js";

const ENDPOINTS = { sliders: "latent", path: "latent/path", plane: "latent/plane", reconstruct: "reconstruct" };

export function waysOf(view, asked) {
  const { model, ...how } = asked;
  const run = `runs/${model}`;
  return { curl: curl(`/gengen/v1/${ENDPOINTS[view]}`, asked), ...WAYS[view](run, how) };
}

const loaded = (run, lines, imports = "") =>
  `import gengen\n${imports}\nmodel = gengen.load(${python(run)})\n${lines}`;
const sample = (run, how) => `python scripts/sample.py ${run} ${settings(how)}`;
const UINT8 = "from gengen.generation.image.files import to_uint8\n";

const WAYS = {
  sliders(run, { seed, first, deviations }) {
    if (!deviations) {
      const lines = `images = model.generate(1, seed=${seed}, first=${first})`;
      return {
        Python: loaded(run, lines), command: `${sample(run, { n: first + 1, seed, out: "draw" })}  # the last of them`,
      };
    }
    const latent = `latents = model.moved(model.prior([${first}], seed=${seed}), ${python(deviations)})`;
    return { Python: loaded(run, `${latent}\nimages = to_uint8(model.decode(latents))`, UINT8) };
  },
  path(run, { seed, first, to, steps }) {
    const lines = `a, b = model.prior([${first}, ${to}], seed=${seed})\nimages = model.interpolate(a, b, ${steps})`;
    const how = { what: "interpolation", n: first / 2 + 1, steps, seed, out: "path" };
    return { Python: loaded(run, lines), command: `${sample(run, how)}  # the last row of it` };
  },
  plane(run, { seed, first, channels }) {
    return {
      Python: loaded(run, `images = model.plane(model.prior([${first}], seed=${seed})[0], (${channels.join(", ")}))`),
    };
  },
  reconstruct(run, { image }) {
    const imports =
      "from base64 import b64decode\nfrom io import BytesIO\n\nfrom gengen.data.image.decode import decode\n";
    const read = "decode(BytesIO(picture), model.config.resolution, model.config.channels)";
    return {
      Python: loaded(run, `picture = b64decode(${python(image)})\nimages = model.reconstruct(${read}[None])`, imports),
      command:
        `echo '${image}' | base64 -d > picture.png\n` +
        sample(run, { what: "reconstruction", images: "picture.png", out: "copy" }),
    };
  },
};
