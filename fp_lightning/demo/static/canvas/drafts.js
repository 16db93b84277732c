// While an arrow or a piece is moved, asks the server for a quick edit, and lays the last answer over the photo.
import { loadImage } from "../images.js";
import { copy } from "./history.js";

const PAUSE = 100; // ms between two questions

export class Drafts {
  image = null;
  #turn = 0; // counts the questions: an answer to an earlier one is dropped
  #timer = null;

  constructor(state, show, live) { Object.assign(this, { state, show, live }); }

  // Whether the gesture under way moves something that an edit follows.
  get follows() {
    const { gesture, mode } = this.state;
    return this.live() && gesture && ((mode === "drag") || (mode === "cut" && gesture.piece));
  }

  moved() {
    if (this.follows && !this.#timer) this.#timer = setTimeout(() => this.#ask(), PAUSE);
  }

  async #ask() {
    this.#timer = null;
    const { drawing, gesture, photo, server } = this.state, turn = ++this.#turn, asked = copy(drawing);
    if (gesture.arrow) asked.arrows.push(copy(gesture.arrow));
    const found = await server.draft({ key: photo.key, ...asked }).catch(() => null);
    const image = found && found.src && await loadImage(found.src);
    if (!image || turn !== this.#turn) return;
    this.image = image;
    this.show();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#turn++;
    this.image = null;
  }
}
