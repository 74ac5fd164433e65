// State of the contours on the page: unsaved changes, their scan, and the submitted label on the server.
'use strict';

window.organnet.contours = (() => {
  const LABELMAP = '1'; // name of the only segmentation of MONAI Label's panel
  const SUBMITTED = 'submitted'; // key of the submitted label in the panel's tables of label values, beside the models
  const DISCARD_QUESTION = 'Your changes are not submitted and will be lost. Continue?';
  const OTHER_SCAN =
    'The received contours are of another scan than the one that is open; the open contours are unchanged.';
  const requested = new Map(); // series -> fingerprint of the contours when new ones were requested
  let saved = 0; // fingerprint of the contours as they were predicted, loaded or submitted last
  let isReturning = false; // whether this script has just undone a navigation

  function voxels() {
    const { segmentationService } = window.organnet.services();
    const volume = segmentationService.getLabelmapVolume(LABELMAP);
    return volume?.voxelManager.getCompleteScalarDataArray() ?? [];
  }

  function isDrawn() {
    return voxels().some(value => value !== 0);
  }

  // FNV-1a, 32 bits.
  function fingerprint() {
    let hash = 0x811c9dc5;
    for (const value of voxels()) {
      hash = Math.imul(hash ^ value, 0x01000193);
    }
    return hash;
  }

  // Mark the contours as saved: only later changes count as unsaved.
  function markSaved(at = fingerprint()) {
    saved = at;
  }

  // Return whether the open patient has contours that changed since they were predicted, loaded or submitted.
  function isChanged(search = window.location.search) {
    const isOpen = window.organnet.panel && window.organnet.seriesOfLabelmap(search);
    return Boolean(isOpen) && isDrawn() && fingerprint() !== saved;
  }

  // Ask before unsaved changes are lost; return whether to continue.
  function confirmDiscard(search = window.location.search) {
    return !isChanged(search) || window.confirm(DISCARD_QUESTION);
  }

  // Remember the contours when new ones of a series are requested: the answer may take minutes.
  function expect(series) {
    requested.set(series, fingerprint());
  }

  // Show received contours only if their scan is still open, and ask before they replace changes made meanwhile.
  function guardUpdates(panel) {
    const updateView = panel.updateView;
    panel.updateView = async (response, ...rest) => {
      const series = response.series ?? requestedSeries(response);
      if (window.organnet.seriesOfLabelmap() !== series) {
        window.organnet.notify(OTHER_SCAN, false);
        return false;
      }
      const isUnchanged = fingerprint() === requested.get(series);
      if (!isUnchanged && !confirmDiscard()) {
        return false;
      }
      await updateView(response, ...rest);
      markSaved();
      return true;
    };
  }

  function requestedSeries(response) {
    return new URL(response.config.url, window.location.href).searchParams.get('image');
  }

  // Return the current version of the open case's label, null if there is none.
  async function label() {
    const series = window.organnet.panel && window.organnet.seriesOfLabelmap();
    const answer = series && (await fetch(`/organnet/labels?image=${series}`));
    return answer?.ok ? ((await answer.json()).labels[0] ?? null) : null;
  }

  // Replace the contours by the submitted label, after asking if there are unsaved changes.
  async function load() {
    const { panel } = window.organnet;
    const series = window.organnet.seriesOfLabelmap();
    if (!confirmDiscard()) {
      return;
    }
    expect(series);
    const answer = await fetch(`/organnet/export/${series}?format=nrrd`);
    if (!answer.ok) {
      throw new Error((await answer.json()).detail);
    }
    const { info } = panel.state;
    // The server's label values, which can differ from those of the active model.
    info.modelLabelToIdxMap[SUBMITTED] = info.data.labels;
    const received = { series, data: await answer.arrayBuffer() };
    if (await panel.updateView(received, SUBMITTED, Object.keys(info.data.labels))) {
      window.organnet.notify('The submitted label is loaded.', true);
    }
  }

  window.addEventListener('beforeunload', event => {
    if (isChanged()) {
      event.preventDefault();
    }
  });

  // OHIF's link to the study list does not unload the page, so the browser does not ask.
  document.addEventListener(
    'click',
    event => {
      if (event.target.closest?.('[data-cy="return-to-work-list"]') && !confirmDiscard()) {
        event.stopPropagation();
        event.preventDefault();
      }
    },
    true
  );

  // Nor does the browser ask when its back and forward buttons lead to the list or another patient. The address
  // has changed already when this event arrives, so the step is undone before OHIF gets the event. OHIF numbers
  // the entries of the history (`idx`).
  window.addEventListener('popstate', event => {
    if (isReturning) {
      isReturning = false;
      event.stopImmediatePropagation();
      return;
    }
    const { opened, panel } = window.organnet;
    const steps = opened.index - event.state?.idx;
    if (panel && steps && !confirmDiscard(opened.search)) {
      event.stopImmediatePropagation();
      isReturning = true;
      window.history.go(steps);
    }
  });

  return {
    confirmDiscard, expect, fingerprint, guardUpdates, isChanged, isDrawn, label, LABELMAP, load, markSaved,
  };
})();
