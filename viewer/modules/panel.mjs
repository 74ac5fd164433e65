// The panel beside the images: a custom element, which OHIF shows without knowing what is in it.

import { element } from './dom.mjs';
import { draftSection } from './draft_section.mjs';
import { labelSection } from './label_section.mjs';
import { nextSection } from './next_section.mjs';
import { organList } from './organ_list.mjs';
import { runSection } from './run_section.mjs';
import { Session } from './session.mjs';
import { trainingSection } from './training_section.mjs';

export const PANEL = 'organnet-panel';

class Panel extends HTMLElement {
  /** @type {Session | undefined} */
  #session;

  connectedCallback() {
    const session = new Session();
    this.#session = session;
    const parts = [draftSection, runSection, organList, labelSection, nextSection, trainingSection];
    this.replaceChildren(element('div', { class: 'organnet-box' }, ...parts.map(part => part(session))));
    session.start().catch(error => {
      console.error(error);
      session.say(`The panel could not be opened: ${error.message}`, false);
    });
  }

  disconnectedCallback() {
    this.#session?.close();
  }
}

customElements.define(PANEL, Panel);
