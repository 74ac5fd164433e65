// Hanging protocol: a large axial view, with a sagittal and a coronal one beside it, in a window for soft tissue.

import { WINDOWS } from './windows.mjs';

export const PROTOCOL = 'organnet';

const [{ width: windowWidth, centre: windowCenter }] = WINDOWS;
const LARGE = 0.7;
const BOXES = {
  axial: { x: 0, y: 0, width: LARGE, height: 1 },
  sagittal: { x: LARGE, y: 0, width: 1 - LARGE, height: 0.5 },
  coronal: { x: LARGE, y: 0.5, width: 1 - LARGE, height: 0.5 },
};
const TOGETHER = { type: 'voi', id: 'organnet-window', source: true, target: true, options: { syncColormap: true } };

/** @param {string} orientation */
const view = orientation => ({
  viewportOptions: {
    viewportId: `organnet-${orientation}`,
    toolGroupId: 'mpr',
    viewportType: 'volume',
    orientation,
    initialImageOptions: { preset: 'middle' },
    syncGroups: [TOGETHER],
  },
  displaySets: [{ id: 'ct', options: { voi: { windowWidth, windowCenter } } }],
});

const is = (/** @type {string} */ attribute, /** @type {any} */ value) => ({
  attribute,
  constraint: { equals: { value } },
  required: true,
});

export const protocol = {
  id: PROTOCOL,
  name: 'Contouring',
  locked: true,
  icon: 'layout-advanced-axial-primary',
  isPreset: true,
  availableTo: {},
  editableBy: {},
  protocolMatchingRules: [],
  imageLoadStrategy: 'interleaveCenter',
  displaySetSelectors: { ct: { seriesMatchingRules: [is('Modality', 'CT'), is('isReconstructable', true)] } },
  stages: [
    {
      id: PROTOCOL,
      name: 'Contouring',
      viewportStructure: {
        layoutType: 'grid',
        properties: { rows: 2, columns: 2, layoutOptions: Object.values(BOXES) },
      },
      viewports: Object.keys(BOXES).map(view),
    },
  ],
};
