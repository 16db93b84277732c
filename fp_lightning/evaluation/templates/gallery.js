// Sort the samples by a score, and compare two images of a sample in a dialog.
const $ = id => document.getElementById(id), list = $('gallery');
if ($('sort')) {
  const names = [...list.children];
  $('sort').onchange = () => {
    const [key, sign] = $('sort').value.split(' ');
    const value = card => card.hasAttribute('data-' + key) ? sign * card.getAttribute('data-' + key) : Infinity;
    list.append(...(key ? [...names].sort((a, b) => value(a) - value(b)) : names));
  };
}
if ($('compare')) {
  let images = [], timer = 0;
  const meet = share => $('over').style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  const stop = () => { clearInterval(timer); timer = 0; meet($('share').value) };
  const show = () => { $('over').src = images[$('left').value].src; $('under').src = images[$('right').value].src };
  list.onclick = event => {
    if (event.target.tagName != 'IMG') return;
    images = [...event.target.closest('.row').querySelectorAll('img')];
    const options = images.map((image, i) => new Option(image.nextElementSibling.textContent, i));
    $('left').replaceChildren(...options.map(option => option.cloneNode(true)));
    $('right').replaceChildren(...options);
    const picked = images.indexOf(event.target);
    $('left').value = picked ? 0 : images.length - 1;
    $('right').value = picked;
    $('over').className = $('under').className = event.target.className;
    show(); stop(); $('compare').showModal();
  };
  $('left').onchange = $('right').onchange = show;
  $('share').oninput = stop;
  $('blink').onclick = () => {
    if (timer) return stop();
    let on = 0;
    timer = setInterval(() => meet(100 * (on ^= 1)), 500);
  };
  $('close').onclick = () => $('compare').close();
  $('compare').onclose = stop;
}
