// A row of pictures to choose from: {items: [{key, src, caption}], chosen}. What is chosen is the value's "chosen".
const list = element.querySelector(".fp-pictures");
let followed = false;

function show() {
  const { items = [], chosen } = props.value || {};
  const begun = items.some((item) => item.src);
  if (props.follow && begun && !followed) requestAnimationFrame(() => list.scrollIntoView({ behavior: "smooth", block: "nearest" }));
  followed = begun && !chosen;                          // until they are all made
  list.setAttribute("aria-label", props.about);
  list.replaceChildren(...items.map((item) => {
    const button = document.createElement("button"), caption = document.createElement("span");
    button.setAttribute("role", "option");
    button.setAttribute("aria-selected", Boolean(item.key) && item.key === chosen);
    if (item.src) {
      const picture = new Image();
      picture.src = item.src;
      picture.alt = item.caption;
      button.append(picture);
    } else button.append(Object.assign(document.createElement("i"), { textContent: "…" }));
    caption.textContent = item.caption;
    button.append(caption);
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
