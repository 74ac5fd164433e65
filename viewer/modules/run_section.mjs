// The part of the panel that runs a model.

import { openCase } from './case.mjs';
import { notify } from './context.mjs';
import { button, element, line, section, setText } from './dom.mjs';
import { Run, duration, translate } from './run.mjs';
import { ServerError } from './server.mjs';

/** @typedef {import('./session.mjs').Session} Session */

const OTHER_CASE = 'The received contours are of another scan than the one that is open; the open contours are unchanged.';

/** @param {Session} session */
export function runSection(session) {
  /** @type {Run | undefined} */
  let run;
  const served = line('served');
  const progress = line('progress');
  const bar = element('progress', { class: 'organnet-run-bar', hidden: true, max: 1 });
  const model = element('select', { class: 'organnet-model', title: 'Model' });
  const deep = element('input', { type: 'checkbox', id: 'organnet-deep' });
  const deepLabel = element('label', { htmlFor: 'organnet-deep', title: 'Several passes, which also measure how sure the model is' }, deep, ' deep');
  const start = element('button', { class: 'organnet-run', type: 'button', title: 'Have the model contour this case' }, 'Run');
  const cancel = button('cancel', 'Cancel', 'Stop the computation', () => run?.cancel());
  cancel.hidden = true;
  start.disabled = true;

  /** @param {string} text @param {number | undefined} share */
  function show(text, share) {
    setText(progress, text);
    if (share === undefined) {
      bar.removeAttribute('value');
    } else {
      bar.value = share;
    }
  }

  /** @param {boolean} isRunning */
  function setRunning(isRunning) {
    start.disabled = isRunning;
    cancel.hidden = bar.hidden = !isRunning;
    if (isRunning) {
      show('Starting', undefined);
    }
  }

  start.addEventListener('click', async () => {
    const target = openCase();
    if (!target?.confirmDiscard()) {
      session.say('The model was not run.', true);
      return;
    }
    const began = Date.now();
    const own = (run = new Run(target, model.value, deep.checked ? { deep: true } : {}, show));
    setRunning(true);
    try {
      const { volume, params } = await own.contours();
      const seconds = duration((Date.now() - began) / 1000);
      setText(progress, finish(session, own, volume, params) ? `The model's contours are shown, after ${seconds}` : '');
    } catch (error) {
      const text = failure(own, /** @type {Error} */ (error));
      setText(progress, text);
      if (!target.isOpen()) {
        notify(text, 'warning');
      }
    } finally {
      run = undefined;
      setRunning(false);
    }
  });

  session.on('connected', () => {
    const names = contouring(session.info.models);
    model.replaceChildren(...names.map(name => element('option', { value: name }, name)));
    model.hidden = names.length < 2;
    deepLabel.hidden = !('deep' in (session.info.models[model.value]?.config ?? {}));
    start.disabled = run !== undefined || !openCase() || names.length === 0;
    const version = session.info.models[model.value]?.version;
    setText(served, version ? `Model: ${version}` : 'Model: none is active');
  });
  session.on('case', () => (start.disabled = contouring(session.info.models).length === 0));
  return section('Model', served, element('div', { class: 'organnet-row' }, model, start, cancel, deepLabel), progress, bar);
}

/** @param {Record<string, { type: string }>} models @returns {string[]} Those that need no clicks or scribbles. */
const contouring = models => Object.keys(models).filter(name => models[name].type === 'segmentation');

/**
 * Show the model's contours, unless another case is open by now, or the reader keeps changes made meanwhile.
 * @param {Session} session
 * @param {Run} run
 * @param {import('./nrrd.mjs').Volume} volume
 * @param {any} params
 * @returns {boolean} Whether they are shown.
 */
function finish(session, run, volume, params) {
  const { target } = run;
  if (!target.isOpen()) {
    notify(OTHER_CASE, 'warning');
    return false;
  }
  const isUnchanged = target.labelmap.fingerprint() === run.startedWith;
  if (!isUnchanged && !target.confirmDiscard()) {
    session.say('Your contours were kept; those of the model were discarded.', true);
    return false;
  }
  const unknown = translate(volume.values, params.label_names, session.organs);
  target.labelmap.fill(volume);
  target.markSaved();
  target.prediction = { fingerprint: target.saved, version: params.model_version };
  target.summaries = params.organs ?? {};
  session.emit('contours');
  const empty = target.labelmap.isDrawn() ? '' : ' The model found no organ.';
  const others = unknown.length ? ` Not shown, because this server does not have them: ${unknown.join(', ')}.` : '';
  session.say(`The model ${params.model_version} contoured this case.${empty}${others}`, true);
  return true;
}

/** @param {Run} run @param {Error} error */
function failure(run, error) {
  if (run.isCancelled) {
    return 'Cancelled: the contours are unchanged';
  }
  if (error instanceof ServerError && error.status === 503 && error.retryAfterS) {
    return `The queue is full; try again in ${duration(error.retryAfterS)}. ${error.message}`;
  }
  return `Failed: ${error.message}`;
}
