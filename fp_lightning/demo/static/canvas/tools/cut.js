// Pieces: cut one out by lasso, box or click; move, rotate or scale the selected one.
import { centre, distance, handles, inside, moved, round } from "../geometry.js";
import { copy } from "../history.js";
import { extend, largeEnough } from "./lasso.js";

const SMALLEST_SCALE = 0.05;

// Asks the server for the outline of the object at a point.
async function segment(state, point) {
  state.hint("Finding the object …");
  const found = await state.server.segment({ key: state.photo.key, at: point }).catch(() => null);
  if (found && found.outline) addPiece(state, found.outline);
  else state.hint((found && found.error) || "No object found there. Draw around it with the lasso.");
}

function addPiece(state, outline) {
  const piece = { outline, move: [0, 0], angle: 0, scale: 1, mirror: false, gone: false, copied: false };
  state.history.change(() => { state.selected = state.drawing.pieces.push(piece) - 1; });
  state.hint("Cut out. Move, rotate or scale it, or press Mirror, Duplicate or Delete.");
}

const angleFrom = (middle, point) => Math.atan2(point[1] - middle[1], point[0] - middle[0]);

export const cut = {
  press(state, point, reach) {
    const { pieces } = state.drawing, selected = pieces[state.selected];
    if (selected && !selected.gone) {
      const { corners, turn } = handles(selected, state.pixel), middle = moved(selected, centre(selected));
      const gesture = { piece: selected, middle, before: copy(selected) };
      if (distance(point, turn) < reach) return { ...gesture, kind: "rotate", start: angleFrom(middle, point) };
      if (corners.some((corner) => distance(point, corner) < reach))
        return { ...gesture, kind: "scale", start: distance(point, middle) || 1 };
    }
    const index = pieces.findLastIndex((piece) => !piece.gone && inside(piece, point));
    state.selected = index >= 0 ? index : null;
    if (index >= 0) return { piece: pieces[index], kind: "move", start: point, before: copy(pieces[index]) };
    if (state.tool !== "click") return { outline: [point], from: point };
    segment(state, point);
    return null;
  },

  pull(state, { outline, from, piece, kind, start, middle, before }, point) {
    if (outline) extend(state, outline, from, point);
    else if (kind === "rotate") piece.angle = round(before.angle + angleFrom(middle, point) - start);
    else if (kind === "scale")
      piece.scale = Math.max(SMALLEST_SCALE, round((before.scale * distance(point, middle)) / start));
    else piece.move = [round(before.move[0] + point[0] - start[0]), round(before.move[1] + point[1] - start[1])];
  },

  release(state, { outline, piece, before }) {
    const { pieces } = state.drawing;
    if (!outline) state.history.commit(pieces, pieces.indexOf(piece), before);
    else if (largeEnough(state, outline)) addPiece(state, outline);
  },
};
