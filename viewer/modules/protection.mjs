// Organs that the brushes leave as they are.
//
// Cornerstone has locks of its own, but since version 5 a stroke over a locked segment moves the drawn one into a second
// labelmap, in which it overlaps the other. Here a voxel belongs to one organ, so the brushes are told not to change it.

import { openCase } from './case.mjs';
import { tools } from './context.mjs';

const guarded = new WeakSet();

/**
 * Guard the brushes of a tool group.
 * @param {string} toolGroupId
 */
export function guardBrushes(toolGroupId) {
  const instances = Object.values(tools().ToolGroupManager.getToolGroup(toolGroupId)?.getToolInstances() ?? {});
  for (const { configuration } of /** @type {any[]} */ (instances)) {
    if (configuration?.strategies && configuration.activeStrategy) {
      configuration.strategies = Object.fromEntries(
        Object.entries(configuration.strategies).map(([name, strategy]) => [name, guardedStrategy(strategy)])
      );
    }
  }
}

/** @param {any} strategy A function with further functions as properties. */
function guardedStrategy(strategy) {
  /** @this {any} @param {any} element @param {any} operation */
  function guardedCall(element, operation) {
    const createMemo = (/** @type {any[]} */ ...given) => guardedMemo(operation.createMemo(...given));
    return strategy.call(this, element, operation?.createMemo ? { ...operation, createMemo } : operation);
  }
  return Object.assign(guardedCall, strategy);
}

/** @param {any} memo Through it the brushes change voxels. */
function guardedMemo(memo) {
  if (memo && !guarded.has(memo)) {
    guarded.add(memo);
    const { voxelManager, segmentationVoxelManager } = memo;
    const setAtIndex = voxelManager.setAtIndex.bind(voxelManager);
    voxelManager.setAtIndex = (/** @type {number} */ index, /** @type {number} */ value) =>
      openCase()?.labelmap.isProtected(segmentationVoxelManager.getAtIndex(index)) ? undefined : setAtIndex(index, value);
  }
  return memo;
}
