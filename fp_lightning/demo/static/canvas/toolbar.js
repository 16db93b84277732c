// Tabs, buttons, colours and keys.
import { copy, emptyDrawing } from "./history.js";
import { COLOURS } from "./state.js";

const HINTS = {
  sketch: "Draw the outline you want in the edited image.",
  drag: "Press on an object and drag it to its new place. Drag an end to adjust an arrow; press an arrow to select it.",
  cut: "Draw around an object, then move it. Rotate it by the round handle; scale it by a square one.",
  region: "Draw around the area that may change. The rest of the photo stays as it is.",
};

function actions(state) {
  const { history } = state;

  function changePiece(action) {
    const piece = state.mode === "cut" ? state.drawing.pieces[state.selected] : null;
    if (piece) history.change(() => action(piece));
  }

  return {
    undo: () => history.undo(),
    redo: () => history.redo(),
    clear: () => { state.selected = null; history.replace(emptyDrawing()); },
    "remove-arrow": () => state.selected !== null && history.change(() => {
      state.drawing.arrows.splice(state.selected, 1);
      state.selected = null;
    }),
    "remove-region": () => history.change(() => { state.drawing.region = []; }),
    mirror: () => changePiece((piece) => { piece.mirror = !piece.mirror; }),
    duplicate: () => changePiece((piece) => {
      const [dx, dy] = piece.move, by = state.photo.width / 16;
      state.selected = state.drawing.pieces.push({ ...copy(piece), move: [dx + by, dy + by], copied: true }) - 1;
    }),
    delete: () => changePiece((piece) => {
      if (piece.copied) state.drawing.pieces.splice(state.selected, 1);
      else piece.gone = true;
      state.selected = null;
    }),
    "put-back": () => history.change(() => {
      if (state.selected !== null) state.drawing.pieces.splice(state.selected, 1);
      else state.drawing.pieces = state.drawing.pieces.filter((piece) => !piece.gone);
      state.selected = null;
    }),
  };
}

export function selectMode(state, mode) {
  state.setMode(mode);
  const untrained = state.photo && state.photo.untrained && state.photo.untrained[mode];
  state.hint(HINTS[mode] + (untrained ? ` ${untrained}` : ""));
}

// Shows which tabs and tools are active, and which buttons can be pressed.
export function refresh(state) {
  const { drawing, history, selected } = state;
  const disable = (name, value) => { state.find(`[data-do=${name}]`).disabled = value; };
  for (const tab of state.all("[data-mode]")) tab.setAttribute("aria-selected", tab.dataset.mode === state.mode);
  for (const group of state.all("[data-for]")) group.classList.toggle("on", group.dataset.for === state.mode);
  for (const button of state.all("[data-tool]"))
    button.setAttribute("aria-pressed", button.dataset.tool === state.tool);
  disable("undo", !history.past.length);
  disable("redo", !history.future.length);
  disable("remove-region", !drawing.region.length);
  for (const name of ["remove-arrow", "mirror", "duplicate", "delete"]) disable(name, selected === null);
  disable("put-back", selected === null && !drawing.pieces.some((piece) => piece.gone));
}

function addColours(state) {
  for (const ink of COLOURS) {
    const button = document.createElement("button");
    button.style.background = ink;
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", ink);
    button.setAttribute("aria-checked", ink === state.colour);
    button.onclick = () => {
      state.colour = ink;
      for (const other of state.all(".colours button")) other.setAttribute("aria-checked", other === button);
    };
    state.find(".colours").append(button);
  }
}

export function connectToolbar(state, show) {
  const run = actions(state);
  addColours(state);
  state.element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || button.disabled || state.gesture) return;
    const { mode, tool, do: action } = button.dataset;
    if (mode) selectMode(state, mode);
    if (tool) state.tool = tool;
    if (action) {
      run[action]();
      state.hint(HINTS[state.mode]);
    }
    show();
  });
  state.find("[data-set=outlines]").addEventListener("change", show);
  state.element.addEventListener("keydown", (event) => {
    if (state.gesture) return;
    const command = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
    const removes = (key === "delete" || key === "backspace") && event.target.tagName !== "INPUT";
    if (command && key === "z") run[event.shiftKey ? "redo" : "undo"]();
    else if (command && key === "y") run.redo();
    else if (removes) run[state.mode === "drag" ? "remove-arrow" : "delete"]();
    else return;
    event.preventDefault();
  });
}
