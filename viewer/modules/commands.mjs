// Commands that the toolbar's buttons and the keys run.

import { openCase } from './case.mjs';
import { notify, run, services, tools, viewport, viewportIds } from './context.mjs';
import { element } from './dom.mjs';
import { copySlice, fillHoles, interpolate, smooth } from './edits.mjs';
import { hotkeys } from './hotkeys.mjs';

let isFilled = true;

/** Show only the outlines of all organs, or fill them. */
function organnetOutline() {
  isFilled = !isFilled;
  tools().segmentation.config.style.setStyle({ type: 'Labelmap' }, { renderFill: isFilled });
  viewportIds().forEach(id => viewport(id)?.render());
}

/** @param {{ windowWidth: number, windowCenter: number }} window_ */
function organnetWindow({ windowWidth, windowCenter }) {
  viewportIds().forEach(viewportId => run('setViewportWindowLevel', { viewportId, windowWidth, windowCenter }));
}

/** Choose another organ of the list. @param {{ step: number }} options */
function organnetNextOrgan({ step }) {
  const names = [...document.querySelectorAll('.organnet-organs li')];
  const active = names.findIndex(node => node.classList.contains('organnet-active'));
  const next = names[(active + step + names.length) % names.length];
  /** @type {HTMLElement | null} */ (next?.querySelector('.organnet-organ'))?.click();
}

/**
 * Run a change of the chosen organ, and say how many slices it changed.
 * @param {(labelmap: import('./labelmap.mjs').Labelmap) => number} change
 */
function edit(change) {
  const labelmap = openCase()?.labelmap;
  if (labelmap) {
    const count = change(labelmap);
    notify(count ? `Changed: ${count} ${count === 1 ? 'slice' : 'slices'}.` : 'There is nothing to change.', count ? 'success' : 'info');
  }
}

const organnetInterpolate = () => edit(interpolate);
const organnetFillHoles = () => edit(fillHoles);
const organnetSmooth = () => edit(smooth);

/** @param {{ towardsHead: number }} options */
function organnetCopySlice({ towardsHead }) {
  const { activeViewportId } = services().viewportGridService.getState();
  edit(labelmap => copySlice(labelmap, [...viewport(activeViewportId).getCamera().focalPoint], towardsHead));
}

/** Show or hide the list of keys. */
function organnetKeys() {
  const shown = document.querySelector('.organnet-keys');
  if (shown) {
    shown.remove();
    return;
  }
  const rows = hotkeys.map(({ keys, label }) => element('tr', {}, element('td', {}, element('kbd', {}, keys.join('+'))), element('td', {}, label)));
  const close = element('button', { type: 'button', title: 'Close' }, 'Close');
  const dialog = element('div', { class: 'organnet-keys', role: 'dialog', 'aria-label': 'Keys' }, element('h3', {}, 'Keys'), element('table', {}, ...rows), close);
  close.addEventListener('click', () => dialog.remove());
  document.body.append(dialog);
}

export const commandsModule = {
  defaultContext: 'CORNERSTONE',
  definitions: {
    organnetOutline,
    organnetWindow,
    organnetNextOrgan,
    organnetInterpolate,
    organnetFillHoles,
    organnetSmooth,
    organnetCopySlice,
    organnetKeys,
  },
};

