// The box that MONAI Label's panel lacks: submit, what serves, and how the training stands.
'use strict';

(() => {
  const LOOK_MS = 4000;
  let box = null;
  let shown = '';

  function element(tag, className, text) {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text ?? '';
    return made;
  }

  function build() {
    const made = element('section', 'organnet-box');
    made.setAttribute('aria-label', 'OrganNet Label');
    const button = element('button', 'organnet-submit', 'Submit label');
    button.title = 'Keep the contours as this case\'s final label';
    button.addEventListener('click', () => submit(button));
    const lines = ['served', 'labels', 'pacs', 'training'].map(line);
    made.append(button, line('outcome'), line('case'), loader(), ...lines, bar(), line('decision'));
    return made;
  }

  function loader() {
    const made = element('button', 'organnet-load', 'Load submitted label');
    made.title = 'Lay the newest submitted label over the CT, to look at it or to correct it';
    made.hidden = true;
    made.addEventListener('click', () => doing(made, window.organnet.contours.load));
    return made;
  }

  function line(name) {
    const made = element('p', `organnet-${name}`);
    made.setAttribute('role', 'status');
    return made;
  }

  function bar() {
    const made = element('progress', 'organnet-progress');
    made.hidden = true;
    return made;
  }

  function say(name, text) {
    const found = box.querySelector(`.organnet-${name}`);
    if (found.textContent !== text) {
      found.textContent = text;
    }
  }

  // While a button's work is done, it is not to be pressed again.
  async function doing(button, work) {
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      console.error(error);
      tell(error.message, false);
    } finally {
      button.disabled = false;
      look();
    }
  }

  function submit(button) {
    return doing(button, async () => {
      try {
        await window.organnet.submit();
      } catch (error) {
        throw new Error(`Not submitted: ${error.message}`);
      }
    });
  }

  function tell(text, isGood) {
    if (box) {
      box.querySelector('.organnet-outcome').classList.toggle('organnet-refused', !isGood);
      say('outcome', text);
    }
  }

  window.addEventListener('organnet:submitting', () => tell('Submitting ...', true));

  window.addEventListener('organnet:told', ({ detail }) => tell(detail.message, detail.isGood));

  // Whoever opens a case that has a label should know before he begins anew.
  async function showCase() {
    const label = await window.organnet.contours.label();
    box.querySelector('.organnet-load').hidden = !label;
    say('case', label ? caseLine(label) : '');
  }

  function caseLine({ author, client, number, organs, submitted_at: at }) {
    const when = new Date(at).toLocaleString();
    const who = author || client || 'somebody';
    return `This case has a label: version ${number} by ${who}, ${when}, with ${organs.join(', ') || 'no organ'}`;
  }

  function trainingLine(training, next) {
    if (!training) {
      return `Training: none. ${next.reason}`;
    }
    const dsc = training.mean_dsc === null ? '' : `, mean DSC ${training.mean_dsc.toFixed(3)}`;
    const left = training.eta_s ? `, ${Math.ceil(training.eta_s / 60)} min left` : '';
    const epoch = `epoch ${training.epoch} of ${training.total_epochs}`;
    return `Training: ${training.state}, ${epoch}, ${training.labels} labels${dsc}${left}`;
  }

  function pacsLine(pacs) {
    const count = pacs?.outbox.length ?? 0;
    const waiting = count ? `${count} ${count === 1 ? 'label' : 'labels'} on the way to the PACS` : '';
    return [pacs?.trouble, waiting].filter(Boolean).join('; ');
  }

  function show(status) {
    const { served, labels, training, next_training: next, last_decision: last, pacs } = status;
    say('pacs', pacsLine(pacs));
    say('served', served ? `Model: ${served.version}` : 'Model: none is served');
    const waiting = `${labels.waiting} new since the last training`;
    say('labels', `Labels: ${labels.total} submitted, ${waiting}`);
    say('training', trainingLine(training, next));
    const progress = box.querySelector('.organnet-progress');
    progress.hidden = !training;
    if (training) {
      progress.max = training.total_epochs;
      progress.value = training.epoch;
    }
    say('decision', last ? `Last decision: ${last.version} ${last.decision}: ${last.reason}` : '');
  }

  // MONAI Label's own table of the panel asks once; it follows when something has changed.
  async function follow(status) {
    const { served, labels, training } = status;
    const seen = JSON.stringify([served?.version, labels.total, training?.id, training?.epoch]);
    const panel = window.organnet.panel;
    panel.actions.activelearning.current?.setState({ training: Boolean(training) });
    if (seen === shown || !panel.state.isDataReady) {
      return;
    }
    shown = seen;
    const answer = await fetch('/info/');
    if (answer.ok) {
      const data = await answer.json();
      panel.setState(({ info }) => ({ info: { ...info, data: { ...info.data, ...data } } }));
    }
  }

  async function look() {
    if (!box?.isConnected || document.hidden) {
      return;
    }
    try {
      const answer = await fetch('/organnet/status');
      if (answer.ok) {
        const status = await answer.json();
        show(status);
        await showCase();
        await follow(status);
      }
    } catch (error) {
      say('training', `The server does not answer (${error.message})`);
    }
  }

  // React's own empty element: called with it when the panel appears, and with null when it goes.
  window.organnet.mount = host => {
    if (host && !host.firstChild) {
      box = build();
      shown = '';
      host.append(box);
      look();
    }
  };
  window.setInterval(look, LOOK_MS);
})();
