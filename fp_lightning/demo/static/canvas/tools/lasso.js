// Free outlines and boxes, which cutting and regions share.
import { bounds, distance } from "../geometry.js";

const SMALLEST = 4; // page pixels

export function extend(state, outline, from, point) {
  const [x, y] = point;
  if (state.tool === "box" || state.tool === "areabox")
    outline.splice(0, outline.length, from, [x, from[1]], point, [from[0], y]);
  else if (distance(outline[outline.length - 1], point) > state.pixel) outline.push(point);
}

export function largeEnough(state, outline) {
  const [left, top, right, bottom] = bounds(outline), least = SMALLEST * state.pixel;
  return outline.length > 2 && right - left > least && bottom - top > least;
}
