// What is drawn: whether anybody has it but this page, and the label that the server has of the case.
'use strict';

window.organnet.contours = (() => {
  const LABELMAP = '1'; // the name that MONAI Label's panel gives to its only segmentation
  const LOST = 'What you changed is not submitted, and goes. Go on?';
  let settled = 0; // fingerprint of the voxels when a model made them, or the server got them

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

  function settle() {
    settled = fingerprint();
  }

  // Whether somebody changed the open patient's contours since a model made them or the server got them.
  function isChanged() {
    const isOpen = window.organnet.panel && window.organnet.seriesOfLabelmap();
    return Boolean(isOpen) && isDrawn() && fingerprint() !== settled;
  }

  function mayGo() {
    return !isChanged() || window.confirm(LOST);
  }

  // What the panel fills in, anybody can have again: from here on only what a person changes counts.
  function watch(panel) {
    const fill = panel.updateView;
    panel.updateView = async (...given) => {
      await fill(...given);
      settle();
    };
  }

  // The newest version of the open case's label, null where there is none.
  async function label() {
    const series = window.organnet.panel && window.organnet.seriesOfLabelmap();
    const answer = series && (await fetch(`/organnet/labels?image=${series}`));
    return answer?.ok ? ((await answer.json()).labels[0] ?? null) : null;
  }

  // Lay the submitted label over the CT, in place of what is drawn; false where that is to stay.
  async function load() {
    if (!mayGo()) {
      return false;
    }
    const answer = await fetch(`/organnet/export/${window.organnet.seriesOfLabelmap()}?format=nrrd`);
    if (!answer.ok) {
      throw new Error((await answer.json()).detail);
    }
    const { panel } = window.organnet;
    const { models, modelLabelNames } = panel.state.info;
    const [model] = models;
    await panel.updateView({ data: await answer.arrayBuffer() }, model, modelLabelNames[model]);
    return true;
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

  return { isChanged, isDrawn, label, LABELMAP, load, mayGo, settle, watch };
})();
