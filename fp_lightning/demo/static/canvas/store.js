// Drawings in the browser's local storage, by the key of their photo. The oldest ones go.
const NAME = "fp_lightning drawings", MOST = 40;

function all() {
  try { return JSON.parse(localStorage.getItem(NAME)) || {}; } catch { return {}; }
}

export const load = (key) => all()[key];

// Returns whether the browser could store the drawing.
export function save(key, drawing) {
  const others = Object.entries(all()).filter(([other]) => other !== key).slice(1 - MOST);
  try {
    localStorage.setItem(NAME, JSON.stringify(Object.fromEntries([...others, [key, drawing]])));
    return true;
  } catch { return false; }
}

// Calls back when another tab has stored a drawing.
export function onOtherTab(callback) {
  window.addEventListener("storage", (event) => { if (event.key === NAME) callback(); });
}
