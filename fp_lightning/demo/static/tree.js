// The history: {nodes: [{key, parent, thumb, caption}], shown, base}. A click shows a node.
export function start({ element, props, trigger, watch }) {
  const tree = element.querySelector(".fp-tree");

  function branch(parent, value) {
    const list = document.createElement("ul");
    for (const node of value.nodes.filter((other) => other.parent === parent)) {
      const row = document.createElement("li"), button = document.createElement("button");
      button.setAttribute("role", "treeitem");
      button.setAttribute("aria-selected", node.key === value.shown);
      button.append(Object.assign(new Image(), { src: node.thumb, alt: "" }));
      button.append(`${node.caption}${node.key === value.base ? " · on the canvas" : ""}`);
      button.onclick = () => {
        props.value = { ...props.value, shown: node.key };
        show();
        trigger("select");
      };
      row.append(button);
      const children = branch(node.key, value);
      if (children.children.length) row.append(children);
      list.append(row);
    }
    return list;
  }

  function show() {
    tree.replaceChildren(branch(null, { nodes: [], ...props.value }));
  }

  watch("value", show);
  show();
}
