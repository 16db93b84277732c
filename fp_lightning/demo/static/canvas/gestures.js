// Pointer gestures: a press begins one with the tool of the mode, a pull continues it, a release ends it.
import { cut } from "./tools/cut.js";
import { drag } from "./tools/drag.js";
import { region } from "./tools/region.js";
import { sketch } from "./tools/sketch.js";

const TOOLS = { sketch, drag, cut, region };
const REACH = { mouse: 12, touch: 24 }; // page pixels from a handle that still count as on it

// `finished` runs when something has been moved that drafts followed.
export function connectGestures(state, show, finished) {
  const { canvas } = state;
  let waiting = false;

  function showNextFrame() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; show(); });
  }

  function press(event) {
    if (!state.photo || state.gesture || (event.button && event.pointerType === "mouse")) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    const tool = TOOLS[state.mode], reach = (REACH[event.pointerType] || REACH.mouse) * state.pixel;
    const gesture = tool.press(state, state.position(event), reach);
    if (gesture) state.gesture = { ...gesture, tool, pointer: event.pointerId };
    show();
  }

  // A second finger draws nothing.
  const belongs = (event) => state.gesture && state.gesture.pointer === event.pointerId;

  function pull(event) {
    if (!belongs(event)) return;
    state.gesture.tool.pull(state, state.gesture, state.position(event), event);
    state.drafts.moved();
    showNextFrame();
  }

  function release(event) {
    if (!belongs(event)) return;
    const { gesture, history: { past } } = state, followed = state.drafts.follows;
    state.drafts.stop();
    state.gesture = null;
    gesture.tool.release(state, gesture);
    show();
    if (followed && state.history.past !== past) finished();
  }

  canvas.addEventListener("pointerdown", press);
  canvas.addEventListener("pointermove", pull);
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
}
