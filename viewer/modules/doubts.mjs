// Where and why the model's contours may be wrong: what the server says of each organ after a run.

import { button, setText } from './dom.mjs';

/**
 * @typedef {object} Summary Of one organ's contour by the model.
 * @property {number | null} uncertainty 0 (certain) to 1; null if it means nothing.
 * @property {{ position_mm: number[] } | null} uncertain_slice
 * @property {boolean | null} is_cut Whether the scan cuts the organ.
 * @property {string[]} doubts
 * @property {string} reason Why a value is missing.
 */

const SHOWN_FIRST = 3;

/**
 * A button that tells what is doubtful of an organ's contour, and goes to the slice to look at first.
 * @param {string} name
 * @param {(at: number[]) => void} jump
 */
export function doubtButton(name, jump) {
  /** @type {Summary | undefined} */
  let shown;
  const node = button('doubt', '', '', () => shown?.uncertain_slice && jump(shown.uncertain_slice.position_mm));
  node.hidden = true;
  return {
    node,
    /** @param {Summary | undefined} summary */
    show(summary) {
      shown = summary;
      node.hidden = !summary;
      if (summary) {
        setText(node, summary.uncertainty === null ? '?' : `${Math.round(100 * summary.uncertainty)} %`);
        node.classList.toggle('organnet-doubted', summary.doubts.length > 0);
        node.title = explanation(name, summary);
      }
    },
  };
}

/** @param {string} name @param {Summary} summary */
export function explanation(name, { uncertainty, uncertain_slice: slice, is_cut: isCut, doubts, reason }) {
  const sentences = [
    uncertainty === null ? '' : `${name}: uncertainty ${Math.round(100 * uncertainty)} % of the largest possible, in the model's contour`,
    ...doubts,
    isCut ? 'the scan cuts this organ' : '',
    reason,
    slice ? 'click to go to the slice to look at first' : '',
  ];
  return sentences.filter(Boolean).join('\n');
}

/**
 * @param {Record<string, Summary>} summaries
 * @returns {string} Which organs to look at first; empty without a prediction.
 */
export function firstToCheck(summaries) {
  const entries = Object.entries(summaries).filter(([, { uncertainty }]) => uncertainty !== null);
  const doubted = entries.filter(([, { doubts }]) => doubts.length > 0);
  const uncertain = entries.sort(([, a], [, b]) => Number(b.uncertainty) - Number(a.uncertainty));
  const names = [...new Set([...doubted, ...uncertain].map(([name]) => name))].slice(0, SHOWN_FIRST);
  return names.length ? `Look first at ${names.join(', ')}` : '';
}
