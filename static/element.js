// Helpers that create and control elements of a page.

/** Creates an element. `content` is text and elements. Text is never parsed as HTML. */
export function element(name, properties = {}, ...content) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...content);
  return made;
}

/** Runs `work` while `button` is disabled. The button loses its focus and later gets it back. */
export async function busy(button, work) {
  button.disabled = true;
  try {
    await work();
  } finally {
    button.disabled = false;
    if (document.activeElement === document.body) button.focus();
  }
}

/** Creates an SVG element. */
export function svg(name, attributes = {}, ...content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...content);
  return made;
}
