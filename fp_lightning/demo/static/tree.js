// The history: {nodes: [{key, parent, thumb, caption}], shown, base}. A click makes a node the shown one.
const tree = element.querySelector(".fp-tree");

function branch(parent, nodes, value) {
  const list = document.createElement("ul");
  for (const node of nodes.filter((other) => other.parent === parent)) {
    const row = document.createElement("li"), button = document.createElement("button"), picture = new Image();
    picture.src = node.thumb;
    picture.alt = "";
    button.setAttribute("role", "treeitem");
    button.setAttribute("aria-selected", node.key === value.shown);
    button.append(picture, `${node.caption}${node.key === value.base ? " · on the canvas" : ""}`);
    button.onclick = () => {
      props.value = { ...props.value, shown: node.key };
      show();
      trigger("select");
    };
    row.append(button);
    const below = branch(node.key, nodes, value);
    if (below.children.length) row.append(below);
    list.append(row);
  }
  return list;
}

function show() {
  const value = props.value || {};
  tree.replaceChildren(branch(null, value.nodes || [], value));
}

watch("value", show);
show();
