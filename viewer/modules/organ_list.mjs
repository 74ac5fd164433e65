// The list of organs: chosen, shown, locked, with volume in mL.

import { openCase } from './case.mjs';
import { doubtButton, firstToCheck } from './doubts.mjs';
import { element, line, section, setText } from './dom.mjs';
import { services } from './context.mjs';

/** @typedef {import('./session.mjs').Session} Session */
/** @typedef {import('./labelmap.mjs').Organ} Organ */

const COUNT_AFTER_MS = 400;
const OPACITY = 50;

/** @param {Session} session */
export function organList(session) {
  const list = element('ul', { class: 'organnet-organs' });
  const others = element('input', { type: 'checkbox', id: 'organnet-protect', checked: true });
  const opacity = element('input', { type: 'range', min: '0', max: '100', title: 'Opacity of the chosen organ' });
  const first = line('first');
  /** @type {Map<number, ReturnType<typeof row>>} */
  const rows = new Map();
  let timer = 0;

  const labelmap = () => /** @type {import('./case.mjs').Case} */ (openCase()).labelmap;

  /** @param {number} value */
  function choose(value) {
    labelmap().activate(value);
    rows.forEach(({ node }, one) => node.classList.toggle('organnet-active', one === value));
    opacity.value = String(labelmap().opacities.get(value) ?? OPACITY);
  }

  function count() {
    const volumes = openCase()?.labelmap.volumesMl();
    rows.forEach(({ volume }, value) => setText(volume, mL(volumes?.get(value))));
  }

  function showDoubts() {
    const summaries = openCase()?.summaries ?? {};
    rows.forEach(({ node, doubt, name }) => {
      doubt.show(summaries[node.dataset.organ ?? '']);
      // TG-263 marks an organ that the scan cuts.
      setText(name, `${node.dataset.organ}${summaries[node.dataset.organ ?? '']?.is_cut ? '~' : ''}`);
    });
    setText(first, firstToCheck(summaries));
  }

  function countSoon() {
    window.clearTimeout(timer);
    timer = window.setTimeout(count, COUNT_AFTER_MS);
  }

  others.addEventListener('change', () => (labelmap().protectsOthers = others.checked));
  opacity.addEventListener('input', () => labelmap().setOpacity(labelmap().activeValue(), Number(opacity.value)));
  session.on('case', () => {
    rows.clear();
    for (const organ of session.organs) {
      rows.set(organ.value, row(organ, labelmap(), choose));
    }
    list.replaceChildren(...[...rows.values()].map(({ node }) => node));
    others.checked = labelmap().protectsOthers;
    choose(labelmap().activeValue() || session.organs[0].value);
    count();
    showDoubts();
    const { segmentationService } = services();
    session.until(segmentationService.subscribe(segmentationService.EVENTS.SEGMENTATION_DATA_MODIFIED, countSoon));
  });
  session.on('contours', () => {
    count();
    showDoubts();
  });
  const protectTitle = 'The tools do not overwrite other organs';
  const protectLabel = element('label', { htmlFor: 'organnet-protect', title: protectTitle }, others, ' protect the other organs');
  return section('Organs', list, first, protectLabel, element('label', { class: 'organnet-opacity' }, 'Opacity ', opacity));
}

/** @param {number} [volume] */
const mL = volume => (volume === undefined ? '–' : `${volume.toFixed(volume < 10 ? 2 : 1)} mL`);

/**
 * One organ of the list.
 * @param {Organ} organ
 * @param {import('./labelmap.mjs').Labelmap} labelmap
 * @param {(value: number) => void} choose
 */
function row({ name, value, colour }, labelmap, choose) {
  const volume = element('span', { class: 'organnet-volume' }, mL());
  const title = `Draw ${name}, and go to its middle`;
  const organ = element('button', { type: 'button', class: 'organnet-organ', title }, name);
  organ.addEventListener('click', () => {
    choose(value);
    labelmap.goTo(value);
  });
  const swatch = element('span', { class: 'organnet-swatch' });
  swatch.style.background = `rgb(${colour.join(',')})`;
  const eye = toggle('organnet-eye', `Show ${name}`, !labelmap.hidden.has(value), isOn => labelmap.setVisible(value, isOn));
  const lock = toggle('organnet-lock', `Lock ${name}`, labelmap.locked.has(value), isOn =>
    labelmap.locked[isOn ? 'add' : 'delete'](value)
  );
  const doubt = doubtButton(name, at => {
    choose(value);
    labelmap.jump(at);
  });
  return { node: element('li', { 'data-organ': name }, swatch, organ, doubt.node, volume, eye, lock), name: organ, volume, doubt };
}

/** @param {string} name @param {string} title @param {boolean} isOn @param {(isOn: boolean) => void} action */
function toggle(name, title, isOn, action) {
  const node = element('button', { type: 'button', class: name, title, 'aria-label': title, 'aria-pressed': String(isOn) });
  node.addEventListener('click', () => {
    const isPressed = node.getAttribute('aria-pressed') !== 'true';
    node.setAttribute('aria-pressed', String(isPressed));
    action(isPressed);
  });
  return node;
}
