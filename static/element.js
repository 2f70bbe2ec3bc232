// Making parts of a page.

/** A new element; `content` is text and elements. Text stays text: nothing is read as HTML. */
export function element(name, properties = {}, ...content) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...content);
  return made;
}

/** Works while `button` cannot be pressed; the focus that it loses by that comes back to it. */
export async function busy(button, work) {
  button.disabled = true;
  try {
    await work();
  } finally {
    button.disabled = false;
    if (document.activeElement === document.body) button.focus();
  }
}
