// A row of pictures of which one can be chosen: {items: [{key, src, caption}], chosen}.
function option(item, chosen) {
  const button = document.createElement("button"), caption = document.createElement("span");
  button.setAttribute("role", "option");
  button.setAttribute("aria-selected", Boolean(item.key) && item.key === chosen);
  if (item.src) button.append(Object.assign(new Image(), { src: item.src, alt: item.caption }));
  else button.append(Object.assign(document.createElement("i"), { textContent: "…" }));
  caption.textContent = item.caption;
  button.append(caption);
  return button;
}

export function start({ element, props, trigger, watch }) {
  const list = element.querySelector(".fp-pictures");
  let followed = false; // whether the new items were scrolled into view

  function show() {
    const { items = [], chosen } = props.value || {};
    const begun = items.some((item) => item.src);
    if (props.follow && begun && !followed)
      requestAnimationFrame(() => list.scrollIntoView({ behavior: "smooth", block: "nearest" }));
    followed = begun && !chosen; // until all items are ready
    list.setAttribute("aria-label", props.about);
    list.replaceChildren(...items.map((item) => {
      const button = option(item, chosen);
      button.onclick = () => {
        if (!item.key) return;
        props.value = { ...props.value, chosen: item.key };
        show();
        trigger("select");
      };
      return button;
    }));
  }

  watch("value", show);
  show();
}
