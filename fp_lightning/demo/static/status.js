// The status line: {text, alert, progress}. `progress` runs from 0 to 1; null hides the bar.
export function start({ element, props, watch }) {
  const line = element.querySelector(".fp-status"), bar = line.querySelector("progress");

  function show() {
    const { text = "", alert = false, progress = null } = props.value || {};
    line.setAttribute("role", alert ? "alert" : "status");
    line.querySelector("span").textContent = text;
    bar.hidden = progress === null;
    if (progress !== null) bar.value = progress;
  }

  watch("value", show);
  show();
}
