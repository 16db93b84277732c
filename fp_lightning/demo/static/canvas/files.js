// Files that are dropped on the canvas or pasted. Both open as with the Open button.
export function connectFiles(state, upload, opened) {
  async function open(file) {
    state.hint(`Opening ${file.name} …`);
    try {
      opened((await upload(file)).path);
    } catch { state.hint(`${file.name} could not be uploaded; it may be too large for this server.`); }
  }

  state.stage.addEventListener("dragover", (event) => event.preventDefault());
  state.stage.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (state.element.isConnected && event.clipboardData.files.length) open(event.clipboardData.files[0]);
  });
}
