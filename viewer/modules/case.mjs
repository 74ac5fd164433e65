// The open case: the series that is contoured, its contours, and whether they have changes that are not submitted.

import { services, viewport } from './context.mjs';
import { Labelmap } from './labelmap.mjs';
import * as server from './server.mjs';

/** @typedef {import('./labelmap.mjs').Organ} Organ */

export const DISCARD_QUESTION = 'Your changes are not submitted and will be lost. Continue?';

export class Case {
  /** @param {any} displaySet @param {Organ[]} organs @param {string} image The server's id of the series. */
  constructor(displaySet, organs, image) {
    /** The server's id of the series: its UID with a PACS, the name of its folder with a studies folder. */
    this.series = image;
    /** @type {string} */
    this.seriesUid = displaySet.SeriesInstanceUID;
    /** @type {string} */
    this.study = displaySet.StudyInstanceUID;
    this.labelmap = new Labelmap(displaySet, organs);
    /** Fingerprint of the contours as they were predicted, loaded or submitted last. */
    this.saved = 0;
    /** @type {{ fingerprint: number, version: string } | undefined} The model's contours that are shown. */
    this.prediction = undefined;
    /** What the server says of each organ's contour by the model; empty without a prediction. @type {Record<string, any>} */
    this.summaries = {};
  }

  /** Make an empty labelmap and show it. */
  async open() {
    await this.labelmap.create();
    this.saved = this.labelmap.fingerprint();
  }

  /** Only later changes count as unsaved. */
  markSaved() {
    this.saved = this.labelmap.fingerprint();
  }

  /** @returns {boolean} Whether there are contours with changes that would be lost. */
  isChanged() {
    return this.labelmap.slices.length > 0 && this.labelmap.fingerprint() !== this.saved && this.labelmap.isDrawn();
  }

  /** @returns {boolean} Whether the contours are a model's, without any change. */
  isUntouchedPrediction() {
    return this.prediction?.fingerprint === this.labelmap.fingerprint();
  }

  /** @returns {boolean} Whether to go on: asks before changes are lost. */
  confirmDiscard() {
    return !this.isChanged() || window.confirm(DISCARD_QUESTION);
  }

  /** @returns {boolean} Whether the page still shows this case. */
  isOpen() {
    return current === this;
  }
}

/** @type {Case | undefined} */
let current;

/** @returns {Case | undefined} The open case; undefined before its images are shown. */
export const openCase = () => current;

/** Forget the case when its mode is left. */
export function closeCase() {
  current = undefined;
}

/**
 * Open the series that the page shows, once its images are there.
 * @param {Organ[]} organs
 * @returns {Promise<Case | undefined>} undefined while there are none.
 */
export async function openShownSeries(organs) {
  const { viewportGridService, displaySetService } = services();
  const { viewports, activeViewportId } = viewportGridService.getState();
  const uid = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
  const displaySet = uid && displaySetService.getDisplaySetByUID(uid);
  if (displaySet?.Modality !== 'CT' || !viewport(activeViewportId)?.getImageData?.()) {
    return undefined;
  }
  if (current?.seriesUid === displaySet.SeriesInstanceUID) {
    // The panel was closed and opened again.
    await current?.labelmap.show();
    return current;
  }
  const opened = new Case(displaySet, organs, await server.imageOf(displaySet.SeriesInstanceUID));
  await opened.open();
  current = opened;
  return opened;
}
