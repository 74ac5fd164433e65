// The tools of the viewports. Those that load a model of their own from another site are not among them.

import { tools as cornerstoneTools } from './context.mjs';
import { guardBrushes } from './protection.mjs';

const RADIUS_MM = { minRadius: 0.5, maxRadius: 50 };
const RADIUS_AT_START_MM = 6;

/** @param {string} toolName @param {string} activeStrategy @param {object} [more] */
const brush = (toolName, activeStrategy, more = {}) => ({
  toolName,
  parentTool: 'Brush',
  configuration: { activeStrategy, ...RADIUS_MM, ...more },
});

/** @param {any} names Cornerstone's names of tools. */
const passive = names => [
  brush('CircularBrush', 'FILL_INSIDE_CIRCLE'),
  brush('SphereBrush', 'FILL_INSIDE_SPHERE'),
  brush('CircularEraser', 'ERASE_INSIDE_CIRCLE'),
  brush('SphereEraser', 'ERASE_INSIDE_SPHERE'),
  brush('ThresholdCircularBrush', 'THRESHOLD_INSIDE_CIRCLE', { threshold: { range: [-50, 150], isDynamic: false } }),
  brush('ThresholdSphereBrush', 'THRESHOLD_INSIDE_SPHERE', { threshold: { range: [-50, 150], isDynamic: false } }),
  { toolName: names.PlanarFreehandROI },
  { toolName: names.SplineROI },
  { toolName: names.Probe },
  { toolName: names.Length },
  { toolName: names.StackScroll },
  { toolName: names.Magnify },
];

/** @param {any} exports Of Cornerstone's utility module in OHIF. */
function tools({ toolNames, Enums }) {
  const { Primary, Secondary, Auxiliary, Wheel } = Enums.MouseBindings;
  return {
    active: [
      { toolName: toolNames.WindowLevel, bindings: [{ mouseButton: Primary }] },
      { toolName: toolNames.Pan, bindings: [{ mouseButton: Auxiliary }] },
      { toolName: toolNames.Zoom, bindings: [{ mouseButton: Secondary }, { numTouchPoints: 2 }] },
      { toolName: toolNames.StackScroll, bindings: [{ mouseButton: Wheel }, { numTouchPoints: 3 }] },
    ],
    passive: passive(toolNames),
    disabled: [
      { toolName: toolNames.ReferenceLines },
      {
        toolName: toolNames.Crosshairs,
        bindings: [{ mouseButton: Primary, modifierKey: Enums.KeyboardBindings.Shift }],
        configuration: { viewportIndicators: false, disableOnPassive: true, autoPan: { enabled: false } },
      },
    ],
  };
}

/** @param {any} exports Of Cornerstone's utility module in OHIF. */
function toolsIn3d({ toolNames, Enums }) {
  const { Primary, Secondary, Auxiliary } = Enums.MouseBindings;
  return {
    active: [
      { toolName: toolNames.TrackballRotateTool, bindings: [{ mouseButton: Primary }] },
      { toolName: toolNames.Zoom, bindings: [{ mouseButton: Secondary }] },
      { toolName: toolNames.Pan, bindings: [{ mouseButton: Auxiliary }] },
    ],
  };
}

/** @param {any} parts What OHIF passes to a mode. */
export function initToolGroups({ extensionManager, toolGroupService }) {
  const { exports } = extensionManager.getModuleEntry('@ohif/extension-cornerstone.utilityModule.tools');
  for (const id of ['default', 'mpr']) {
    toolGroupService.createToolGroupAndAddTools(id, tools(exports));
    cornerstoneTools().utilities.segmentation.setBrushSizeForToolGroup(id, RADIUS_AT_START_MM);
    guardBrushes(id);
  }
  toolGroupService.createToolGroupAndAddTools('volume3d', toolsIn3d(exports));
}
