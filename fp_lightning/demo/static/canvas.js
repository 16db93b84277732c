// The drawing is one small document in pixels of the photo; everything on the page is drawn from it, and so are the
// model's inputs on the server (fp_lightning/demo/drawing.py):
//   strokes  [{points: [[x, y], …], size, erase, colour}]
//   arrows   [[x_from, y_from, x_to, y_to], …]
//   pieces   [{outline: [[x, y], …], move: [dx, dy], angle, scale, mirror, gone, copied}]
//   region   [[[x, y], …], …]
// It is kept in the browser at every change, by the key of its photo.
const GROW = 3 / 512;                                   // image widths by which holes are widened, as in training
const STORE = "fp_lightning drawings", KEPT = 40, STEPS = 200;
const COLOURS = ["#ffffff", "#ffd43b", "#ff6b6b", "#4dabf7", "#51cf66"];
const HINTS = {
  sketch: "Draw the outlines of what shall be there, where it shall be.",
  drag: "Press on a thing and pull it to where it shall go. Ends can be moved; press an arrow to choose it.",
  cut: "Draw around a thing, then move it; turn it by the round handle, scale it by the square ones.",
  region: "Draw around what may change. Everything else stays as it is.",
};
const TOOLS = { sketch: "brush", drag: "arrow", cut: "lasso", region: "area" };
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d"), stage = element.querySelector(".stage");
const find = (selector) => element.querySelector(selector), all = (selector) => element.querySelectorAll(selector);
const empty = () => ({ strokes: [], arrows: [], pieces: [], region: [] });
const copy = (value) => JSON.parse(JSON.stringify(value));

let photo = null, image = null, outlines = null;        // of the server; its pictures
let opening = 0;                                        // how often a photo was opened
let drawing = empty(), undone = [], done = [];
let mode = "sketch", tool = "brush", colour = COLOURS[0], chosen = null, gesture = null;
let fill = null, fillOf = "";                           // the ground with holes filled, and the cuts it belongs to

// ---- the document ------------------------------------------------------------------------------------------------
function stored() {
  try { return JSON.parse(localStorage.getItem(STORE)) || {}; } catch { return {}; }
}

function keep() {
  props.value = { key: photo && photo.key, ...copy(drawing) };
  if (!photo) return;
  const others = Object.entries(stored()).filter(([key]) => key !== photo.key).slice(1 - KEPT);
  try {
    localStorage.setItem(STORE, JSON.stringify(Object.fromEntries([...others, [photo.key, drawing]])));
  } catch { hint("This browser keeps no data: the drawing will be lost when the page is reloaded."); }
}

function change(action) {                               // every change of the document goes through here
  const before = JSON.stringify(drawing);
  action();
  if (JSON.stringify(drawing) === before) return;
  done = [...done.slice(1 - STEPS), before];
  undone = [];
  keep();
  show();
}

function step(from, to) {
  if (!from.length) return;
  to.push(JSON.stringify(drawing));
  drawing = JSON.parse(from.pop());
  if (chosen >= (mode === "drag" ? drawing.arrows : drawing.pieces).length) chosen = null;
  keep();
  show();
}

async function open(next) {
  if (!next) return;
  const turn = ++opening;
  const key = next.key, [loaded, edges] = await Promise.all([picture(next.src), next.outlines && picture(next.outlines)]);
  if (turn !== opening) return;                         // another one was opened meanwhile
  const saved = stored()[key];
  const same = photo && photo.key === key;
  photo = next; image = loaded; outlines = edges; fillOf = "";
  if (!same) { drawing = { ...empty(), ...copy(saved || next.drawing || {}) }; done = []; undone = []; }
  if (next.replace) change(() => { drawing = { ...empty(), ...copy(next.drawing || {}) }; });
  chosen = null;
  select(next.mode || mode);
  find(".segmenter").classList.toggle("hidden", !props.segmenter);
  keep();
  fit();
}

function picture(src) {
  return new Promise((resolve, reject) => {
    const loaded = new Image();
    loaded.onload = () => resolve(loaded);
    loaded.onerror = reject;
    loaded.src = src;
  });
}

// ---- geometry ----------------------------------------------------------------------------------------------------
function fit() {                                        // as large as the place allows, never above 62 % of the window
  if (!photo || !stage.clientWidth) return;
  const width = Math.min(stage.clientWidth, (0.62 * innerHeight * photo.width) / photo.height);
  const ratio = window.devicePixelRatio || 1;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${(width * photo.height) / photo.width}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round((width * ratio * photo.height) / photo.width);
  show();
}

const unit = () => photo.width / canvas.clientWidth;    // photo pixels in a pixel of the page
const clamp = (value, most) => Math.min(Math.max(value, 0), most);
const round = (value) => Math.round(value * 100) / 100;

function place(event) {
  const box = canvas.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * photo.width, y = ((event.clientY - box.top) / box.height) * photo.height;
  return [round(clamp(x, photo.width)), round(clamp(y, photo.height))];
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

function aside(p, a, b) {                               // distance of p from the line between a and b
  const length = distance(a, b) ** 2 || 1;
  const t = Math.min(1, Math.max(0, ((p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])) / length));
  return distance(p, [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]);
}

function extent(outline) {
  const xs = outline.map((p) => p[0]), ys = outline.map((p) => p[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

function centre(piece) {
  const [left, top, right, bottom] = extent(piece.outline);
  return [(left + right) / 2, (top + bottom) / 2];
}

function motion(piece) {                                // [a, b, c, d, e, f] as canvas transforms have it
  const [x, y] = centre(piece), [dx, dy] = piece.move, flip = piece.mirror ? -1 : 1;
  const cos = Math.cos(piece.angle) * piece.scale, sin = Math.sin(piece.angle) * piece.scale;
  const [a, b, c, d] = [cos * flip, sin * flip, -sin, cos];
  return [a, b, c, d, x + dx - a * x - c * y, y + dy - b * x - d * y];
}

const moved = (piece, [x, y]) => {
  const [a, b, c, d, e, f] = motion(piece);
  return [a * x + c * y + e, b * x + d * y + f];
};

function handles(piece) {                               // the four corners, and the one that turns
  const [left, top, right, bottom] = extent(piece.outline), [x] = centre(piece);
  const up = (28 * unit()) / Math.max(piece.scale, 0.05);
  return {
    corners: [[left, top], [right, top], [right, bottom], [left, bottom]].map((p) => moved(piece, p)),
    turn: moved(piece, [x, top - up]),
  };
}

function path(points) {
  const shape = new Path2D();
  points.forEach(([x, y], i) => (i ? shape.lineTo(x, y) : shape.moveTo(x, y)));
  return shape;
}

function inside(piece, p) {
  const outline = piece.outline.map((q) => moved(piece, q));
  let odd = false;
  outline.forEach(([x, y], i) => {
    const [u, v] = outline[(i + 1) % outline.length];
    if (y > p[1] !== v > p[1] && p[0] < x + ((p[1] - y) / (v - y)) * (u - x)) odd = !odd;
  });
  return odd;
}

// ---- pictures ----------------------------------------------------------------------------------------------------
function ground() {                                     // the photo with the holes of moved pieces filled, roughly
  const cuts = JSON.stringify(drawing.pieces.filter((piece) => !piece.copied).map((piece) => piece.outline));
  if (cuts === "[]") return image;
  if (cuts === fillOf) return fill;
  const scale = Math.min(1, 160 / Math.max(photo.width, photo.height));
  const width = Math.max(2, Math.round(photo.width * scale)), height = Math.max(2, Math.round(photo.height * scale));
  const sheet = (w, h) => Object.assign(document.createElement("canvas"), { width: w, height: h });
  const small = sheet(width, height), brush = small.getContext("2d", { willReadFrequently: true });
  const mask = sheet(width, height), stencil = mask.getContext("2d", { willReadFrequently: true });
  brush.drawImage(image, 0, 0, width, height);
  stencil.scale(width / photo.width, height / photo.height);
  stencil.lineWidth = 2 * GROW * photo.width + 2 / scale;
  for (const outline of JSON.parse(cuts)) { stencil.fill(path(outline)); stencil.stroke(path([...outline, outline[0]])); }
  const pixels = brush.getImageData(0, 0, width, height), holes = stencil.getImageData(0, 0, width, height).data;
  let open = [];
  for (let i = 0; i < width * height; i++) if (holes[4 * i + 3] > 0) open.push(i);
  const hole = new Uint8Array(width * height);
  for (const i of open) hole[i] = 1;
  const beside = (i) => [i % width ? i - 1 : -1, (i + 1) % width ? i + 1 : -1, i - width, i + width < width * height ? i + width : -1];
  while (open.length) {                                 // from the rim inwards, each from what it knows of its neighbours
    const known = open.map((i) => beside(i).filter((j) => j >= 0 && !hole[j]));
    const ready = open.filter((_, n) => known[n].length);
    if (!ready.length) break;
    open.forEach((i, n) => {
      for (let c = 0; c < 3 && known[n].length; c++)
        pixels.data[4 * i + c] = known[n].reduce((sum, j) => sum + pixels.data[4 * j + c], 0) / known[n].length;
    });
    for (const i of ready) hole[i] = 0;
    open = open.filter((i) => hole[i]);
  }
  brush.putImageData(pixels, 0, 0);
  const factor = Math.min(1, 1600 / Math.max(photo.width, photo.height));
  fill = sheet(Math.round(photo.width * factor), Math.round(photo.height * factor));
  const whole = fill.getContext("2d");
  whole.drawImage(image, 0, 0, fill.width, fill.height);
  whole.scale(fill.width / photo.width, fill.height / photo.height);
  const patch = sheet(fill.width, fill.height), over = patch.getContext("2d");
  over.scale(fill.width / photo.width, fill.height / photo.height);
  over.lineWidth = 2 * GROW * photo.width;
  for (const outline of JSON.parse(cuts)) { over.fill(path(outline)); over.stroke(path([...outline, outline[0]])); }
  over.globalCompositeOperation = "source-in";
  over.drawImage(small, 0, 0, photo.width, photo.height);
  whole.drawImage(patch, 0, 0, photo.width, photo.height);
  fillOf = cuts;
  return fill;
}

function show() {
  refresh();
  if (!photo || !image) return;
  const scale = canvas.width / photo.width, px = unit();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.scale(scale, canvas.height / photo.height);
  pen.drawImage(ground(), 0, 0, photo.width, photo.height);
  for (const piece of drawing.pieces.filter((piece) => !piece.gone)) {
    pen.save();
    pen.transform(...motion(piece));
    pen.clip(path(piece.outline));
    pen.drawImage(image, 0, 0, photo.width, photo.height);
    pen.restore();
  }
  if (find("[data-set=outlines]").checked && outlines) {
    pen.globalAlpha = 0.75;
    pen.drawImage(outlines, 0, 0, photo.width, photo.height);
    pen.globalAlpha = 1;
  }
  paintStrokes(scale);
  if (drawing.region.length || (gesture && gesture.area)) paintRegion(px);
  drawing.arrows.forEach((arrow, i) => paintArrow(arrow, px, mode === "drag" && chosen === i));
  if (gesture && gesture.arrow) paintArrow(gesture.arrow, px, true);
  if (mode === "cut") paintFrames(px);
  if (gesture && gesture.outline) paintLine(gesture.outline, px, true);
  canvas.dataset.ready = photo.key;
}

function paintStrokes(scale) {
  if (!drawing.strokes.length && !(gesture && gesture.stroke)) return;
  const layer = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const brush = layer.getContext("2d");
  brush.scale(scale, canvas.height / photo.height);
  brush.lineCap = brush.lineJoin = "round";
  for (const stroke of [...drawing.strokes, ...(gesture && gesture.stroke ? [gesture.stroke] : [])]) {
    const line = path(stroke.points.length > 1 ? stroke.points : [stroke.points[0], stroke.points[0]]);
    brush.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    if (!stroke.erase) { brush.strokeStyle = "#0008"; brush.lineWidth = stroke.size + 2 * unit(); brush.stroke(line); }
    brush.strokeStyle = stroke.colour || "#fff";
    brush.lineWidth = stroke.size;
    brush.stroke(line);
  }
  pen.save();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.drawImage(layer, 0, 0);
  pen.restore();
}

function paintRegion(px) {
  const shapes = [...drawing.region, ...(gesture && gesture.area ? [gesture.area] : [])];
  pen.save();
  const layer = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const brush = layer.getContext("2d");
  brush.fillStyle = "#000";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.scale(canvas.width / photo.width, canvas.height / photo.height);
  brush.globalCompositeOperation = "destination-out";
  for (const shape of shapes) brush.fill(path(shape));
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.globalAlpha = 0.45;
  pen.drawImage(layer, 0, 0);
  pen.restore();
  for (const shape of shapes) paintLine([...shape, shape[0]], px, true);
}

function paintLine(points, px, dashed) {
  for (const [ink, width] of [["#000a", 3], ["#fff", 1.5]]) {
    pen.strokeStyle = ink;
    pen.lineWidth = width * px;
    pen.setLineDash(dashed && ink === "#fff" ? [5 * px, 4 * px] : []);
    pen.stroke(path(points));
  }
  pen.setLineDash([]);
}

function paintArrow([x, y, u, v], px, strong) {
  const angle = Math.atan2(v - y, u - x), tip = (turn) => [u - 13 * px * Math.cos(angle + turn), v - 13 * px * Math.sin(angle + turn)];
  pen.lineCap = pen.lineJoin = "round";
  for (const [ink, width] of [["#000a", strong ? 7 : 5.5], [strong ? "#ffd43b" : "#ff6b6b", strong ? 4 : 3]]) {
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = width * px;
    pen.stroke(path([[x, y], [u, v]]));
    pen.stroke(path([tip(0.5), [u, v], tip(-0.5)]));
    pen.beginPath();
    pen.arc(x, y, (width + 2) * px, 0, 7);
    pen.fill();
  }
}

function paintFrames(px) {
  drawing.pieces.forEach((piece, i) => {
    const outline = piece.gone ? piece.outline : piece.outline.map((p) => moved(piece, p));
    paintLine([...outline, outline[0]], px, true);
    if (i !== chosen || piece.gone) return;
    const { corners, turn } = handles(piece);
    paintLine([...corners, corners[0]], px, false);
    paintLine([[(corners[0][0] + corners[1][0]) / 2, (corners[0][1] + corners[1][1]) / 2], turn], px, false);
    pen.fillStyle = "#fff";
    pen.strokeStyle = "#000";
    pen.lineWidth = px;
    for (const [x, y] of corners) { pen.fillRect(x - 5 * px, y - 5 * px, 10 * px, 10 * px); pen.strokeRect(x - 5 * px, y - 5 * px, 10 * px, 10 * px); }
    pen.beginPath();
    pen.arc(...turn, 6 * px, 0, 7);
    pen.fill();
    pen.stroke();
  });
}

// ---- gestures: press, pull, release; what is begun is in `gesture` until it is released ---------------------------------
const REACH = (event) => (event.pointerType === "touch" ? 24 : 12) * unit();

function press(event) {
  if (!photo || gesture || (event.button && event.pointerType === "mouse")) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  const p = place(event), reach = REACH(event);
  if (mode === "sketch") gesture = { stroke: { points: [p], size: size(), erase: tool === "eraser", colour } };
  else if (mode === "drag") gesture = pressArrow(p, reach);
  else if (mode === "region") gesture = { area: [p], from: p };
  else gesture = pressPiece(p, reach);
  if (gesture) gesture.pointer = event.pointerId;
  show();
}

function pressArrow(p, reach) {
  for (const [i, [x, y, u, v]] of drawing.arrows.entries()) {
    const end = distance(p, [u, v]) < reach ? 2 : distance(p, [x, y]) < reach ? 0 : null;
    if (end !== null) { chosen = i; return { moving: i, end, before: copy(drawing.arrows[i]) }; }
  }
  const near = drawing.arrows.findIndex(([x, y, u, v]) => aside(p, [x, y], [u, v]) < reach / 2);
  if (near >= 0) { chosen = near; return { moving: near, end: null, from: p, before: copy(drawing.arrows[near]) }; }
  chosen = null;
  return { arrow: [...p, ...p] };
}

function pressPiece(p, reach) {
  const piece = drawing.pieces[chosen];
  if (piece && !piece.gone) {
    const { corners, turn } = handles(piece), middle = moved(piece, centre(piece));
    if (distance(p, turn) < reach) return { piece, turning: Math.atan2(p[1] - middle[1], p[0] - middle[0]), middle, before: copy(piece) };
    if (corners.some((corner) => distance(p, corner) < reach)) return { piece, scaling: distance(p, middle), middle, before: copy(piece) };
  }
  for (let i = drawing.pieces.length - 1; i >= 0; i--)
    if (!drawing.pieces[i].gone && inside(drawing.pieces[i], p)) { chosen = i; return { piece: drawing.pieces[i], from: p, before: copy(drawing.pieces[i]) }; }
  chosen = null;
  if (tool === "click") { segment(p); return null; }
  return { outline: [p], from: p };
}

function pull(event) {
  if (!gesture || gesture.pointer !== event.pointerId) return; // a second finger draws nothing
  const p = place(event), g = gesture;
  if (g.stroke) for (const part of event.getCoalescedEvents ? event.getCoalescedEvents() : [event]) g.stroke.points.push(place(part));
  else if (g.arrow) g.arrow.splice(2, 2, ...p);
  else if (g.moving !== undefined) pullArrow(g, p);
  else if (g.area || g.outline) {
    const line = g.area || g.outline, box = tool === "box" || tool === "areabox";
    if (box) line.splice(0, line.length, g.from, [p[0], g.from[1]], p, [g.from[0], p[1]]);
    else if (distance(line[line.length - 1], p) > unit()) line.push(p);
  } else if (g.turning !== undefined) g.piece.angle = round(g.before.angle + Math.atan2(p[1] - g.middle[1], p[0] - g.middle[0]) - g.turning);
  else if (g.scaling) g.piece.scale = Math.max(0.05, round((g.before.scale * distance(p, g.middle)) / g.scaling));
  else g.piece.move = [round(g.before.move[0] + p[0] - g.from[0]), round(g.before.move[1] + p[1] - g.from[1])];
  requestShow();
}

function pullArrow(g, p) {
  const arrow = drawing.arrows[g.moving];
  if (g.end !== null) arrow.splice(g.end, 2, ...p);
  else {
    const ends = g.before.map((value, i) => value + p[i % 2] - g.from[i % 2]);
    drawing.arrows[g.moving] = ends.map((value, i) => round(clamp(value, i % 2 ? photo.height : photo.width)));
  }
}

function release(event) {
  const g = gesture;
  if (!g || g.pointer !== event.pointerId) return;
  gesture = null;
  const large = (line) => { const [l, t, r, b] = extent(line); return line.length > 2 && r - l > 4 * unit() && b - t > 4 * unit(); };
  if (g.stroke) change(() => drawing.strokes.push(g.stroke));
  else if (g.arrow) { if (distance(g.arrow.slice(0, 2), g.arrow.slice(2)) > 3 * unit()) change(() => { chosen = drawing.arrows.push(g.arrow) - 1; }); else show(); }
  else if (g.area) { if (large(g.area)) change(() => drawing.region.push(g.area)); else show(); }
  else if (g.outline) { if (large(g.outline)) cut(g.outline); else show(); }
  else if (g.moving !== undefined) finish(drawing.arrows, g.moving, g.before);
  else finish(drawing.pieces, drawing.pieces.indexOf(g.piece), g.before);
}

function finish(list, index, before) {                  // a live change becomes one step that can be undone
  const after = list[index];
  list[index] = before;
  change(() => { list[index] = after; });
  show();
}

function cut(outline) {
  change(() => { chosen = drawing.pieces.push({ outline, move: [0, 0], angle: 0, scale: 1, mirror: false, gone: false, copied: false }) - 1; });
  hint("Cut out. Now move, turn or scale it, or press Mirror, Duplicate or Delete.");
}

async function segment(p) {
  hint("Looking for what is there …");
  const found = await server.segment({ key: photo.key, at: p }).catch(() => null);
  if (found && found.outline) cut(found.outline);
  else hint((found && found.error) || "Nothing was found there; draw around it with the lasso.");
}

let waiting = false;
function requestShow() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; show(); });
}

// ---- buttons -----------------------------------------------------------------------------------------------------
const ACTIONS = {
  undo: () => step(done, undone),
  redo: () => step(undone, done),
  clear: () => change(() => { drawing = empty(); chosen = null; }),
  "remove-arrow": () => chosen !== null && change(() => { drawing.arrows.splice(chosen, 1); chosen = null; }),
  "remove-region": () => change(() => { drawing.region = []; }),
  mirror: () => withPiece((piece) => { piece.mirror = !piece.mirror; }),
  duplicate: () => withPiece((piece) => {
    const by = photo.width / 16;
    chosen = drawing.pieces.push({ ...copy(piece), move: [piece.move[0] + by, piece.move[1] + by], copied: true }) - 1;
  }),
  delete: () => withPiece((piece) => {
    if (piece.copied) drawing.pieces.splice(chosen, 1);
    else piece.gone = true;
    chosen = null;
  }),
  "put-back": () => change(() => {
    if (chosen !== null) drawing.pieces.splice(chosen, 1);
    else drawing.pieces = drawing.pieces.filter((piece) => !piece.gone);
    chosen = null;
  }),
};

function withPiece(action) {
  const piece = mode === "cut" ? drawing.pieces[chosen] : null;
  if (piece) change(() => action(piece));
}

const size = () => round(photo.width * 0.003 * 20 ** (find("[data-set=size]").value / 100)); // 0.3 % to 6 % of the width
const hint = (text) => { find(".hint").textContent = text; };

function select(next) {
  mode = next;
  tool = TOOLS[mode];
  chosen = null;
  const untrained = photo && photo.untrained && photo.untrained[mode];
  hint(HINTS[mode] + (untrained ? ` ${untrained}` : ""));
  show();
}

function refresh() {
  for (const tab of all("[data-mode]")) tab.setAttribute("aria-selected", tab.dataset.mode === mode);
  for (const group of all("[data-for]")) group.classList.toggle("on", group.dataset.for === mode);
  for (const button of all("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  find("[data-do=undo]").disabled = !done.length;
  find("[data-do=redo]").disabled = !undone.length;
  find("[data-do=remove-arrow]").disabled = chosen === null;
  find("[data-do=remove-region]").disabled = !drawing.region.length;
  for (const name of ["mirror", "duplicate", "delete"]) find(`[data-do=${name}]`).disabled = chosen === null;
  find("[data-do=put-back]").disabled = chosen === null && !drawing.pieces.some((piece) => piece.gone);
}

for (const ink of COLOURS) {
  const button = document.createElement("button");
  button.style.background = ink;
  button.setAttribute("role", "radio");
  button.setAttribute("aria-label", ink);
  button.setAttribute("aria-checked", ink === colour);
  button.onclick = () => {
    colour = ink;
    for (const other of all(".colours button")) other.setAttribute("aria-checked", other === button);
  };
  find(".colours").append(button);
}
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.disabled || gesture) return;
  if (button.dataset.mode) select(button.dataset.mode);
  if (button.dataset.tool) { tool = button.dataset.tool; show(); }
  if (button.dataset.do) { ACTIONS[button.dataset.do](); hint(HINTS[mode]); }
});
find("[data-set=outlines]").addEventListener("change", show);
canvas.addEventListener("pointerdown", press);
canvas.addEventListener("pointermove", pull);
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
element.addEventListener("keydown", (event) => {
  if (gesture) return;
  const command = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  if (command && key === "z") ACTIONS[event.shiftKey ? "redo" : "undo"]();
  else if (command && key === "y") ACTIONS.redo();
  else if ((key === "delete" || key === "backspace") && event.target.tagName !== "INPUT") (mode === "drag" ? ACTIONS["remove-arrow"] : ACTIONS.delete)();
  else return;
  event.preventDefault();
});
window.addEventListener("storage", (event) => {          // the same photo in another tab: both show the last drawing
  const other = event.key === STORE && photo && stored()[photo.key];
  if (other && !gesture && element.isConnected) change(() => { drawing = { ...empty(), ...other }; });
});

async function take(file) {                             // one that is dropped or pasted is opened as an upload is
  hint(`Opening ${file.name} …`);
  try {
    trigger("drop", { path: (await upload(file)).path });
  } catch { hint(`${file.name} could not be sent; it may be too large for this server.`); }
}

stage.addEventListener("dragover", (event) => event.preventDefault());
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (element.isConnected && event.clipboardData.files.length) take(event.clipboardData.files[0]);
});
new ResizeObserver(fit).observe(stage);
watch("photo", () => open(props.photo));
select("sketch");
open(props.photo);
