// For the HTML of rdm.web.markup.canvas: paints on a canvas that lies over a picture and has its pixels. After each
// stroke, the paint is sent as the event `input`.
const begin = () => {
  const canvas = element.querySelector('canvas');
  if (!canvas) return;
  const paint = canvas.getContext('2d');
  let from = null;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  };
  const stroke = (to) => {
    paint.globalCompositeOperation = element.querySelector('[name="rub"]').checked ? 'destination-out' : 'source-over';
    Object.assign(paint, { lineWidth: element.querySelector('[name="width"]').value, lineCap: 'round', strokeStyle: '#6366f1' });
    paint.beginPath();
    paint.moveTo(...from);
    paint.lineTo(...to);
    paint.stroke();
    from = to;
  };
  const send = () => trigger('input', { paint: canvas.toDataURL('image/png') });
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    from = place(event);
    stroke(from);
  };
  canvas.onpointermove = (event) => from && stroke(place(event));
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (from) send();
    from = null;
  };
  element.querySelector('[name="clear"]').onclick = () => {
    paint.clearRect(0, 0, canvas.width, canvas.height);
    send();
  };
};
begin();
watch('value', begin);
