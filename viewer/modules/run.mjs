// One run of a model: sent, followed by stage, cancelled, and its contours shown only where they belong.

import * as server from './server.mjs';
import { readNrrd } from './nrrd.mjs';

const POLL_MS = 1000;
const STAGES = { read: 'reading the CT', prepare: 'preparing', network: 'contouring', restore: 'finishing', write: 'finishing' };

export class Run {
  #abort = new AbortController();
  #hasEnded = false;
  job = window.crypto.randomUUID?.() ?? String(Math.random()).slice(2);
  isCancelled = false;

  /**
   * @param {import('./case.mjs').Case} target
   * @param {string} model
   * @param {object} options
   * @param {(text: string, share: number | undefined) => void} onProgress
   */
  constructor(target, model, options, onProgress) {
    this.target = target;
    this.model = model;
    this.options = options;
    this.onProgress = onProgress;
    this.startedWith = target.labelmap.fingerprint();
  }

  /**
   * Have the model contour the case.
   * @returns {Promise<{volume: import('./nrrd.mjs').Volume, params: any}>}
   */
  async contours() {
    const timer = window.setInterval(() => this.#follow(), POLL_MS);
    try {
      const options = { ...this.options, job_id: this.job };
      const { params, file } = await server.infer(this.model, this.target.series, options, this.#abort.signal);
      return { volume: await readNrrd(file), params };
    } finally {
      window.clearInterval(timer);
      this.#hasEnded = true;
    }
  }

  async #follow() {
    try {
      const state = described(await server.queue(this.job));
      if (!this.#hasEnded) {
        this.onProgress(...state);
      }
    } catch {
      // The request itself reports a server that does not answer.
    }
  }

  /** Stop the computation on the server. */
  async cancel() {
    this.isCancelled = true;
    try {
      await server.cancel(this.job);
    } catch {
      // It has ended, or the server does not answer.
    }
    this.#abort.abort();
  }
}

/**
 * @param {any} queue Answer of `/organnet/inference`.
 * @returns {[string, number | undefined]} Text, and the share of the steps that are done.
 */
export function described({ position, progress }) {
  if (position > 0) {
    return [`Waiting: ${position} before you`, undefined];
  }
  if (!progress) {
    return ['Starting', undefined];
  }
  const { stage, done, total, seconds_left: left } = progress;
  const name = STAGES[/** @type {keyof typeof STAGES} */ (stage)] ?? stage;
  const share = stage === 'network' ? done / total : undefined;
  const percent = share === undefined ? '' : ` ${Math.round(100 * share)} %`;
  return [`Running: ${name}${percent}${left === null ? '' : `, about ${duration(left)} left`}`, share];
}

/** @param {number} seconds */
export function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

/**
 * Give the voxels the values that this server's organs have: a model may have others.
 * @param {Uint8Array} values Changed in place.
 * @param {Record<string, number>} names Name -> value in the model's contours.
 * @param {import('./labelmap.mjs').Organ[]} organs
 * @returns {string[]} Organs of the model that this server does not have; their voxels become background.
 */
export function translate(values, names, organs) {
  const table = new Uint8Array(256);
  const unknown = [];
  for (const [name, value] of Object.entries(names)) {
    const organ = organs.find(one => one.name === name);
    table[value] = organ?.value ?? 0;
    if (!organ) {
      unknown.push(name);
    }
  }
  for (let at = 0; at < values.length; at += 1) {
    values[at] = table[values[at]];
  }
  return unknown;
}
