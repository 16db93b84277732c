// What the canvas shows and what the user is doing with it.
import { Background } from "./fill.js";
import { clamp, round } from "./geometry.js";
import { History } from "./history.js";

export const COLOURS = ["#ffffff", "#ffd43b", "#ff6b6b", "#4dabf7", "#51cf66"];
const FIRST_TOOL = { sketch: "brush", drag: "arrow", cut: "lasso", region: "area" };

export class CanvasState {
  photo = null; // from the server, see `canvas` in components.py
  image = null; // of the photo
  outlines = null; // image of the photo's outlines
  background = null;
  mode = "sketch";
  tool = "brush";
  colour = COLOURS[0];
  selected = null; // index of the selected arrow (mode "drag") or piece
  gesture = null; // what a pressed pointer has begun

  constructor(element, changed) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.stage = element.querySelector(".stage");
    this.history = new History(changed);
  }

  get drawing() { return this.history.drawing; }

  find(selector) { return this.element.querySelector(selector); }

  all(selector) { return this.element.querySelectorAll(selector); }

  hint(text) { this.find(".hint").textContent = text; }

  setPhoto(photo, image, outlines) {
    Object.assign(this, { photo, image, outlines, background: new Background(photo, image) });
  }

  setMode(mode) {
    Object.assign(this, { mode, tool: FIRST_TOOL[mode], selected: null });
  }

  // Drops a selection that the drawing no longer holds.
  checkSelection() {
    const list = this.mode === "drag" ? this.drawing.arrows : this.drawing.pieces;
    if (this.selected >= list.length) this.selected = null;
  }

  // One page pixel in photo pixels.
  get pixel() { return this.photo.width / this.canvas.clientWidth; }

  // 0.3 % to 6 % of the photo's width.
  get brushSize() { return round(this.photo.width * 0.003 * 20 ** (this.find("[data-set=size]").value / 100)); }

  // Where a pointer is, in pixels of the photo.
  position(event) {
    const { photo } = this, box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * photo.width;
    const y = ((event.clientY - box.top) / box.height) * photo.height;
    return [round(clamp(x, photo.width)), round(clamp(y, photo.height))];
  }

  // Makes the canvas as large as its place allows, and at most 62 % of the window's height.
  fit() {
    const { canvas, photo, stage } = this;
    if (!photo || !stage.clientWidth) return;
    const width = Math.min(stage.clientWidth, (0.62 * innerHeight * photo.width) / photo.height);
    const ratio = window.devicePixelRatio || 1;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${(width * photo.height) / photo.width}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round((width * ratio * photo.height) / photo.width);
  }
}
