// The part of the panel that submits contours, and loads the submitted label.

import { openCase } from './case.mjs';
import { button, element, line, section, setText } from './dom.mjs';
import { readNrrd, writeNrrd } from './nrrd.mjs';
import * as server from './server.mjs';

/** @typedef {import('./session.mjs').Session} Session */

const UNTOUCHED = "These are the model's contours without any change. Submit them as they are?";

/** @param {Session} session */
export function labelSection(session) {
  const outcome = line('outcome');
  const about = line('case');
  const submitButton = button('submit', 'Submit label', 'Submit the contours as the final label of this case', () => submit(session));
  const loadButton = button('load', 'Load submitted label', 'Show the submitted label, to review or correct it', () => load(session));
  const send = button('send', 'Send RTSTRUCT to the PACS', 'Store the submitted label in the PACS as RTSTRUCT, now', () => sendToPacs(session));
  const downloads = /** @type {const} */ (['rtstruct', 'seg']).map(format => download(session, format));
  const exports = element('div', { class: 'organnet-row organnet-exports', hidden: true }, send, ...downloads);
  loadButton.hidden = true;
  session.on('message', ({ text, isGood }) => {
    outcome.classList.toggle('organnet-refused', !isGood);
    setText(outcome, text);
  });
  session.on('status', () => {
    loadButton.hidden = exports.hidden = !session.label;
    setText(about, session.label ? caseLine(session.label) : 'This case has no label yet');
  });
  return section('Label', element('div', { class: 'organnet-row' }, submitButton, loadButton), outcome, about, exports);
}

/** @param {Session} session */
async function sendToPacs(session) {
  try {
    await server.sendToPacs(openCase()?.series ?? '', 'rtstruct');
    session.say('The RTSTRUCT is in the PACS.', true);
  } catch (error) {
    session.say(`Not sent: ${/** @type {Error} */ (error).message}`, false);
  }
}

/**
 * A button that downloads the submitted label, and says why if that fails.
 * @param {Session} session
 * @param {'rtstruct' | 'seg'} format
 */
function download(session, format) {
  const name = format === 'seg' ? 'DICOM SEG' : 'RTSTRUCT';
  return button(`download-${format}`, `Download ${name}`, `Save the submitted label as ${name}`, async () => {
    try {
      const answer = await server.ask(server.exportAddress(openCase()?.series ?? '', format));
      const [, fileName] = answer.headers.get('Content-Disposition')?.match(/filename="([^"]+)"/) ?? ['', `${format}.dcm`];
      const address = URL.createObjectURL(await answer.blob());
      element('a', { href: address, download: fileName }).click();
      URL.revokeObjectURL(address);
    } catch (error) {
      session.say(`Not downloaded: ${/** @type {Error} */ (error).message}`, false);
    }
  });
}

/** @param {any} label */
function caseLine({ author, client, number, organs, changes, submitted_at: at }) {
  const when = new Date(at).toLocaleString();
  const who = author || client || 'an unknown user';
  const changed = changes.map((/** @type {string} */ change) => `. Changed: ${change}`).join('');
  return `This case has a label: version ${number} by ${who}, ${when}, with ${organs.join(', ') || 'no organ'}${changed}`;
}

/** @param {Session} session */
async function submit(session) {
  const target = openCase();
  try {
    if (!target?.labelmap.isDrawn()) {
      throw new Error('there are no contours yet; run the model or draw contours first');
    }
    const isUntouched = target.isUntouchedPrediction();
    if (isUntouched && !window.confirm(UNTOUCHED)) {
      session.say('Not submitted.', true);
      return;
    }
    session.say('Submitting ...', true);
    const sent = target.labelmap.fingerprint();
    const params = {
      label_info: session.organs.map(({ name, value }) => ({ name, idx: value })),
      model_version: target.prediction?.version,
      ...(isUntouched && { accepted_unchanged: true }),
    };
    const stored = await server.submit(target.series, await writeNrrd(target.labelmap.volume()), params);
    target.saved = sent;
    session.emit('submitted');
    session.say(outcomeOf(stored), true);
  } catch (error) {
    session.say(`Not submitted: ${/** @type {Error} */ (error).message}`, false);
  }
  await session.update();
}

/** @param {any} stored Answer of the server. */
function outcomeOf({ number, organs, changes, doubts, left_out: leftOut }) {
  const missing = leftOut.length ? [`Missing, but present in the previous version: ${leftOut.join(', ')}`] : [];
  const notes = [
    ...missing,
    ...changes.map((/** @type {string} */ change) => `Changed: ${change}`),
    ...doubts.map((/** @type {string} */ doubt) => `Doubt: ${doubt}`),
  ];
  const kept = `Label kept as version ${number}, with ${organs.join(', ') || 'no organ'}; the case counts as labelled`;
  return [kept, ...notes].join('. ');
}

/** @param {Session} session */
async function load(session) {
  const target = openCase();
  if (!target?.confirmDiscard()) {
    return;
  }
  try {
    const started = target.labelmap.fingerprint();
    const volume = await readNrrd(await server.submittedLabel(target.series));
    if (!target.isOpen() || (target.labelmap.fingerprint() !== started && !target.confirmDiscard())) {
      return;
    }
    target.labelmap.fill(volume);
    target.markSaved();
    target.prediction = undefined;
    target.summaries = {};
    session.emit('contours');
    session.say('The submitted label is loaded.', true);
  } catch (error) {
    session.say(`Not loaded: ${/** @type {Error} */ (error).message}`, false);
  }
}
