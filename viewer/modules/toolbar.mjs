// The buttons above the images.

const GROUPS = ['default', 'mpr'];
const activate = { commandName: 'setToolActiveToolbar', commandOptions: { toolGroupIds: GROUPS } };

/** @param {string} id @param {string} icon @param {string} label @param {string} tooltip @param {any} more */
const button = (id, icon, label, tooltip, more) => ({
  id,
  uiType: 'ohif.toolButton',
  props: { type: 'tool', icon, label, tooltip, evaluate: 'evaluate.cornerstoneTool', commands: activate, ...more },
});

/** @param {string} id @param {string} icon @param {string} label @param {string} tooltip @param {any} commands */
const action = (id, icon, label, tooltip, commands) =>
  button(id, icon, label, tooltip, { type: 'action', commands, evaluate: 'evaluate.action' });

/** @param {string} toolName @param {string} icon @param {string} label @param {string} tooltip */
const tool = (toolName, icon, label, tooltip) => button(toolName, icon, label, tooltip, {});

const contouring = [
  tool('CircularBrush', 'icon-tool-brush', 'Brush', 'Brush (B)'),
  tool('CircularEraser', 'icon-tool-eraser', 'Eraser', 'Eraser (E)'),
  tool('ThresholdCircularBrush', 'icon-tool-threshold', 'Threshold brush', 'Brush for soft tissue: -50 to 150 HU (T)'),
  tool('SphereBrush', 'icon-tool-shape', 'Sphere brush', 'Brush through several slices'),
  tool('PlanarFreehandROI', 'icon-tool-freehand-roi', 'Freehand', 'Draw around the organ; with Alt, cut away (F)'),
  tool('SplineROI', 'icon-tool-spline-roi', 'Spline', 'Set points around the organ, and close the curve (S)'),
  tool('Probe', 'tool-probe', 'Correct by clicks', 'Click what belongs to the organ; with Alt, what does not (P)'),
  action('Smaller', 'Minus', 'Smaller brush', 'Smaller brush ([)', 'decreaseBrushSize'),
  action('Larger', 'Plus', 'Larger brush', 'Larger brush (])', 'increaseBrushSize'),
  action('Interpolate', 'actions-interpolate', 'Interpolate', 'Fill the slices between drawn ones (I)', 'organnetInterpolate'),
  action('FillHoles', 'FillOnly', 'Fill holes', 'Fill the holes of the organ (H)', 'organnetFillHoles'),
  action('Smooth', 'ActionsSmooth', 'Smooth', 'Smooth the organ (G)', 'organnetSmooth'),
  action('CopySlice', 'Copy', 'Copy from above', 'Copy the organ from the slice above (C)', { commandName: 'organnetCopySlice', commandOptions: { towardsHead: 1 } }),
  action('Outline', 'FillAndOutline', 'Outline', 'Outline only, or filled (O)', 'organnetOutline'),
];

// The first definition of a button counts.
export const toolbarButtons = [...contouring, { $reference: 'cornerstone.toolbarButtons' }];

export const toolbarSections = [
  { $reference: 'cornerstone.segmentationModeToolbarSections' },
  {
    primary: ['WindowLevel', 'Pan', 'Zoom', ...contouring.map(({ id }) => id), 'Layout', 'Crosshairs', 'MoreTools'],
    MoreTools: ['Reset', 'rotate-right', 'flipHorizontal', 'ReferenceLines', 'StackScroll', 'invert', 'Magnify', 'Capture', 'TagBrowser'],
  },
];
