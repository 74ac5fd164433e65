// What is drawn over the images: a closed contour becomes pixels of the chosen organ, a click is sent to the server, and
// the drawing disappears.

import { openCase } from './case.mjs';
import { cornerstone, notify, services, tools } from './context.mjs';
import { gridOf, indexOf } from './geometry.mjs';
import * as history from './history.mjs';
import { pixelsInside } from './polygon.mjs';
import { correctAt } from './prompts.mjs';

const CLICK = 'Probe';
const TOOLS = ['PlanarFreehandROI', 'SplineROI', CLICK];
const ON_PLANE_VOX = 0.3;

let isCutting = false;

/** @returns {{ unsubscribe: () => void }} Start filling contours that are drawn. */
export function fillDrawnContours() {
  const { eventTarget } = cornerstone();
  const { ANNOTATION_COMPLETED } = tools().Enums.Events;
  const onKey = (/** @type {KeyboardEvent} */ event) => (isCutting = event.altKey);
  /** @param {CustomEvent} event */
  const onCompleted = ({ detail: { annotation } }) => {
    if (TOOLS.includes(annotation.metadata.toolName)) {
      // After the tool has finished with it.
      window.setTimeout(() => replaceByPixels(annotation));
    }
  };
  window.addEventListener('keydown', onKey);
  window.addEventListener('keyup', onKey);
  eventTarget.addEventListener(ANNOTATION_COMPLETED, onCompleted);
  return {
    unsubscribe() {
      window.removeEventListener('keydown', onKey);
      window.removeEventListener('keyup', onKey);
      eventTarget.removeEventListener(ANNOTATION_COMPLETED, onCompleted);
    },
  };
}

/** @param {any} annotation */
function replaceByPixels(annotation) {
  const { metadata, data } = annotation;
  tools().annotation.state.removeAnnotation(annotation.annotationUID);
  services().measurementService.remove?.(annotation.annotationUID);
  history.forget(annotation.annotationUID);
  const points = (metadata.toolName === CLICK ? data.handles.points : data.contour.polyline).map(
    (/** @type {Iterable<number>} */ point) => [...point]
  );
  if (metadata.toolName === CLICK) {
    correctAt(points[0], !isCutting);
  } else if (data.contour.closed && points.length > 2) {
    fill(points);
  } else {
    notify('The contour is not closed, so nothing was filled.', 'info');
  }
}

/** @param {number[][]} polyline Corners in LPS mm. */
function fill(polyline) {
  const labelmap = openCase()?.labelmap;
  if (!labelmap) {
    return;
  }
  const grid = gridOf(labelmap.slices);
  const indices = polyline.map(indexOf(grid));
  const axis = [2, 1, 0].find(one => spread(indices.map(index => index[one])) < ON_PLANE_VOX);
  if (axis === undefined) {
    notify('Contours can only be filled in views along the slices of the CT; use the brush in this view.', 'warning');
    return;
  }
  const value = labelmap.activeValue();
  const changed = new Map();
  for (const voxel of voxelsInside(indices, axis, grid.sizes)) {
    const slice = labelmap.slices[voxel[2]];
    if (!changed.has(slice)) {
      changed.set(slice, labelmap.pixels(slice).slice());
    }
    const at = voxel[1] * slice.columns + voxel[0];
    const before = changed.get(slice)[at];
    if (isCutting ? before === value : !labelmap.isProtected(before)) {
      changed.get(slice)[at] = isCutting ? 0 : value;
    }
  }
  labelmap.replace(changed);
}

/** @param {number[]} values */
const spread = values => Math.max(...values) - Math.min(...values);

/**
 * @param {number[][]} indices Corners as voxel indices, in a plane.
 * @param {number} axis The axis along which they do not change.
 * @param {number[]} sizes
 * @returns {number[][]} Voxels inside.
 */
function voxelsInside(indices, axis, sizes) {
  const [column, row] = [0, 1, 2].filter(one => one !== axis);
  const at = Math.round(indices[0][axis]);
  if (at < 0 || at >= sizes[axis]) {
    return [];
  }
  const corners = indices.map(index => [index[column], index[row]]);
  return pixelsInside(corners, sizes[column], sizes[row]).map(pixel => {
    const voxel = [at, at, at];
    voxel[column] = pixel % sizes[column];
    voxel[row] = Math.floor(pixel / sizes[column]);
    return voxel;
  });
}
