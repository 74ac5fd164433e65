import assert from 'node:assert/strict';
import { test } from 'node:test';
import { explanation, firstToCheck } from '../modules/doubts.mjs';

/** @param {number | null} uncertainty @param {string[]} doubts */
const summary = (uncertainty, doubts = []) => ({ uncertainty, doubts, uncertain_slice: null, is_cut: false, reason: '' });

test('implausible organs are looked at first, then the most uncertain ones', () => {
  const summaries = {
    Brainstem: summary(0.1),
    Larynx: summary(0.4),
    Esophagus: summary(0.3),
    Parotid_L: summary(0.2, ['Parotid_L: in two pieces']),
    SpinalCord: summary(null),
  };
  assert.equal(firstToCheck(summaries), 'Look first at Parotid_L, Larynx, Esophagus');
  assert.equal(firstToCheck({}), '');
});

test('a number that means nothing is not shown, but why', () => {
  const text = explanation('SpinalCord', { ...summary(null), is_cut: true, reason: 'no better than chance' });
  assert.equal(text, 'the scan cuts this organ\nno better than chance');
});
