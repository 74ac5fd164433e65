// Box in MONAI Label's panel: buttons for submitting and loading a label, active model, and training status.
'use strict';

(() => {
  const UPDATE_MS = 4000;
  let box = null;
  let shownState = '';

  function element(tag, className, text) {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text ?? '';
    return node;
  }

  function build() {
    const section = element('section', 'organnet-box');
    section.setAttribute('aria-label', 'OrganNet Label');
    const button = element('button', 'organnet-submit', 'Submit label');
    button.title = 'Submit the contours as the final label of this case';
    button.addEventListener('click', () => submit(button));
    const lines = ['served', 'labels', 'pacs', 'training'].map(line);
    section.append(button, line('outcome'), line('case'), loadButton(), ...lines, bar(), line('decision'));
    return section;
  }

  function loadButton() {
    const button = element('button', 'organnet-load', 'Load submitted label');
    button.title = 'Show the submitted label, to review or correct it';
    button.hidden = true;
    button.addEventListener('click', () => runAction(button, window.organnet.contours.load));
    return button;
  }

  function line(name) {
    const paragraph = element('p', `organnet-${name}`);
    paragraph.setAttribute('role', 'status');
    return paragraph;
  }

  function bar() {
    const progress = element('progress', 'organnet-progress');
    progress.hidden = true;
    return progress;
  }

  function setText(name, text) {
    const line = box.querySelector(`.organnet-${name}`);
    if (line.textContent !== text) {
      line.textContent = text;
    }
  }

  // Disable a button while its action runs.
  async function runAction(button, action) {
    button.disabled = true;
    try {
      await action();
    } catch (error) {
      console.error(error);
      showOutcome(error.message, false);
    } finally {
      button.disabled = false;
      update();
    }
  }

  function submit(button) {
    return runAction(button, async () => {
      try {
        await window.organnet.submit();
      } catch (error) {
        throw new Error(`Not submitted: ${error.message}`);
      }
    });
  }

  function showOutcome(text, isGood) {
    if (box) {
      box.querySelector('.organnet-outcome').classList.toggle('organnet-refused', !isGood);
      setText('outcome', text);
    }
  }

  window.addEventListener('organnet:submitting', () => showOutcome('Submitting ...', true));

  window.addEventListener('organnet:message', ({ detail }) => showOutcome(detail.message, detail.isGood));

  // Say that a case has a label, so that it is not contoured again by mistake.
  async function showCase() {
    const label = await window.organnet.contours.label();
    box.querySelector('.organnet-load').hidden = !label;
    setText('case', label ? caseLine(label) : '');
  }

  function caseLine({ author, client, number, organs, changes, submitted_at: at }) {
    const when = new Date(at).toLocaleString();
    const who = author || client || 'an unknown user';
    const changed = changes.map(change => `. Changed: ${change}`).join('');
    return `This case has a label: version ${number} by ${who}, ${when}, with ${organs.join(', ') || 'no organ'}${changed}`;
  }

  function trainingLine(training, next) {
    if (!training) {
      return `Training: none; ${next.reason}`;
    }
    const dsc = training.mean_dsc === null ? '' : `, mean DSC ${training.mean_dsc.toFixed(3)}`;
    const left = training.eta_s ? `, ${Math.ceil(training.eta_s / 60)} min left` : '';
    const epoch = `epoch ${training.epoch} of ${training.total_epochs}`;
    return `Training: ${training.state}, ${epoch}, ${training.labels} labels${dsc}${left}`;
  }

  function pacsLine(pacs) {
    const count = pacs?.outbox.length ?? 0;
    const waiting = count ? `${count} ${count === 1 ? 'label' : 'labels'} waiting to be sent to the PACS` : '';
    return [pacs?.trouble, waiting].filter(Boolean).join('; ');
  }

  function show(status) {
    const { served, labels, training, next_training: next, last_decision: last, pacs } = status;
    setText('pacs', pacsLine(pacs));
    setText('served', served ? `Model: ${served.version}` : 'Model: none is active');
    const waiting = `${labels.waiting} new since the last training`;
    setText('labels', `Labels: ${labels.total} submitted, ${waiting}`);
    setText('training', trainingLine(training, next));
    const progress = box.querySelector('.organnet-progress');
    progress.hidden = !training;
    if (training) {
      progress.max = training.total_epochs;
      progress.value = training.epoch;
    }
    setText('decision', last ? `Last decision: ${last.version} ${last.decision}: ${last.reason}` : '');
  }

  // Update the panel's own table when something has changed; MONAI Label fills it only once.
  async function updatePanel(status) {
    const { served, labels, training } = status;
    const state = JSON.stringify([served?.version, labels.total, training?.id, training?.epoch]);
    const panel = window.organnet.panel;
    panel.actions.activelearning.current?.setState({ training: Boolean(training) });
    if (state === shownState || !panel.state.isDataReady) {
      return;
    }
    shownState = state;
    const answer = await fetch('/info/');
    if (answer.ok) {
      const data = await answer.json();
      panel.setState(({ info }) => ({ info: { ...info, data: { ...info.data, ...data } } }));
    }
  }

  async function update() {
    if (!box?.isConnected || document.hidden) {
      return;
    }
    try {
      const answer = await fetch('/organnet/status');
      if (answer.ok) {
        const status = await answer.json();
        show(status);
        await showCase();
        await updatePanel(status);
      }
    } catch (error) {
      setText('training', `The server does not answer (${error.message})`);
    }
  }

  // React calls this with the empty host element when the panel appears, and with null when it is removed.
  window.organnet.mount = host => {
    if (host && !host.firstChild) {
      box = build();
      shownState = '';
      host.append(box);
      update();
    }
  };
  window.setInterval(update, UPDATE_MS);
})();
