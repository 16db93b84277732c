// Point at the edit, see where attention looks in the photo: {source, edit, grid: [rows, columns], best: […],
// cells: [rows, columns], maps: base64 of uint8}. The mark is the arg-max, the light is the map.
const edit = element.querySelector(".edit"), source = element.querySelector(".source");
let images = null, maps = null;

function picture(src) {
  return new Promise((resolve) => { const loaded = new Image(); loaded.onload = () => resolve(loaded); loaded.src = src; });
}

async function open() {
  const value = props.value;
  element.querySelector(".fp-matches").classList.toggle("empty", !value);
  if (!value) return;
  images = await Promise.all([picture(value.edit), picture(value.source)]);
  maps = Uint8Array.from(atob(value.maps), (c) => c.charCodeAt(0));
  [edit, source].forEach((canvas, i) => { canvas.width = images[i].width; canvas.height = images[i].height; });
  draw(null);
  edit.dataset.ready = "yes";
}

function mark(canvas, x, y, colour) {
  const pen = canvas.getContext("2d"), r = Math.max(5, canvas.width / 50);
  for (const [ink, width] of [["#000", r / 1.5], [colour, r / 3]]) {
    pen.strokeStyle = ink;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(x, y, r, 0, 7);
    pen.stroke();
  }
}

function draw(at) {
  [edit, source].forEach((canvas, i) => canvas.getContext("2d").drawImage(images[i], 0, 0));
  if (!at) return;
  const { grid, best, cells } = props.value, [x, y] = at;
  const index = ([rows, columns]) => Math.min(rows - 1, Math.floor(y * rows)) * columns + Math.min(columns - 1, Math.floor(x * columns));
  const found = best[index(grid)], size = cells[0] * cells[1], row = maps.subarray(index(cells) * size, (index(cells) + 1) * size);
  const heat = Object.assign(document.createElement("canvas"), { width: cells[1], height: cells[0] });
  const pen = heat.getContext("2d"), pixels = pen.createImageData(cells[1], cells[0]);
  row.forEach((value, i) => pixels.data.set([0, 0, 0, 170 - Math.round((170 * value) / 255)], 4 * i));
  pen.putImageData(pixels, 0, 0);
  source.getContext("2d").drawImage(heat, 0, 0, source.width, source.height);
  mark(edit, x * edit.width, y * edit.height, "#ff6b6b");
  const [column, line] = [found % grid[1], Math.floor(found / grid[1])];
  mark(source, ((column + 0.5) / grid[1]) * source.width, ((line + 0.5) / grid[0]) * source.height, "#ffd43b");
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
