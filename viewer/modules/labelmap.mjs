// The contours of one series: a labelmap of Cornerstone with one 8-bit image for each slice.

import { cornerstone, services, tools, viewport, viewportIds } from './context.mjs';
import { gridOf, minus, pixelsOf, plus, sliceOf, sorted, times, volumeOf } from './geometry.mjs';
import * as history from './history.mjs';

/** @typedef {import('./geometry.mjs').Slice} Slice */
/** @typedef {import('./nrrd.mjs').Volume} Volume */

/**
 * @typedef {object} Organ
 * @property {string} name TG-263 name.
 * @property {number} value Voxel value on this server.
 * @property {number[]} colour Red, green and blue, 0 to 255.
 */

const LABELMAP = 'Labelmap';

export class Labelmap {
  /**
   * @param {any} displaySet OHIF's display set of the series.
   * @param {Organ[]} organs In planning order.
   */
  constructor(displaySet, organs) {
    this.displaySet = displaySet;
    this.organs = organs;
    this.id = `organnet-${displaySet.SeriesInstanceUID}`;
    /** @type {Slice[]} Slices by the id of their labelmap image, along their normal. */
    this.slices = [];
    /** Values of organs that the tools do not change. @type {Set<number>} */
    this.locked = new Set();
    /** Values of organs that are not shown. @type {Set<number>} */
    this.hidden = new Set();
    /** Value -> opacity of the fill in percent, where it was changed. @type {Map<number, number>} */
    this.opacities = new Map();
    /** Whether the tools leave all organs but the chosen one as they are. */
    this.protectsOthers = true;
  }

  /** Make an empty labelmap, and show it in every viewport of its series. */
  async create() {
    const { segmentationService } = services();
    if (!segmentationService.getSegmentation(this.id)) {
      const segments = Object.fromEntries(
        this.organs.map(({ name, value }, number) => [value, { label: name, active: number === 0 }])
      );
      await segmentationService.createLabelmapForDisplaySet(this.displaySet, {
        segmentationId: this.id,
        label: 'OrganNet Label',
        segments,
      });
    }
    const { imageIds } = segmentationService.getSegmentation(this.id).representationData[LABELMAP];
    this.slices = sorted(
      imageIds.map((/** @type {string} */ id) =>
        sliceOf(id, cornerstone().metaData.get('imagePlaneModule', this.#image(id).referencedImageId))
      )
    );
    await this.show();
  }

  /** Show the labelmap in viewports of its series that do not show it yet, for example after a change of layout. */
  async show() {
    const { segmentationService, viewportGridService } = services();
    for (const id of viewportIds()) {
      const shown = viewportGridService.getDisplaySetsUIDsForViewport(id) ?? [];
      const isOfSeries = shown.includes(this.displaySet.displaySetInstanceUID) && viewport(id)?.type === 'orthographic';
      const has = segmentationService.getSegmentationRepresentations(id, { segmentationId: this.id }).length > 0;
      if (isOfSeries && !has) {
        await segmentationService.addSegmentationRepresentation(id, { segmentationId: this.id, type: LABELMAP });
        this.#paint(id);
      }
    }
    // A new viewport would draw the voxels as they were when the labelmap was made.
    tools().segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.id);
  }

  /** @param {string} viewportId */
  #paint(viewportId) {
    for (const { value, colour } of this.organs) {
      const { segmentationService } = services();
      segmentationService.setSegmentColor(viewportId, this.id, value, [...colour, 255]);
      segmentationService.setSegmentVisibility(viewportId, this.id, value, !this.hidden.has(value), LABELMAP);
    }
  }

  /** @param {string} id @returns {any} */
  #image(id) {
    return cornerstone().cache.getImage(id);
  }

  /** @param {Slice} slice @returns {Uint8Array} The pixels themselves, not a copy. */
  pixels(slice) {
    return this.#image(slice.id).voxelManager.getScalarData();
  }

  /**
   * Replace pixels, as one step that can be undone.
   * @param {Map<Slice, Uint8Array>} changed New pixels of slices.
   */
  replace(changed) {
    const steps = [...changed].flatMap(([slice, pixels]) => history.difference(slice.id, this.pixels(slice), pixels));
    history.apply(this.id, steps);
  }

  /**
   * Replace all contours by those of a volume on the same voxels, as one step that can be undone.
   * @param {Volume} volume
   */
  fill(volume) {
    this.replace(new Map(this.slices.map(slice => [slice, pixelsOf(volume, slice)])));
  }

  /** @returns {Volume} All contours. */
  volume() {
    return volumeOf(this.slices, this.slices.map(slice => this.pixels(slice)), this.#thicknessMm());
  }

  /** @returns {boolean} Whether any voxel belongs to an organ. */
  isDrawn() {
    return this.slices.some(slice => this.pixels(slice).some(value => value !== 0));
  }

  /** @returns {number} A number that is another one, nearly always, if the contours are others (FNV-1a, 32 bits). */
  fingerprint() {
    let hash = 0x811c9dc5;
    for (const slice of this.slices) {
      for (const value of this.pixels(slice)) {
        hash = Math.imul(hash ^ value, 0x01000193);
      }
    }
    return hash;
  }

  /** @returns {Map<number, number>} Voxel value -> volume in mL, of the values that occur. */
  volumesMl() {
    const counts = new Uint32Array(256);
    for (const slice of this.slices) {
      for (const value of this.pixels(slice)) {
        counts[value] += 1;
      }
    }
    const voxelMl = this.#voxelMl();
    const present = [...counts.entries()].filter(([value, count]) => value > 0 && count > 0);
    return new Map(present.map(([value, count]) => [value, count * voxelMl]));
  }

  #thicknessMm() {
    return Number(this.displaySet.instances?.[0]?.SliceThickness) || 1;
  }

  #voxelMl() {
    const { directions } = gridOf(this.slices, this.#thicknessMm());
    const [x, y, z] = directions.map(step => Math.hypot(...step));
    return (x * y * z) / 1000;
  }

  /**
   * @param {number} value
   * @returns {number[] | undefined} A point in the middle slice of an organ, inside it; undefined if it has no voxel.
   */
  middle(value) {
    const areas = this.slices.map(slice => this.pixels(slice).reduce((sum, one) => sum + Number(one === value), 0));
    const half = areas.reduce((sum, area) => sum + area, 0) / 2;
    if (half === 0) {
      return undefined;
    }
    let below = 0;
    const number = areas.findIndex(area => (below += area) >= half);
    return nearestToCentroid(this.slices[number], this.pixels(this.slices[number]), value);
  }

  /** @param {number} value Move all viewports to the middle of an organ. */
  goTo(value) {
    const at = this.middle(value);
    if (at) {
      this.jump(at);
    }
  }

  /** @param {number[]} at Position in LPS mm that all viewports go to. */
  jump(at) {
    viewportIds().forEach(id => viewport(id)?.jumpToWorld?.(at));
  }

  /** @returns {number} Value of the organ that the tools draw. */
  activeValue() {
    return tools().segmentation.segmentIndex.getActiveSegmentIndex(this.id);
  }

  /** @param {number} value */
  activate(value) {
    services().segmentationService.setActiveSegment(this.id, value);
  }

  /** @param {number} value @returns {boolean} Whether the tools leave voxels with this value as they are. */
  isProtected(value) {
    return value !== 0 && (this.locked.has(value) || (this.protectsOthers && value !== this.activeValue()));
  }

  /** @param {number} value @param {boolean} isVisible */
  setVisible(value, isVisible) {
    this.hidden[isVisible ? 'delete' : 'add'](value);
    viewportIds().forEach(id =>
      services().segmentationService.setSegmentVisibility(id, this.id, value, isVisible, LABELMAP)
    );
  }

  /** @param {number} value @param {number} percent Opacity of the fill. */
  setOpacity(value, percent) {
    this.opacities.set(value, percent);
    const which = { segmentationId: this.id, type: LABELMAP, segmentIndex: value };
    services().segmentationService.setStyle(which, { fillAlpha: percent / 100 });
    viewportIds().forEach(id => viewport(id)?.render());
  }
}

/** @param {Slice} slice @param {Uint8Array} pixels @param {number} value @returns {number[]} */
function nearestToCentroid(slice, pixels, value) {
  const inside = [];
  for (let at = 0; at < pixels.length; at += 1) {
    if (pixels[at] === value) {
      inside.push([at % slice.columns, Math.floor(at / slice.columns)]);
    }
  }
  const centroid = times(inside.reduce(plus), 1 / inside.length);
  const distance = (/** @type {number[]} */ pixel) => Math.hypot(...minus(pixel, centroid));
  const [column, row] = inside.reduce((best, pixel) => (distance(pixel) < distance(best) ? pixel : best));
  return plus(slice.origin, plus(times(slice.alongRow, column), times(slice.alongColumn, row)));
}
