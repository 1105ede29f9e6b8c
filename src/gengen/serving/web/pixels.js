// Figures of pictures, from their pixels: how sharp one is, how far two are apart.

/** The pixels of a base64 PNG: { width, height, data } with four numbers 0..255 a pixel. */
export async function pixelsOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.width, height: image.height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}

/** How much neighbouring pixels differ: the mean square, 0 for one colour. It is what a blur takes away. */
export function sharpness({ width, height, data }) {
  let sum = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        const at = 4 * (y * width + x) + c;
        if (x + 1 < width) sum += (data[at + 4] - data[at]) ** 2;
        if (y + 1 < height) sum += (data[at + 4 * width] - data[at]) ** 2;
      }
    }
  }
  return sum / (width * height);
}

/** The mean difference of two pictures of a size, in steps of 255. */
export function distance(a, b) {
  let sum = 0;
  for (let i = 0; i < a.data.length; i++) if (i % 4 < 3) sum += Math.abs(a.data[i] - b.data[i]);
  return sum / (0.75 * a.data.length);
}

/** How many of some pictures have another one within a distance. */
export function twins(all, within) {
  return all.filter((a, i) => all.some((b, j) => i !== j && distance(a, b) <= within)).length;
}
