// The part of the panel that asks for the next case, and gives one back.

import { openCase } from './case.mjs';
import { button, element, line, section, setText } from './dom.mjs';
import * as server from './server.mjs';

/** @typedef {import('./session.mjs').Session} Session */

/** @param {Session} session */
export function nextSection(session) {
  const strategy = element('select', { class: 'organnet-strategy', title: 'How the next case is chosen' });
  const reason = line('reason');
  const leaseLine = line('lease');
  /** @type {any} */
  let sample;
  const open = button('open', 'Open', 'Open this case', () => openStudy(sample));
  const skip = button('skip', 'Skip', 'Leave this case to others, and do not get it again for a while', () =>
    leave(sample.id, server.skip, 'The case was skipped.')
  );
  const giveBack = button('give-back', 'Give back', 'Others may get this case', () =>
    leave(openCase()?.series, server.giveBack, 'The case was given back.')
  );
  const unsuitable = button('unsuitable', 'Unsuitable', 'This case cannot be contoured: it is offered to nobody any more', () => {
    const why = window.prompt('Why is this case unsuitable?');
    return why && leave(openCase()?.series, series => server.markUnsuitable(series, why), 'The case is marked as unsuitable.');
  });
  const next = button('next', 'Next Sample', 'Ask for the case to contour next', ask);
  const offered = element('div', { class: 'organnet-row', hidden: true }, open, skip);
  giveBack.hidden = true;

  async function ask() {
    try {
      const answer = await server.nextSample(strategy.value);
      sample = answer.id ? answer : undefined;
      const who = [answer.PatientID, answer.SeriesDescription].filter(Boolean).join(', ');
      setText(reason, sample ? `${who || sample.id}: ${answer.why}` : answer.why);
    } catch (error) {
      sample = undefined;
      setText(reason, `No case: ${/** @type {Error} */ (error).message}`);
    }
    offered.hidden = !sample;
  }

  /**
   * @param {string | undefined} series
   * @param {(series: string) => Promise<any>} request
   * @param {string} done
   */
  async function leave(series, request, done) {
    try {
      await request(series ?? '');
      setText(reason, done);
      sample = undefined;
      offered.hidden = true;
    } catch (error) {
      setText(reason, `Not done: ${/** @type {Error} */ (error).message}`);
    }
    await session.update();
  }

  session.on('connected', () => {
    const names = Object.keys(session.info.strategies);
    const chosen = strategy.value;
    const options = names.map(name =>
      element('option', { value: name, title: session.info.strategies[name].description }, name)
    );
    strategy.replaceChildren(...options);
    strategy.value = names.includes(chosen) ? chosen : names[0];
  });
  session.on('status', () => {
    const { lease } = session;
    giveBack.hidden = !lease;
    setText(leaseLine, lease ? `This case is yours until ${new Date(lease.until).toLocaleTimeString()}` : '');
  });
  const row = element('div', { class: 'organnet-row' }, strategy, next);
  return section('Next case', row, reason, offered, element('div', { class: 'organnet-row' }, leaseLine, giveBack, unsuitable));
}

/** @param {any} sample Open its study; the page asks before changes are lost. */
function openStudy(sample) {
  window.location.assign(`/ohif/organnet?StudyInstanceUIDs=${encodeURIComponent(sample.StudyInstanceUID)}`);
}
