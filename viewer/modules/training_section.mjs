// The part of the panel about labels, training and PACS.

import { button, element, line, section, setText } from './dom.mjs';
import * as server from './server.mjs';

/** @typedef {import('./session.mjs').Session} Session */

/** @param {Session} session */
export function trainingSection(session) {
  const lines = { labels: line('labels'), training: line('training'), decision: line('decision'), pacs: line('pacs') };
  const bar = element('progress', { class: 'organnet-training-bar', hidden: true });
  const train = button('train', 'Update Model', 'Train the model on the submitted labels', () => change(server.startTraining));
  const stop = button('stop', 'Stop Training', 'Stop the training; it can be continued later', () => change(server.stopTraining));
  stop.hidden = true;

  /** @param {() => Promise<any>} action */
  async function change(action) {
    try {
      await action();
    } catch (error) {
      session.say(`Training: ${/** @type {Error} */ (error).message}`, false);
    }
    await session.update();
  }

  session.on('status', trouble => {
    if (trouble) {
      setText(lines.training, `The server does not answer (${trouble})`);
      return;
    }
    const { labels, training, next_training: next, last_decision: last, pacs } = session.status;
    setText(lines.labels, `Labels: ${labels.total} submitted, ${labels.waiting} new since the last training`);
    setText(lines.training, trainingLine(training, next));
    setText(lines.decision, last ? `Last decision: ${last.version} ${last.decision}: ${last.reason}` : '');
    setText(lines.pacs, pacsLine(pacs));
    train.hidden = Boolean(training);
    stop.hidden = bar.hidden = !training;
    if (training) {
      bar.max = training.total_epochs;
      bar.value = training.epoch;
    }
  });
  const row = element('div', { class: 'organnet-row' }, train, stop);
  return section('Training', lines.labels, lines.training, bar, row, lines.decision, lines.pacs);
}

/** @param {any} training @param {any} next */
function trainingLine(training, next) {
  if (!training) {
    return `Training: none; ${next.reason}`;
  }
  const dsc = training.mean_dsc === null ? '' : `, mean DSC ${training.mean_dsc.toFixed(3)}`;
  const left = training.eta_s ? `, ${Math.ceil(training.eta_s / 60)} min left` : '';
  return `Training: ${training.state}, epoch ${training.epoch} of ${training.total_epochs}, ${training.labels} labels${dsc}${left}`;
}

/** @param {any} pacs */
function pacsLine(pacs) {
  const count = pacs?.outbox.length ?? 0;
  const waiting = count ? `${count} ${count === 1 ? 'label' : 'labels'} waiting to be sent to the PACS` : '';
  return [pacs?.trouble, waiting].filter(Boolean).join('; ');
}
