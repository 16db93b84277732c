// The drawing and its history. The drawing is one document in pixels of the photo. The page renders it, and the
// server turns it into the model's inputs (fp_lightning/demo/drawing.py):
//   strokes  [{points: [[x, y], …], size, erase, colour}]
//   arrows   [[x_from, y_from, x_to, y_to], …]
//   pieces   [{outline: [[x, y], …], move: [dx, dy], angle, scale, mirror, gone, copied}]
//   region   [[[x, y], …], …]
const MOST_STEPS = 200;

export const emptyDrawing = () => ({ strokes: [], arrows: [], pieces: [], region: [] });
export const copy = (value) => JSON.parse(JSON.stringify(value));

export class History {
  // `changed` runs after every change.
  constructor(changed) {
    this.changed = changed;
    this.reset({});
  }

  // Starts over with a drawing.
  reset(drawing) {
    this.drawing = { ...emptyDrawing(), ...copy(drawing) };
    this.past = [];
    this.future = [];
  }

  // Runs an action that modifies `drawing`, as one step that can be undone.
  change(action) {
    const before = JSON.stringify(this.drawing);
    action();
    if (JSON.stringify(this.drawing) === before) return;
    this.past = [...this.past.slice(1 - MOST_STEPS), before];
    this.future = [];
    this.changed();
  }

  // Replaces the drawing, which can be undone.
  replace(drawing) {
    this.change(() => { this.drawing = { ...emptyDrawing(), ...copy(drawing) }; });
  }

  // Makes one undoable step of what a gesture has modified live; `before` is the item as it was.
  commit(list, index, before) {
    const after = list[index];
    list[index] = before;
    this.change(() => { list[index] = after; });
  }

  undo() { this.#step(this.past, this.future); }

  redo() { this.#step(this.future, this.past); }

  #step(from, to) {
    if (!from.length) return;
    to.push(JSON.stringify(this.drawing));
    this.drawing = JSON.parse(from.pop());
    this.changed();
  }
}
