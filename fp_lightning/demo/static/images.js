// Loads the image of a URL.
export function loadImage(src) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = src;
  });
}

// A canvas that is not on the page.
export function offscreen(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}
