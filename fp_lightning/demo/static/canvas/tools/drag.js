// Arrows: draw one, move one of its ends, or move all of it.
import { clamp, distance, distanceToSegment, round } from "../geometry.js";
import { copy } from "../history.js";

const SHORTEST = 3; // page pixels

export const drag = {
  press(state, point, reach) {
    const { arrows } = state.drawing;
    for (const [index, [x, y, u, v]] of arrows.entries()) {
      const end = distance(point, [u, v]) < reach ? 2 : distance(point, [x, y]) < reach ? 0 : null;
      if (end !== null) { state.selected = index; return { index, end, before: copy(arrows[index]) }; }
    }
    const index = arrows.findIndex(([x, y, u, v]) => distanceToSegment(point, [x, y], [u, v]) < reach / 2);
    state.selected = index >= 0 ? index : null;
    if (index < 0) return { arrow: [...point, ...point] };
    return { index, end: null, from: point, before: copy(arrows[index]) };
  },

  pull(state, gesture, point) {
    const { arrow, index, end, from, before } = gesture, { arrows } = state.drawing, { width, height } = state.photo;
    if (arrow) arrow.splice(2, 2, ...point);
    else if (end !== null) arrows[index].splice(end, 2, ...point);
    else {
      const most = [width, height, width, height];
      arrows[index] = before.map((value, i) => round(clamp(value + point[i % 2] - from[i % 2], most[i])));
    }
  },

  release(state, { arrow, index, before }) {
    const { arrows } = state.drawing;
    if (!arrow) state.history.commit(arrows, index, before);
    else if (distance(arrow.slice(0, 2), arrow.slice(2)) > SHORTEST * state.pixel)
      state.history.change(() => { state.selected = arrows.push(arrow) - 1; });
  },
};
