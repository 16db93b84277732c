const cards = [...document.querySelectorAll('article')], store = 'study ' + STUDY;
const $ = id => document.getElementById(id);
let state = { rater: crypto.getRandomValues(new Uint32Array(2)).join('-'), answers: {} }, at = 0;
try { state = JSON.parse(localStorage.getItem(store)) || state } catch (error) {}
const done = i => QUESTIONS.every(question => (state.answers[i] || {})[question]);
const keep = () => { try { localStorage.setItem(store, JSON.stringify(state)) } catch (error) {} };
const show = () => {
  cards.forEach((card, i) => card.hidden = i != at);
  const count = cards.filter((card, i) => done(i)).length;
  $('position').textContent = `${at + 1} of ${cards.length}, ${count} answered`;
  $('back').disabled = !at; $('next').disabled = at + 1 == cards.length || !done(at);
};
for (const [i, choices] of Object.entries(state.answers))
  for (const [question, choice] of Object.entries(choices)) {
    const input = document.querySelector(`input[name="${i}.${question}"][value="${choice}"]`);
    if (input) input.checked = true;
  }
document.onchange = event => {
  const [i, question] = event.target.name.split('.');
  (state.answers[i] ||= {})[question] = event.target.value;
  keep(); show();
};
$('back').onclick = () => { at--; show() };
$('next').onclick = () => { at++; show(); scrollTo(0, 0) };
$('save').onclick = () => {
  const content = { format: FORMAT, study: STUDY, ...state };
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content)], { type: 'application/json' }));
  link.download = `answers-${state.rater}.json`;
  link.click();
};
at = Math.max(0, cards.findIndex((card, i) => !done(i)));
show();
