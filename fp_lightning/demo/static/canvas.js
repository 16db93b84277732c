// The canvas: a photo and the drawing on it. Its value is the drawing with the key of its photo.
import { Drafts } from "./canvas/drafts.js";
import { connectFiles } from "./canvas/files.js";
import { connectGestures } from "./canvas/gestures.js";
import { copy } from "./canvas/history.js";
import { render } from "./canvas/rendering.js";
import { CanvasState } from "./canvas/state.js";
import { load, onOtherTab, save } from "./canvas/store.js";
import { connectToolbar, refresh, selectMode } from "./canvas/toolbar.js";
import { loadImage } from "./images.js";

export function start({ element, props, server, trigger, upload, watch }) {
  const state = new CanvasState(element, changed);
  state.server = server;
  let opening = 0; // counts the photos that were opened

  function show() {
    refresh(state);
    render(state);
  }

  function store() {
    const { drawing, photo } = state;
    props.value = { key: photo && photo.key, ...copy(drawing) };
    if (photo && !save(photo.key, drawing))
      state.hint("This browser does not store data; reloading the page will lose the drawing.");
  }

  function changed() {
    state.checkSelection();
    store();
    show();
  }

  function fit() {
    state.fit();
    show();
  }

  async function open(photo) {
    if (!photo) return;
    const turn = ++opening;
    const [image, outlines] = await Promise.all([loadImage(photo.src), photo.outlines && loadImage(photo.outlines)]);
    if (turn !== opening) return; // another photo was opened in the meantime
    const same = state.photo && state.photo.key === photo.key;
    state.setPhoto(photo, image, outlines);
    if (!same) state.history.reset(load(photo.key) || photo.drawing || {});
    if (photo.replace) state.history.replace(photo.drawing || {});
    selectMode(state, photo.mode || state.mode);
    state.find(".segmenter").classList.toggle("hidden", !props.segmenter);
    store();
    fit();
  }

  connectToolbar(state, show);
  state.drafts = new Drafts(state, show, () => props.live);
  connectGestures(state, show, () => trigger("move"));
  connectFiles(state, upload, (path) => trigger("drop", { path }));
  onOtherTab(() => { // both tabs show the last drawing of a photo
    const other = state.photo && load(state.photo.key);
    if (other && !state.gesture && element.isConnected) state.history.replace(other);
  });
  new ResizeObserver(fit).observe(state.stage);
  watch("photo", () => open(props.photo));
  selectMode(state, "sketch");
  fit();
  open(props.photo);
}
