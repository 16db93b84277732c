// Starts a component from its module. Gradio runs this text as a function body, where a relative import has no base,
// so the address begins at the root that Gradio serves the page from. Gradio also finds custom events by their names
// in quotes in this text: @EVENTS@.
const root = new URL(`${(window.gradio_config?.root || document.baseURI).replace(/\/$/, "")}/`, document.baseURI);
import(new URL("@MODULE@", root).href)
  .then((module) => module.start({ element, trigger, props, server, upload, watch }))
  .catch((error) => {
    console.error(error);
    element.textContent = "A script of this page could not be loaded. Reload the page.";
  });
