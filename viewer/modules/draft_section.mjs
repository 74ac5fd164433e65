// The part of the panel that keeps changes in this browser, and offers those of an earlier visit.

import { openCase } from './case.mjs';
import { services } from './context.mjs';
import { button, element, setText } from './dom.mjs';
import { draftOf, keepDraft, removeDraft } from './drafts.mjs';
import { readNrrd, writeNrrd } from './nrrd.mjs';

/** @typedef {import('./session.mjs').Session} Session */

const KEEP_AFTER_MS = 2000;

/** @param {Session} session */
export function draftSection(session) {
  let timer = 0;
  let isChecked = false;
  const text = element('p', {});
  const restore = button('restore', 'Restore', 'Show these contours; they are not submitted', restoreDraft);
  const discard = button('discard', 'Discard', 'Remove these contours from this browser', discardDraft);
  const offer = element('div', { class: 'organnet-draft', hidden: true }, text, element('div', { class: 'organnet-row' }, restore, discard));

  async function keep() {
    const open = openCase();
    // A draft of an earlier visit stays until it was restored or discarded.
    if (!open || !isChecked || !offer.hidden) {
      return;
    }
    try {
      if (open.isChanged()) {
        await keepDraft(open.series, await writeNrrd(open.labelmap.volume()));
      } else {
        await removeDraft(open.series);
      }
    } catch (error) {
      session.say(`This browser cannot keep unsubmitted contours: ${/** @type {Error} */ (error).message}`, false);
    }
  }

  function keepSoon() {
    window.clearTimeout(timer);
    timer = window.setTimeout(keep, KEEP_AFTER_MS);
  }

  async function restoreDraft() {
    const open = openCase();
    const draft = open && (await draftOf(open.series));
    if (open && draft && open.confirmDiscard()) {
      open.labelmap.fill(await readNrrd(await draft.file.arrayBuffer()));
      open.prediction = undefined;
      open.summaries = {};
      offer.hidden = true;
      session.emit('contours');
      session.say('The contours are restored; they are not submitted yet.', true);
    }
  }

  async function discardDraft() {
    await removeDraft(openCase()?.series ?? '');
    offer.hidden = true;
  }

  session.on('case', async () => {
    const { segmentationService } = services();
    session.until(segmentationService.subscribe(segmentationService.EVENTS.SEGMENTATION_DATA_MODIFIED, keepSoon));
    const open = openCase();
    const draft = open && !open.isChanged() && (await draftOf(open.series).catch(() => undefined));
    if (draft) {
      setText(text, `Contours that were not submitted are kept in this browser, of ${new Date(draft.at).toLocaleString()}`);
      offer.hidden = false;
    }
    isChecked = true;
  });
  session.on('submitted', () => {
    offer.hidden = true;
    keepSoon();
  });
  return offer;
}
