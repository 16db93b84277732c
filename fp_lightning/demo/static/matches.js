// Point at the edited image, see where its attention looks in the photo. The value is
// {source, edit, grid: [rows, columns], best: […], cells: [rows, columns], maps: base64 of uint8}.
// The marker is the best match; the lit area is the attention map.
import { loadImage, offscreen } from "./images.js";

const SHADE = 170; // of 255, where there is no attention

function mark(canvas, x, y, colour) {
  const pen = canvas.getContext("2d"), radius = Math.max(5, canvas.width / 50);
  for (const [ink, width] of [["#000", radius / 1.5], [colour, radius / 3]]) {
    pen.strokeStyle = ink;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.stroke();
  }
}

// The attention map of a cell, as a shade over the photo.
function shade(map, [rows, columns]) {
  const layer = offscreen(columns, rows), pen = layer.getContext("2d"), pixels = pen.createImageData(columns, rows);
  map.forEach((value, i) => { pixels.data[4 * i + 3] = SHADE - Math.round((SHADE * value) / 255); });
  pen.putImageData(pixels, 0, 0);
  return layer;
}

export function start({ element, props, watch }) {
  const edit = element.querySelector(".edit"), source = element.querySelector(".source");
  let images = null, maps = null;

  async function open() {
    const { value } = props;
    element.querySelector(".fp-matches").classList.toggle("empty", !value);
    if (!value) return;
    images = await Promise.all([loadImage(value.edit), loadImage(value.source)]);
    maps = Uint8Array.from(atob(value.maps), (c) => c.charCodeAt(0));
    [edit, source].forEach((canvas, i) => { canvas.width = images[i].width; canvas.height = images[i].height; });
    draw(null);
    edit.dataset.ready = "yes";
  }

  // `at` is [x, y] from 0 to 1, or null for no place.
  function draw(at) {
    [edit, source].forEach((canvas, i) => canvas.getContext("2d").drawImage(images[i], 0, 0));
    if (!at) return;
    const { grid, best, cells } = props.value, [x, y] = at, size = cells[0] * cells[1];
    const row = (rows) => Math.min(rows - 1, Math.floor(y * rows));
    const column = (columns) => Math.min(columns - 1, Math.floor(x * columns));
    const index = ([rows, columns]) => row(rows) * columns + column(columns);
    const map = maps.subarray(index(cells) * size, (index(cells) + 1) * size), found = best[index(grid)];
    source.getContext("2d").drawImage(shade(map, cells), 0, 0, source.width, source.height);
    mark(edit, x * edit.width, y * edit.height, "#ff6b6b");
    const [u, v] = [found % grid[1], Math.floor(found / grid[1])];
    mark(source, ((u + 0.5) / grid[1]) * source.width, ((v + 0.5) / grid[0]) * source.height, "#ffd43b");
    source.dataset.found = found;
  }

  edit.addEventListener("pointermove", (event) => {
    if (!images) return;
    const box = edit.getBoundingClientRect();
    draw([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
  });
  edit.addEventListener("pointerleave", () => images && draw(null));
  watch("value", open);
  open();
}
