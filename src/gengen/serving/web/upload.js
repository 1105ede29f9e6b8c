// A picture of the visitor's own, small enough to stand in the address.

import { labelled } from "./controls.js";
import { fill, h } from "./dom.js";

/** A field for a file; taken(base64) is called with its centre square as a PNG of `side` pixels a side. */
export function uploadField(label, side, taken) {
  const error = h("p", { role: "alert", class: "error wide" });
  const field = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", onchange: read });
  async function read() {
    fill(error);
    const [file] = field.files;
    if (!file) return;
    try {
      taken(await scaled(file, side));
    } catch {
      fill(error, `${file.name} is no picture that this browser reads: PNG, JPEG or WebP`);
    }
  }
  return [labelled(label, field, `its centre, at ${side} x ${side}; it goes to this server alone`), error];
}

/** Base64 of an address, which has - and _ for + and /, and back. */
export const asKept = (base64) => base64.replaceAll("+", "-").replaceAll("/", "_");
export const asSent = (kept) => kept.replaceAll("-", "+").replaceAll("_", "/");

async function scaled(file, side) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = h("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  const least = Math.min(image.width, image.height);
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.imageSmoothingEnabled = least !== side;
  context.drawImage(image, (image.width - least) / 2, (image.height - least) / 2, least, least, 0, 0, side, side);
  return canvas.toDataURL("image/png").split(",")[1];
}
