// Moves the divider of a frame with its range input: by mouse, by finger and by keys.
function slider(frame) {
  const range = frame.querySelector("input");
  let from = 0, sliding = false;
  const set = (at) => {
    frame.classList.remove("reveal");
    frame.style.setProperty("--at", at + "%");
  };
  const slide = (event) => {
    const box = frame.getBoundingClientRect();
    range.value = Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width));
    set(range.value);
  };
  range.addEventListener("input", () => set(range.value));
  frame.addEventListener("dragstart", (event) => event.preventDefault());
  frame.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary || range.hidden) return;
    frame.setPointerCapture(event.pointerId);
    from = event.clientX;
    sliding = event.pointerType !== "touch"; // a finger may be about to scroll the page
    if (sliding) slide(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!frame.hasPointerCapture(event.pointerId)) return;
    sliding ||= Math.abs(event.clientX - from) > 6;
    if (sliding) slide(event);
  });
  frame.addEventListener("pointerup", (event) => {
    if (!frame.hasPointerCapture(event.pointerId)) return;
    slide(event);
    range.focus({ preventScroll: true }); // arrow keys go on from here
  });
}
