// What is drawn: whether anybody has it but this page, whose it is, and the label that the server has.
'use strict';

window.organnet.contours = (() => {
  const LABELMAP = '1'; // the name that MONAI Label's panel gives to its only segmentation
  const SUBMITTED = 'submitted'; // in the panel's tables of values, beside the models
  const LOST = 'What you changed is not submitted, and goes. Go on?';
  const ANOTHER = 'The contours that came are of another scan than the one that is open; nothing was changed.';
  const before = new Map(); // series -> fingerprint of what was drawn when its contours were asked for
  let settled = 0; // fingerprint of the voxels when a model made them, or the server got them
  let isGoingBack = false;

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

  // From here on only what is changed after this counts as anybody's work.
  function settle(at = fingerprint()) {
    settled = at;
  }

  // Whether somebody changed the open patient's contours since a model made them or the server got them.
  function isChanged(search = window.location.search) {
    const isOpen = window.organnet.panel && window.organnet.seriesOfLabelmap(search);
    return Boolean(isOpen) && isDrawn() && fingerprint() !== settled;
  }

  function mayGo(search = window.location.search) {
    return !isChanged(search) || window.confirm(LOST);
  }

  // Contours of a series are asked for, which may take minutes: what is drawn now may be replaced then.
  function expect(series) {
    before.set(series, fingerprint());
  }

  // What comes is laid over the scan that it is of, or not at all; what was drawn meanwhile is not lost unasked.
  function watch(panel) {
    const fill = panel.updateView;
    panel.updateView = async (response, ...how) => {
      const series = response.series ?? askedFor(response);
      if (window.organnet.seriesOfLabelmap() !== series) {
        window.organnet.say(ANOTHER, false);
        return false;
      }
      const isAsItWas = fingerprint() === before.get(series);
      if (!isAsItWas && !mayGo()) {
        return false;
      }
      await fill(response, ...how);
      settle();
      return true;
    };
  }

  function askedFor(response) {
    return new URL(response.config.url, window.location.href).searchParams.get('image');
  }

  // The newest version of the open case's label, null where there is none.
  async function label() {
    const series = window.organnet.panel && window.organnet.seriesOfLabelmap();
    const answer = series && (await fetch(`/organnet/labels?image=${series}`));
    return answer?.ok ? ((await answer.json()).labels[0] ?? null) : null;
  }

  // Lay the submitted label over the CT, in place of what is drawn, unless that is to stay.
  async function load() {
    const { panel } = window.organnet;
    const series = window.organnet.seriesOfLabelmap();
    if (!mayGo()) {
      return;
    }
    expect(series);
    const answer = await fetch(`/organnet/export/${series}?format=nrrd`);
    if (!answer.ok) {
      throw new Error((await answer.json()).detail);
    }
    const { info } = panel.state;
    // The server's values, which need not be those of the model that serves.
    info.modelLabelToIdxMap[SUBMITTED] = info.data.labels;
    const came = { series, data: await answer.arrayBuffer() };
    if (await panel.updateView(came, SUBMITTED, Object.keys(info.data.labels))) {
      window.organnet.say('The submitted label is loaded.', true);
    }
  }

  window.addEventListener('beforeunload', event => {
    if (isChanged()) {
      event.preventDefault();
    }
  });

  // OHIF's way back to the list leaves the page as it is, so that no browser asks.
  document.addEventListener(
    'click',
    event => {
      if (event.target.closest?.('[data-cy="return-to-work-list"]') && !mayGo()) {
        event.stopPropagation();
        event.preventDefault();
      }
    },
    true
  );

  // Nor does it where the browser's own buttons lead to the list or another patient: the address has changed when
  // we hear of it, and OHIF, which hears of it after us, is not told. It numbers the entries of the history.
  window.addEventListener('popstate', event => {
    if (isGoingBack) {
      isGoingBack = false;
      event.stopImmediatePropagation();
      return;
    }
    const { opened, panel } = window.organnet;
    const way = opened.index - event.state?.idx;
    if (panel && way && !mayGo(opened.search)) {
      event.stopImmediatePropagation();
      isGoingBack = true;
      window.history.go(way);
    }
  });

  return { expect, fingerprint, isChanged, isDrawn, label, LABELMAP, load, mayGo, settle, watch };
})();
