// Questions before the page is left with changes that are not submitted.

import { DISCARD_QUESTION, openCase } from './case.mjs';

let isReturning = false;
/** Number of the page's entry in the browser's history when the mode was entered; OHIF numbers the entries (`idx`). */
let entry = 0;
/** @type {AbortController | undefined} */
let listening;

const mayLeave = () => openCase()?.confirmDiscard() ?? true;

/** Start asking; called when the mode is entered. */
export function guard() {
  listening?.abort();
  listening = new AbortController();
  const { signal } = listening;
  entry = window.history.state?.idx ?? 0;
  window.addEventListener('beforeunload', onUnload, { signal });
  // OHIF's link to the study list does not unload the page, so the browser does not ask.
  document.addEventListener('click', onClick, { capture: true, signal });
  /** @type {any} */ (window).organnetOnHistory = onHistory;
}

/** Stop asking; called when the mode is left. */
export function unguard() {
  listening?.abort();
  delete (/** @type {any} */ (window).organnetOnHistory);
}

/** @param {BeforeUnloadEvent} event */
function onUnload(event) {
  if (openCase()?.isChanged()) {
    event.preventDefault();
    event.returnValue = DISCARD_QUESTION;
  }
}

/** @param {MouseEvent} event */
function onClick(event) {
  const target = /** @type {Element} */ (event.target);
  if (target.closest?.('[data-cy="return-to-work-list"]') && !mayLeave()) {
    event.stopPropagation();
    event.preventDefault();
  }
}

/**
 * The browser's back and forward buttons: the address has changed already, so the step is undone before OHIF sees it.
 * `app-config.js` registers the listener, because OHIF's own would come first.
 * @param {PopStateEvent} event
 */
function onHistory(event) {
  if (isReturning) {
    isReturning = false;
    event.stopImmediatePropagation();
    return;
  }
  const steps = entry - (event.state?.idx ?? 0);
  if (steps && !mayLeave()) {
    event.stopImmediatePropagation();
    isReturning = true;
    window.history.go(steps);
  }
}
