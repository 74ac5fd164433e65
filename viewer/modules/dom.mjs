// Helpers to build the panel's elements.

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [properties] Properties of the element; `class` and `data-` as attributes.
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'class' || name.includes('-')) {
      node.setAttribute(name, value);
    } else {
      Object.assign(node, { [name]: value });
    }
  }
  node.append(...children);
  return node;
}

/**
 * A line of text that is announced when it changes.
 * @param {string} name
 */
export const line = name => element('p', { class: `organnet-${name}`, role: 'status' });

/** @param {HTMLElement} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

/**
 * A button that is disabled while its action runs.
 * @param {string} name
 * @param {string} text
 * @param {string} title
 * @param {() => any} action
 */
export function button(name, text, title, action) {
  const node = element('button', { class: `organnet-${name}`, type: 'button', title }, text);
  node.addEventListener('click', async () => {
    node.disabled = true;
    try {
      await action();
    } finally {
      node.disabled = false;
    }
  });
  return node;
}

/** @param {string} title @param {(Node | string)[]} children */
export const section = (title, ...children) =>
  element('section', { 'aria-label': title }, element('h3', {}, title), ...children);
