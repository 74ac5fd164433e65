// What all parts of the panel share: the server's models and organs, the open case, messages, and the server's status.

import { openCase, openShownSeries } from './case.mjs';
import { services } from './context.mjs';
import * as server from './server.mjs';

/** @typedef {import('./labelmap.mjs').Organ} Organ */
/** @typedef {'connected' | 'case' | 'contours' | 'submitted' | 'status' | 'message'} Name */

const POLL_MS = 4000;
const WAIT_MS = 200;
const SHOW_AFTER_MS = 300;

export class Session {
  #events = new EventTarget();
  #timer = 0;
  #isClosed = false;
  /** @type {{ unsubscribe: () => void }[]} */
  #subscriptions = [];
  /** @type {any} Answer of `/info/`. */
  info = undefined;
  /** @type {Organ[]} In planning order. */
  organs = [];
  /** @type {any} Answer of `/organnet/status`. */
  status = undefined;
  /** @type {any} Current version of the open case's label; null if there is none. */
  label = null;
  /** @type {any} This browser's lease of the open case. */
  lease = undefined;

  /**
   * @param {Name} name
   * @param {(detail: any) => void} listener
   */
  on(name, listener) {
    this.#events.addEventListener(name, event => listener(/** @type {CustomEvent} */ (event).detail));
  }

  /** @param {Name} name @param {any} [detail] */
  emit(name, detail) {
    this.#events.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /**
   * Show a message in the panel.
   * @param {string} text
   * @param {boolean} isGood
   */
  say(text, isGood) {
    this.emit('message', { text, isGood });
  }

  /** Connect to the server, and open the case as soon as its images are shown. */
  async start() {
    await this.#connect();
    while (!this.#isClosed && !(await openShownSeries(this.organs))) {
      await new Promise(resolve => window.setTimeout(resolve, WAIT_MS));
    }
    if (!this.#isClosed) {
      this.#followLayout();
      this.emit('case');
      this.#timer = window.setInterval(() => this.update(), POLL_MS);
      await this.update();
    }
  }

  /** Show the contours in viewports that appear later, for example in another layout. */
  #followLayout() {
    const { cornerstoneViewportService: viewports, segmentationService: segmentations } = services();
    let timer = 0;
    const showSoon = () => {
      window.clearTimeout(timer);
      timer = window.setTimeout(() => openCase()?.labelmap.show(), SHOW_AFTER_MS);
    };
    this.until(viewports.subscribe(viewports.EVENTS.VIEWPORT_DATA_CHANGED, showSoon));
    this.until(segmentations.subscribe(segmentations.EVENTS.SEGMENTATION_REPRESENTATION_MODIFIED, showSoon));
  }

  async #connect() {
    for (;;) {
      try {
        const [info, table] = await Promise.all([server.info(), server.organTable()]);
        this.info = info;
        this.organs = organsOf(info.labels, table);
        this.emit('connected');
        return;
      } catch (error) {
        if (this.#isClosed) {
          return;
        }
        this.say(`Not connected: ${/** @type {Error} */ (error).message}`, false);
        await new Promise(resolve => window.setTimeout(resolve, POLL_MS));
      }
    }
  }

  /** @param {{ unsubscribe: () => void }} subscription Ended with the session. */
  until(subscription) {
    this.#subscriptions.push(subscription);
  }

  /** Stop asking the server. */
  close() {
    this.#isClosed = true;
    window.clearInterval(this.#timer);
    this.#subscriptions.forEach(subscription => subscription.unsubscribe());
  }

  /** Ask the server for what may have changed: training, labels, models, the case's label and lease. */
  async update() {
    const open = openCase();
    if (document.hidden || !open) {
      return;
    }
    try {
      const before = this.status?.served?.version;
      const asked = [server.status(), server.currentLabel(open.series), server.ownLease(open.series)];
      [this.status, this.label, this.lease] = await Promise.all(asked);
      if (this.status.served?.version !== before) {
        this.info = await server.info();
        this.emit('connected');
      }
      this.emit('status');
    } catch (error) {
      this.emit('status', /** @type {Error} */ (error).message);
    }
  }
}

/**
 * @param {Record<string, number>} labels Name -> value of the organs that this server contours.
 * @param {{name: string, colour: number[]}[]} table All organs in planning order.
 * @returns {Organ[]}
 */
export function organsOf(labels, table) {
  return table.filter(({ name }) => name in labels).map(organ => ({ ...organ, value: labels[organ.name] }));
}
