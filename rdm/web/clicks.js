// For HTML of rdm.web.markup: a click on a button with `data-do` is an event of the component, and a slider in
// `.compare` moves the border between two pictures. When the HTML changes, the same button has the focus again.
const names = { again: 'submit', edit: 'edit' };
let last = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const { do: what, card, slot } = button.dataset;
  last = `[data-do="${what}"]` + (card ? `[data-card="${card}"]` : '') + (slot ? `[data-slot="${slot}"]` : '');
  const number = (text) => (text === undefined ? null : Number(text));
  trigger(names[what] || 'select', { what, card: number(card), slot: number(slot) });
});
element.addEventListener('input', (event) => {
  event.target.closest('.compare')?.style.setProperty('--cut', `${event.target.value}%`);
});
watch('value', () => last && element.querySelector(last)?.focus({ preventScroll: true }));
