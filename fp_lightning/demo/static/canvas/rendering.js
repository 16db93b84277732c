// Renders the photo, the drawing and the gesture under way. Units are photo pixels; `pixel` is one page pixel.
import { offscreen } from "../images.js";
import { closed, handles, moved, path, transform } from "./geometry.js";

export function render(state) {
  const { canvas, drawing, gesture, image, photo } = state;
  if (!photo || !image) return;
  const pen = canvas.getContext("2d"), { pixel } = state;
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.scale(canvas.width / photo.width, canvas.height / photo.height);
  pen.drawImage(state.background.of(drawing.pieces), 0, 0, photo.width, photo.height);
  for (const piece of drawing.pieces.filter((piece) => !piece.gone)) {
    pen.save();
    pen.transform(...transform(piece));
    pen.clip(path(piece.outline));
    pen.drawImage(image, 0, 0, photo.width, photo.height);
    pen.restore();
  }
  if (state.drafts.image) pen.drawImage(state.drafts.image, 0, 0, photo.width, photo.height);
  if (state.find("[data-set=outlines]").checked && state.outlines) {
    pen.globalAlpha = 0.75;
    pen.drawImage(state.outlines, 0, 0, photo.width, photo.height);
    pen.globalAlpha = 1;
  }
  const begun = gesture || {};
  paintStrokes(pen, state, [...drawing.strokes, ...(begun.stroke ? [begun.stroke] : [])]);
  paintRegion(pen, state, [...drawing.region, ...(begun.area ? [begun.area] : [])]);
  drawing.arrows.forEach((arrow, i) => paintArrow(pen, arrow, pixel, state.mode === "drag" && state.selected === i));
  if (begun.arrow) paintArrow(pen, begun.arrow, pixel, true);
  if (state.mode === "cut") paintFrames(pen, state);
  if (begun.outline) paintLine(pen, begun.outline, pixel, true);
  canvas.dataset.ready = photo.key;
}

// A transparent layer over the whole canvas, painted in photo pixels and laid over with `alpha`.
function layered(pen, { canvas, photo }, alpha, paint) {
  const layer = offscreen(canvas.width, canvas.height), brush = layer.getContext("2d");
  brush.scale(canvas.width / photo.width, canvas.height / photo.height);
  paint(brush);
  pen.save();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.globalAlpha = alpha;
  pen.drawImage(layer, 0, 0);
  pen.restore();
}

function paintStrokes(pen, state, strokes) {
  if (!strokes.length) return;
  layered(pen, state, 1, (brush) => {
    brush.lineCap = brush.lineJoin = "round";
    for (const { points, size, erase, colour } of strokes) {
      const line = path(points.length > 1 ? points : [points[0], points[0]]);
      brush.globalCompositeOperation = erase ? "destination-out" : "source-over";
      if (!erase) {
        brush.strokeStyle = "#0008";
        brush.lineWidth = size + 2 * state.pixel;
        brush.stroke(line);
      }
      brush.strokeStyle = colour || "#fff";
      brush.lineWidth = size;
      brush.stroke(line);
    }
  });
}

// Darkens what lies outside of the region.
function paintRegion(pen, state, shapes) {
  if (!shapes.length) return;
  layered(pen, state, 0.45, (brush) => {
    brush.fillRect(0, 0, state.photo.width, state.photo.height);
    brush.globalCompositeOperation = "destination-out";
    for (const shape of shapes) brush.fill(path(shape));
  });
  for (const shape of shapes) paintLine(pen, closed(shape), state.pixel, true);
}

function paintLine(pen, points, pixel, dashed) {
  for (const [ink, width] of [["#000a", 3], ["#fff", 1.5]]) {
    pen.strokeStyle = ink;
    pen.lineWidth = width * pixel;
    pen.setLineDash(dashed && ink === "#fff" ? [5 * pixel, 4 * pixel] : []);
    pen.stroke(path(points));
  }
  pen.setLineDash([]);
}

function paintArrow(pen, [x, y, u, v], pixel, strong) {
  const angle = Math.atan2(v - y, u - x);
  const tip = (turn) => [u - 13 * pixel * Math.cos(angle + turn), v - 13 * pixel * Math.sin(angle + turn)];
  pen.lineCap = pen.lineJoin = "round";
  for (const [ink, width] of [["#000a", strong ? 7 : 5.5], [strong ? "#ffd43b" : "#ff6b6b", strong ? 4 : 3]]) {
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = width * pixel;
    pen.stroke(path([[x, y], [u, v]]));
    pen.stroke(path([tip(0.5), [u, v], tip(-0.5)]));
    pen.beginPath();
    pen.arc(x, y, (width + 2) * pixel, 0, 7);
    pen.fill();
  }
}

// The outlines of pieces, and the handles of the selected one.
function paintFrames(pen, { drawing, selected, pixel }) {
  drawing.pieces.forEach((piece, i) => {
    const outline = piece.gone ? piece.outline : piece.outline.map((p) => moved(piece, p));
    paintLine(pen, closed(outline), pixel, true);
    if (i !== selected || piece.gone) return;
    const { corners, turn } = handles(piece, pixel), [[left, top], [right, bottom]] = corners;
    paintLine(pen, closed(corners), pixel, false);
    paintLine(pen, [[(left + right) / 2, (top + bottom) / 2], turn], pixel, false);
    pen.fillStyle = "#fff";
    pen.strokeStyle = "#000";
    pen.lineWidth = pixel;
    for (const [x, y] of corners) {
      const box = [x - 5 * pixel, y - 5 * pixel, 10 * pixel, 10 * pixel];
      pen.fillRect(...box);
      pen.strokeRect(...box);
    }
    pen.beginPath();
    pen.arc(...turn, 6 * pixel, 0, 7);
    pen.fill();
    pen.stroke();
  });
}
