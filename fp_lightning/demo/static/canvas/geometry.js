// Points, outlines and pieces. Points are [x, y] in pixels of the photo.
export const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
export const clamp = (value, most) => Math.min(Math.max(value, 0), most);
export const round = (value) => Math.round(value * 100) / 100;
export const closed = (outline) => [...outline, outline[0]];

export function distanceToSegment(p, a, b) {
  const length = distance(a, b) ** 2 || 1;
  const t = clamp(((p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])) / length, 1);
  return distance(p, [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]);
}

// [left, top, right, bottom]
export function bounds(outline) {
  const xs = outline.map((p) => p[0]), ys = outline.map((p) => p[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

export function centre(piece) {
  const [left, top, right, bottom] = bounds(piece.outline);
  return [(left + right) / 2, (top + bottom) / 2];
}

// The motion of a piece about its centre, [a, b, c, d, e, f] as in CanvasRenderingContext2D.transform.
export function transform(piece) {
  const [x, y] = centre(piece), [dx, dy] = piece.move, flip = piece.mirror ? -1 : 1;
  const cos = Math.cos(piece.angle) * piece.scale, sin = Math.sin(piece.angle) * piece.scale;
  const [a, b, c, d] = [cos * flip, sin * flip, -sin, cos];
  return [a, b, c, d, x + dx - a * x - c * y, y + dy - b * x - d * y];
}

export function moved(piece, [x, y]) {
  const [a, b, c, d, e, f] = transform(piece);
  return [a * x + c * y + e, b * x + d * y + f];
}

// The four scale handles at the corners, and the rotation handle above; `pixel` is one page pixel in photo pixels.
export function handles(piece, pixel) {
  const [left, top, right, bottom] = bounds(piece.outline), [x] = centre(piece);
  const above = (28 * pixel) / Math.max(piece.scale, 0.05);
  return {
    corners: [[left, top], [right, top], [right, bottom], [left, bottom]].map((p) => moved(piece, p)),
    turn: moved(piece, [x, top - above]),
  };
}

export function path(points) {
  const shape = new Path2D();
  points.forEach(([x, y], i) => (i ? shape.lineTo(x, y) : shape.moveTo(x, y)));
  return shape;
}

// Whether the moved piece contains a point, by the even-odd rule.
export function inside(piece, p) {
  const outline = piece.outline.map((q) => moved(piece, q));
  let odd = false;
  outline.forEach(([x, y], i) => {
    const [u, v] = outline[(i + 1) % outline.length];
    if (y > p[1] !== v > p[1] && p[0] < x + ((p[1] - y) / (v - y)) * (u - x)) odd = !odd;
  });
  return odd;
}
