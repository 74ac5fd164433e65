// Keys of the viewer; `?` shows them.

import { WINDOWS } from './windows.mjs';

/** @typedef {{ commandName: string, commandOptions?: object, label: string, keys: string[] }} Hotkey */

/** @param {string} key @param {string} label @param {string} commandName @param {object} [commandOptions] @returns {Hotkey} */
const on = (key, label, commandName, commandOptions) => ({ commandName, commandOptions, label, keys: [key] });

/** @param {string} key @param {string} label @param {string} toolName */
const tool = (key, label, toolName) => on(key, label, 'setToolActiveToolbar', { toolName, toolGroupIds: ['default', 'mpr'] });

/** @type {Hotkey[]} */
export const hotkeys = [
  tool('b', 'Brush', 'CircularBrush'),
  tool('e', 'Eraser', 'CircularEraser'),
  tool('t', 'Threshold brush', 'ThresholdCircularBrush'),
  tool('f', 'Freehand contour', 'PlanarFreehandROI'),
  tool('s', 'Spline contour', 'SplineROI'),
  tool('p', 'Correct by clicks', 'Probe'),
  tool('w', 'Window', 'WindowLevel'),
  on('[', 'Smaller brush', 'decreaseBrushSize'),
  on(']', 'Larger brush', 'increaseBrushSize'),
  on('ctrl+z', 'Undo', 'undo'),
  on('ctrl+y', 'Redo', 'redo'),
  on('i', 'Interpolate between slices', 'organnetInterpolate'),
  on('h', 'Fill holes of the organ', 'organnetFillHoles'),
  on('g', 'Smooth the organ', 'organnetSmooth'),
  on('c', 'Copy from the slice above', 'organnetCopySlice', { towardsHead: 1 }),
  on('x', 'Copy from the slice below', 'organnetCopySlice', { towardsHead: -1 }),
  on('o', 'Outline or fill', 'organnetOutline'),
  on('q', 'Previous organ', 'organnetNextOrgan', { step: -1 }),
  on('a', 'Next organ', 'organnetNextOrgan', { step: 1 }),
  on('up', 'Slice up', 'previousImage'),
  on('down', 'Slice down', 'nextImage'),
  ...WINDOWS.map(({ name, width, centre }, number) =>
    on(String(number + 1), `Window: ${name}`, 'organnetWindow', { windowWidth: width, windowCenter: centre })
  ),
  on('space', 'Reset the view', 'resetViewport'),
  on('esc', 'Cancel what is being drawn', 'cancelActiveOperation'),
  on('?', 'These keys', 'organnetKeys'),
];
