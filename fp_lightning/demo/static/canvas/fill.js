// The photo behind moved pieces: their holes are filled roughly, from the rim inwards, at a small size.
import { offscreen } from "../images.js";
import { closed, path } from "./geometry.js";

const GROW = 3 / 512; // of the width, by which holes are widened; as in training
const SMALL = 160, LARGE = 1600; // px, the longer side while filling, and of the result

export class Background {
  #holes = "[]"; // the outlines that `#filled` belongs to, as JSON
  #filled = null;

  constructor(photo, image) {
    this.photo = photo;
    this.image = image;
  }

  // The photo with the holes of `pieces` filled.
  of(pieces) {
    const outlines = pieces.filter((piece) => !piece.copied).map((piece) => piece.outline);
    if (!outlines.length) return this.image;
    const holes = JSON.stringify(outlines);
    if (holes !== this.#holes) this.#filled = this.#fill(outlines);
    this.#holes = holes;
    return this.#filled;
  }

  #fill(outlines) {
    const { width, height } = this.photo, grow = 2 * GROW * width;
    const factor = Math.min(1, LARGE / Math.max(width, height));
    const result = offscreen(Math.round(width * factor), Math.round(height * factor)), pen = result.getContext("2d");
    pen.drawImage(this.image, 0, 0, result.width, result.height);
    pen.scale(result.width / width, result.height / height);
    const patch = offscreen(result.width, result.height), over = patch.getContext("2d");
    over.scale(result.width / width, result.height / height);
    stencil(over, outlines, grow);
    over.globalCompositeOperation = "source-in";
    over.drawImage(this.#small(outlines, grow), 0, 0, width, height);
    pen.drawImage(patch, 0, 0, width, height);
    return result;
  }

  #small(outlines, grow) {
    const photo = this.photo, scale = Math.min(1, SMALL / Math.max(photo.width, photo.height));
    const width = Math.max(2, Math.round(photo.width * scale)), height = Math.max(2, Math.round(photo.height * scale));
    const small = offscreen(width, height), pen = small.getContext("2d", { willReadFrequently: true });
    pen.drawImage(this.image, 0, 0, width, height);
    const mask = offscreen(width, height), holes = mask.getContext("2d", { willReadFrequently: true });
    holes.scale(width / photo.width, height / photo.height);
    stencil(holes, outlines, grow + 2 / scale);
    const pixels = pen.getImageData(0, 0, width, height);
    spread(pixels, holes.getImageData(0, 0, width, height));
    pen.putImageData(pixels, 0, 0);
    return small;
  }
}

// Fills outlines that are widened by half of `width`.
function stencil(pen, outlines, width) {
  pen.lineWidth = width;
  for (const outline of outlines) {
    pen.fill(path(outline));
    pen.stroke(path(closed(outline)));
  }
}

// Gives each hole pixel the mean of its known neighbours, ring by ring.
function spread({ width, height, data }, mask) {
  const hole = new Uint8Array(width * height);
  let open = [];
  for (let i = 0; i < width * height; i++) if (mask.data[4 * i + 3] > 0) { open.push(i); hole[i] = 1; }
  const neighbours = (i) => [
    i % width ? i - 1 : -1, (i + 1) % width ? i + 1 : -1, i - width, i + width < width * height ? i + width : -1,
  ];
  while (open.length) {
    const known = open.map((i) => neighbours(i).filter((j) => j >= 0 && !hole[j]));
    const ready = open.filter((_, n) => known[n].length);
    if (!ready.length) break;
    open.forEach((i, n) => {
      for (let c = 0; c < 3 && known[n].length; c++)
        data[4 * i + c] = known[n].reduce((sum, j) => sum + data[4 * j + c], 0) / known[n].length;
    });
    for (const i of ready) hole[i] = 0;
    open = open.filter((i) => hole[i]);
  }
}
