// Undo and redo of changes that are made here, in the same history as the strokes of Cornerstone's tools.

import { cornerstone, tools } from './context.mjs';

/**
 * @typedef {object} Change Pixels of one image that differ.
 * @property {string} imageId
 * @property {Uint32Array} at
 * @property {Uint8Array} before
 * @property {Uint8Array} after
 */

/**
 * @param {string} imageId
 * @param {Uint8Array} before
 * @param {Uint8Array} after
 * @returns {Change[]} The change from one to the other; empty if there is none.
 */
export function difference(imageId, before, after) {
  const changed = [];
  for (let at = 0; at < before.length; at += 1) {
    if (before[at] !== after[at]) {
      changed.push(at);
    }
  }
  const at = Uint32Array.from(changed);
  const pick = (/** @type {Uint8Array} */ pixels) => Uint8Array.from(at, one => pixels[one]);
  return changed.length ? [{ imageId, at, before: pick(before), after: pick(after) }] : [];
}

/**
 * Make changes in the images of a segmentation, and keep them for undo.
 * @param {string} segmentationId
 * @param {Change[]} changes
 */
export function apply(segmentationId, changes) {
  if (!changes.length) {
    return;
  }
  set(segmentationId, changes, 'after');
  cornerstone().utilities.HistoryMemo.DefaultHistoryMemo.push({
    id: cornerstone().utilities.uuidv4(),
    operationType: 'labelmap',
    restoreMemo: (/** @type {boolean} */ isUndo) => set(segmentationId, changes, isUndo ? 'before' : 'after'),
  });
}

/**
 * Forget the newest steps that Cornerstone keeps for an annotation.
 * @param {string} annotationUid
 */
export function forget(annotationUid) {
  const { DefaultHistoryMemo } = cornerstone().utilities.HistoryMemo;
  const isOfAnnotation = (/** @type {any} */ item) => {
    const memos = [item].flat();
    const isAll = memos.every(memo => memo?.id === annotationUid);
    // Undone without an effect: the annotation is removed already.
    memos.filter(() => isAll).forEach(memo => (memo.restoreMemo = () => undefined));
    return isAll;
  };
  while (DefaultHistoryMemo.undoIf(isOfAnnotation));
}

/** @param {string} segmentationId @param {Change[]} changes @param {'before' | 'after'} state */
function set(segmentationId, changes, state) {
  for (const { imageId, at, [state]: values } of changes) {
    const { voxelManager } = cornerstone().cache.getImage(imageId);
    const pixels = voxelManager.getScalarData();
    at.forEach((one, number) => (pixels[one] = values[number]));
    voxelManager.setScalarData?.(pixels);
  }
  tools().segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(segmentationId);
}
